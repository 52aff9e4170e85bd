"""Contract 15 and the errors that a user can make: each a clear exception, and nothing left."""

import asyncio
import functools
import gc
import math
import selectors
import threading

import pytest
from harness import QueueHost, guest_threads, take_finalizer_back

import aioguest


def start(*args, **options):
    posted = []
    outcomes = []
    options.setdefault("run_sync_soon_threadsafe", posted.append)
    options.setdefault("done_callback", outcomes.append)
    try:
        return aioguest.start_guest_run(*args, **options)
    finally:
        assert posted == []
        assert outcomes == []
        assert guest_threads() == []


async def main(*args):
    raise AssertionError("no user code is to run")


@pytest.fixture(params=["coroutine", "function"])
def program(request):
    """A coroutine that must be closed ("never awaited" is an error), or its function."""
    if request.param == "function":
        yield main
        return
    coro = main()
    yield coro
    assert coro.cr_frame is None  # closed
    del coro
    gc.collect(1)


def plain_function():
    raise AssertionError("not to be called")


def generator():
    yield


async def async_generator():
    yield


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (plain_function, "not an async function (if it returns a coroutine, call it)"),
        (functools.partial(plain_function), "not an async function"),
        (generator, "not an async function"),
        (async_generator, "not an async function"),
        (42, "needs a coroutine or an async function, not 42"),
        (None, "needs a coroutine or an async function, not None"),
    ],
)
def test_what_is_neither_a_coroutine_nor_an_async_function(what, message):
    with pytest.raises(TypeError) as info:
        start(what)
    assert message in str(info.value)


def test_generators_are_no_coroutines():
    with pytest.raises(TypeError, match="not the generator"):
        start(generator())
    with pytest.raises(TypeError, match="not the generator"):
        start(async_generator())


def test_an_async_function_that_wants_other_arguments():
    async def two(a, b):
        pass

    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        start(two, 1)


def test_a_coroutine_takes_no_arguments():
    with pytest.raises(TypeError, match="pass the async function and its arguments"):
        start(main(), 1)


def test_a_coroutine_that_is_awaited_elsewhere_is_refused_and_left_alone():
    async def half():
        await asyncio.sleep(0)
        return "it still works"

    async def other():
        coro = half()
        task = asyncio.get_running_loop().create_task(coro)
        await asyncio.sleep(0)
        with pytest.raises(
            RuntimeError, match=r"was started before.*call its async function again"
        ):
            start(coro)
        return await task

    assert asyncio.run(other()) == "it still works"


def test_a_second_start_of_one_coroutine_is_refused_before_it_ran_and_after(kind):
    async def program():
        await asyncio.sleep(0)
        return "once"

    def setup(api):
        coro = program()

        def again():
            with pytest.raises(RuntimeError, match=r"started before.*function again for a new one"):
                api.start(coro, done_callback=print)

        def done(outcome):
            assert outcome.unwrap() == "once"
            again()
            api.finish()

        api.start(coro, done_callback=done)
        again()
        api.post(again)

    kind.loop(setup)


@pytest.mark.parametrize("budget", ["1", None, 1j, True, [0.001]])
def test_a_tick_budget_that_is_no_number(program, budget):
    with pytest.raises(TypeError, match="tick_budget must be a number of seconds"):
        start(program, tick_budget=budget)


@pytest.mark.parametrize("budget", [-1, -0.001, math.nan, -math.inf])
def test_a_tick_budget_out_of_range(program, budget):
    with pytest.raises(ValueError, match="tick_budget must be 0 or more seconds"):
        start(program, tick_budget=budget)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run_sync_soon_threadsafe": None}, "pass run_sync_soon_threadsafe= or host="),
        ({"run_sync_soon_threadsafe": 42}, "run_sync_soon_threadsafe must be a function"),
        ({"run_sync_soon_not_threadsafe": 42}, "run_sync_soon_not_threadsafe must be a function"),
        ({"done_callback": None}, "done_callback must be a function of one outcome"),
        ({"run_sync_soon_threadsafe": None, "host": 42}, "needs an aioguest.Host, not 42"),
        ({"host": 42}, "either host= or the run_sync_soon_* functions, not both"),
    ],
)
def test_options_of_a_wrong_type(program, options, message):
    with pytest.raises(TypeError) as info:
        start(program, **options)
    assert message in str(info.value)


@pytest.mark.parametrize("selector", [selectors.SelectSelector, selectors.PollSelector])
def test_selectors_that_another_thread_cannot_wait_on(program, selector):
    loop = asyncio.SelectorEventLoop(selector())
    with pytest.raises(ValueError, match=r"(?s)Use selectors\.DefaultSelector\(\)"):
        start(program, loop_factory=lambda: loop)
    assert loop.is_closed()


def test_a_loop_that_is_not_the_standard_librarys(program):
    class Foreign(asyncio.AbstractEventLoop):
        closed = False

        def is_closed(self):
            return self.closed

        def is_running(self):
            return False

        def close(self):
            self.closed = True

    loop = Foreign()
    with pytest.raises(TypeError, match=r"cannot step a loop of type .*Foreign.*SelectorEventLoop"):
        start(program, loop_factory=lambda: loop)
    assert loop.closed


def test_a_closed_loop(program):
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError, match="closed loop, it must make a new one"):
        start(program, loop_factory=lambda: loop)


def test_a_running_loop_stays_as_it_is(program):
    async def other():
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="already runs, it must make a new one"):
            start(program, loop_factory=lambda: loop)
        assert loop.is_running()
        await asyncio.sleep(0)

    asyncio.run(other())


@pytest.mark.parametrize("what", [None, 42, asyncio.new_event_loop])
def test_what_is_no_loop(program, what):
    with pytest.raises(TypeError, match="must return an asyncio event loop"):
        start(program, loop_factory=lambda: what)


def test_a_loop_factory_that_raises(program):
    def factory():
        raise LookupError("no loop today")

    with pytest.raises(LookupError, match="no loop today"):
        start(program, loop_factory=factory)


def test_a_task_factory_that_makes_no_task(program):
    class NoTask:
        def set_name(self, name):
            """Python 3.13 calls this itself."""

    with pytest.raises(TypeError, match=r"task factory must return an asyncio\.Task"):
        start(program, task_factory=lambda loop, coro, **kwargs: NoTask())


def test_a_task_factory_that_raises(program):
    def factory(loop, coro, **kwargs):
        raise LookupError("no task today")

    with pytest.raises(LookupError, match="no task today"):
        start(program, task_factory=factory)


def test_a_task_factory_that_is_no_function(program):
    with pytest.raises(TypeError, match="factory"):
        start(program, task_factory=42)


def test_a_post_function_that_raises_at_the_first_post(program):
    def refuse(fn):
        raise LookupError("the queue is closed")

    before = asyncio._get_running_loop()
    with pytest.raises(LookupError, match="the queue is closed"):
        start(program, run_sync_soon_threadsafe=refuse)
    assert asyncio._get_running_loop() is before


@pytest.mark.parametrize("watches", [False, True])
def test_a_host_that_calls_from_another_thread_is_told_how_to(watches):
    """Errors of the host reach done_callback; the guest is ended in order."""
    log = []
    outcomes = []

    async def program():
        try:
            log.append("started")
            await asyncio.sleep(3600)
        except asyncio.CancelledError as exc:
            log.append(str(exc))
            raise

    with QueueHost(watches) as host:
        task = aioguest.start_guest_run(
            program, host=host, done_callback=outcomes.append, tick_budget=0
        )
        host.turn()
        thread = threading.Thread(target=host.todo.popleft(), name="the-wrong-thread")
        thread.start()
        thread.join()
    take_finalizer_back()
    assert task.cancelled()
    assert task.get_loop().is_closed()
    assert log[0] == "started"
    (outcome,) = outcomes
    with pytest.raises(RuntimeError, match=r"'the-wrong-thread'.*call start_guest_run\(\) on the"):
        outcome.unwrap()


def test_a_ticket_called_twice_or_late_does_nothing():
    async def program():
        await asyncio.sleep(0.001)

    with QueueHost() as host:
        outcomes = []
        aioguest.start_guest_run(program, host=host, done_callback=outcomes.append)
        ticket = host.todo[0]
        host.turn()
        ticket()
        host.run_until(lambda: outcomes)
        ticket()
        ticket.post()
        ticket.fail(ValueError())
        threading.Thread(target=ticket).start()
        assert len(outcomes) == 1


@pytest.mark.parametrize("watches", [False, True])
def test_a_done_callback_that_raises_raises_in_the_host(watches):
    async def program():
        await asyncio.sleep(0.001)

    def done(outcome):
        raise LookupError("done_callback")

    with QueueHost(watches) as host:
        aioguest.start_guest_run(program, host=host, done_callback=done)
        with pytest.raises(LookupError, match="done_callback"):
            host.run()
        host.check()


def test_an_error_at_the_start_leaves_a_host_with_its_own_hooks(kind):
    def setup(api):
        with pytest.raises(ValueError, match="tick_budget"):
            api.start(main(), done_callback=print, tick_budget=-1)
        api.finish()

    kind.loop(setup)

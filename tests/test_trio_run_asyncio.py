"""run_asyncio(): one asyncio program inside a Trio task."""

import asyncio
import contextvars
import sys
import traceback

import pytest
import trio
import trio.lowlevel

from aioguest.hosts.trio import current_guest, open_guest, run_asyncio

pytestmark = pytest.mark.trio

number = contextvars.ContextVar("number", default=0)


async def value_of(value):
    await asyncio.sleep(0)
    return value


async def fail(error):
    await asyncio.sleep(0)
    raise error


async def test_it_returns_what_the_coroutine_returns():
    assert await run_asyncio(value_of, 3) == 3
    assert await run_asyncio(value_of(4)) == 4


async def test_an_exception_comes_through_with_its_traceback():
    with pytest.raises(KeyError, match="lost") as info:
        await run_asyncio(fail, KeyError("lost"))
    names = [frame.name for frame in traceback.extract_tb(info.value.__traceback__)]
    assert names[0] == "test_an_exception_comes_through_with_its_traceback"
    assert names[-1] == "fail"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup is of 3.11")
async def test_an_exception_group_comes_through_intact():
    first, second = ValueError("first"), OSError("second")

    async def two_fail():
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(first))
            group.create_task(fail(second))

    with pytest.raises(BaseException) as info:
        await run_asyncio(two_fail)
    assert type(info.value).__name__ == "ExceptionGroup"
    assert info.value.exceptions == (first, second)


async def test_system_exit_comes_through():
    with pytest.raises(SystemExit, match="7"):
        await run_asyncio(fail, SystemExit(7))


async def test_a_guest_may_end_in_its_first_tick():
    async def instant():
        return 1

    assert sum([await run_asyncio(instant) for _ in range(50)]) == 50


async def test_cancelling_the_scope_cancels_the_task_and_waits_for_its_cleanup():
    record = []

    async def program():
        record.append("began")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            record.append("cleaned up")
            raise

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_asyncio, program)
            while not record:
                await trio.lowlevel.checkpoint()
            scope.cancel()
    assert scope.cancelled_caught
    assert record == ["began", "cleaned up"]


async def test_a_deadline_reaches_the_guest():
    cancelled = []

    async def program():
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.append(True)

    with trio.move_on_after(0.01) as scope:
        await run_asyncio(program)
    assert scope.cancelled_caught
    assert cancelled


async def test_fail_after_raises_too_slow():
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(0.01):
            await run_asyncio(asyncio.sleep, 3600)


async def test_in_a_cancelled_scope_the_program_does_not_begin():
    began = []

    async def program():
        began.append(True)

    with trio.CancelScope() as scope:
        scope.cancel()
        await run_asyncio(program)
    assert scope.cancelled_caught
    assert not began


async def test_a_guest_that_cancels_itself_raises_asyncios_cancelled_error():
    async def program():
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    with trio.CancelScope() as scope:
        with pytest.raises(asyncio.CancelledError):
            await run_asyncio(program)
    assert not scope.cancelled_caught


async def test_a_guest_that_swallows_the_cancel_returns_its_value():
    async def program():
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "kept"

    with trio.move_on_after(0.01) as scope:
        assert await run_asyncio(program) == "kept"
        assert scope.cancel_called
    assert not scope.cancelled_caught


async def test_an_error_during_the_cancellation_comes_out_as_it_is():
    async def program():
        try:
            await asyncio.sleep(3600)
        finally:
            raise ValueError("during cleanup")

    with trio.move_on_after(0.01) as scope:
        with pytest.raises(ValueError, match="during cleanup"):
            await run_asyncio(program)
    assert not scope.cancelled_caught


async def test_a_cancellation_during_the_guests_shutdown_keeps_the_value():
    main_ended = trio.Event()

    async def slow_to_go():
        try:
            await asyncio.sleep(3600)
        finally:
            main_ended.set()
            await asyncio.sleep(0.01)

    async def program():
        program.leftover = asyncio.ensure_future(slow_to_go())
        await asyncio.sleep(0)
        return "value"

    async def cancel_then(scope):
        await main_ended.wait()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_then, scope)
            assert await run_asyncio(program) == "value"
        assert scope.cancel_called
        assert not scope.cancelled_caught
    assert program.leftover.cancelled()


async def test_a_shielded_guest_ends_before_the_cancellation_is_seen():
    finished = []

    async def program():
        await asyncio.sleep(0.02)
        finished.append(True)

    with trio.CancelScope() as outer:
        outer.cancel()
        with trio.CancelScope(shield=True) as inner:
            await run_asyncio(program)
        assert finished
        await trio.lowlevel.checkpoint()
    assert outer.cancelled_caught
    assert not inner.cancelled_caught


async def test_many_guests_run_at_once():
    arrived = []
    everybody = trio.Event()
    results = {}

    async def program(name):
        arrived.append(name)
        if len(arrived) == 20:
            everybody.set()
        await current_guest().run_trio(everybody.wait)  # All of them live at this moment.
        await asyncio.sleep(0.001 * (name % 3))
        return name

    async def child(name):
        results[name] = await run_asyncio(program, name)

    async with trio.open_nursery() as nursery:
        for name in range(20):
            nursery.start_soon(child, name)
    assert results == {name: name for name in range(20)}


async def test_one_failing_guest_cancels_its_siblings_in_the_nursery():
    ended = []

    async def sibling():
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    with pytest.raises(BaseException) as info:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_asyncio, sibling)
            nursery.start_soon(run_asyncio, fail, ValueError("mine"))
    assert [repr(error) for error in info.value.exceptions] == ["ValueError('mine')"]
    assert ended == [True]


async def test_trio_goes_on_while_the_guest_computes():
    beats = []

    async def heart():
        while True:
            beats.append(True)
            await trio.lowlevel.checkpoint()

    async def program():
        for _ in range(3):
            before = len(beats)
            while len(beats) == before:
                await asyncio.sleep(0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(heart)
        await run_asyncio(program)
        nursery.cancel_scope.cancel()


async def test_the_options_reach_the_guest():
    loops, tasks = [], []

    def loop_factory():
        loops.append(asyncio.SelectorEventLoop())
        return loops[0]

    def task_factory(loop, coro, **kwargs):
        tasks.append(coro)
        return asyncio.Task(coro, loop=loop, **kwargs)

    async def look():
        loop = asyncio.get_running_loop()
        return loop, loop.get_debug(), number.get()

    context = contextvars.copy_context()
    context.run(number.set, 9)
    seen = await run_asyncio(
        look,
        debug=True,
        loop_factory=loop_factory,
        task_factory=task_factory,
        context=context,
        tick_budget=0,
    )
    assert seen == (loops[0], True, 9)
    assert loops[0].is_closed()
    assert tasks


async def test_the_main_task_runs_in_a_copy_of_the_callers_context():
    async def look_and_set():
        seen = number.get()
        number.set(5)
        return seen

    number.set(2)
    assert await run_asyncio(look_and_set) == 2
    assert number.get() == 2


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((3,), {}, TypeError),
        ((print,), {}, TypeError),
        ((value_of,), {}, TypeError),
        ((value_of, 1), {"tick_budget": -1}, ValueError),
        ((value_of, 1), {"tick_budget": "much"}, TypeError),
        ((value_of, 1), {"loop_factory": object}, TypeError),
        ((value_of, 1), {"no_such_option": 1}, TypeError),
    ],
)
async def test_a_users_error_raises_at_once(arguments, options, error):
    with pytest.raises(error):
        await run_asyncio(*arguments, **options)


async def test_a_users_error_closes_the_coroutine():
    for options in ({"tick_budget": -1}, {"loop_factory": object}):
        coro = value_of(1)
        with pytest.raises((TypeError, ValueError)):
            await run_asyncio(coro, **options)
        assert coro.cr_frame is None
    coro = value_of(1)
    with pytest.raises(TypeError, match="positional arguments beside a coroutine"):
        await run_asyncio(coro, 1)
    assert coro.cr_frame is None


async def test_a_coroutine_runs_only_once():
    coro = value_of(1)
    assert await run_asyncio(coro) == 1
    with pytest.raises(RuntimeError, match="started before"):
        await run_asyncio(coro)


async def test_run_asyncio_refuses_to_be_awaited_by_asyncio_code_of_a_guest():
    inner = value_of(1)

    async def program():
        with pytest.raises(RuntimeError):
            await run_asyncio(inner)
        with pytest.raises(RuntimeError):
            await run_asyncio(value_of, 1)
        with pytest.raises(RuntimeError):
            async with open_guest():
                pass
        await asyncio.sleep(0)
        return "went on"

    assert await run_asyncio(program) == "went on"
    assert inner.cr_frame is None


async def test_current_guest_is_for_guests_only():
    with pytest.raises(RuntimeError, match="does not run in an asyncio guest"):
        current_guest()

"""Contract 3: it looks like ``asyncio.run()``. Where possible, compared with the real one."""

import asyncio
import contextvars
import gc
import inspect
import logging
import sys
import threading
import time

import pytest

import aioguest

# Programs. Each takes a list, and leaves in it what may be compared.


def report_to(log):
    def handler(loop, context):
        message = context["message"].split("<")[0]
        log.append(("handler", message, repr(context.get("exception"))))

    asyncio.get_running_loop().set_exception_handler(handler)


async def returns_a_value(log):
    await asyncio.sleep(0)
    return {"answer": 42}


async def raises_an_error(log):
    await asyncio.sleep(0)
    raise LookupError("not here")


async def raises_before_its_first_await(log):
    raise LookupError("at once")


async def cancels_itself(log):
    asyncio.current_task().cancel()
    await asyncio.sleep(1)


async def raises_cancelled_error(log):
    raise asyncio.CancelledError


async def stops_the_loop(log):
    try:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        log.append("cancelled")
        raise


async def stops_the_loop_and_ends(log):
    asyncio.get_running_loop().stop()
    return "ended in the same iteration"


async def keyboard_interrupt_out_of_main(log):
    log.append("up")
    raise KeyboardInterrupt("main")


async def system_exit_out_of_main(log):
    await asyncio.sleep(0)
    raise SystemExit(3)


async def _raise(error):
    await asyncio.sleep(0)
    raise error


def _throw(error):
    raise error


async def keyboard_interrupt_out_of_another_task(log):
    try:
        task = asyncio.get_running_loop().create_task(_raise(KeyboardInterrupt("task")))
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        log.append(("main was cancelled", task.done()))
        raise


async def system_exit_out_of_another_task(log):
    try:
        task = asyncio.get_running_loop().create_task(_raise(SystemExit(4)))
        await asyncio.sleep(3600)
    finally:
        log.append(("main was cancelled", task.done()))


async def keyboard_interrupt_out_of_a_callback(log):
    asyncio.get_running_loop().call_soon(_throw, KeyboardInterrupt("callback"))
    try:
        await asyncio.sleep(3600)
    finally:
        log.append("finally")


async def system_exit_out_of_a_callback(log):
    asyncio.get_running_loop().call_later(0.001, _throw, SystemExit(5))
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0)
        log.append("finally")


async def main_ignores_the_cancellation_after_an_interrupt(log):
    asyncio.get_running_loop().call_soon(_throw, KeyboardInterrupt("callback"))
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        await asyncio.sleep(0.001)
        log.append("swallowed")
        return "ignored"


async def an_error_out_of_a_callback(log):
    report_to(log)
    asyncio.get_running_loop().call_soon(_throw, ValueError("callback"))
    await asyncio.sleep(0.001)
    return "still here"


async def leftover_tasks(log):
    report_to(log)

    async def quiet(name):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.001)
            log.append(name)
            raise

    async def loud():
        try:
            await asyncio.sleep(3600)
        finally:
            raise ValueError("while cancelled")

    async def stubborn():
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            log.append("stubborn")
            return 1

    loop = asyncio.get_running_loop()
    log.keep = [loop.create_task(c) for c in (quiet("a"), quiet("b"), loud(), stubborn())]
    await asyncio.sleep(0)
    return "main"


async def a_leftover_task_that_interrupts(log):
    async def loud():
        try:
            await asyncio.sleep(3600)
        finally:
            raise KeyboardInterrupt("leftover")

    log.keep = asyncio.get_running_loop().create_task(loud())
    await asyncio.sleep(0)
    return "main"


async def a_leftover_task_that_stops_the_loop(log):
    async def stopper():
        try:
            await asyncio.sleep(3600)
        finally:
            asyncio.get_running_loop().stop()
            await asyncio.sleep(0.001)

    log.keep = asyncio.get_running_loop().create_task(stopper())
    log.keep._log_destroy_pending = False
    await asyncio.sleep(0)
    raise LookupError("the first failure")


async def leftover_async_generators(log):
    async def generator(name):
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0.001)
            log.append(name)

    log.keep = [generator("g1"), generator("g2")]
    for g in log.keep:
        await g.__anext__()


async def an_async_generator_that_fails_to_close(log):
    report_to(log)

    async def generator():
        try:
            yield 1
        finally:
            raise ValueError("in aclose")

    log.keep = generator()
    await log.keep.__anext__()


async def an_async_generator_that_interrupts(log):
    async def generator():
        try:
            yield 1
        finally:
            raise KeyboardInterrupt("in aclose")

    log.keep = generator()
    await log.keep.__anext__()


async def a_default_executor(log):
    loop = asyncio.get_running_loop()
    started = threading.Event()

    def work():
        started.set()
        time.sleep(0.02)
        log.append("the thread ended")

    loop.run_in_executor(None, work)
    await loop.run_in_executor(None, started.wait)


async def its_loops_state(log):
    loop = asyncio.get_running_loop()
    log.append(loop.is_running())
    log.append(loop.is_closed())
    log.append(loop.get_debug())
    log.append(type(loop).__name__)
    log.append(asyncio.current_task().get_name()[:5])
    log.append(len(asyncio.all_tasks()))


async def the_order_of_callbacks(log):
    loop = asyncio.get_running_loop()
    loop.call_soon(log.append, "soon 1")
    loop.call_later(0.002, log.append, "later 2")
    loop.call_later(0.001, log.append, "later 1")
    loop.call_soon(log.append, "soon 2")
    await asyncio.sleep(0)
    log.append("task")
    await asyncio.sleep(0.005)


PROGRAMS = [
    program
    for program in list(globals().values())
    if inspect.iscoroutinefunction(program) and program is not _raise
]


class Log(list):
    keep = None


def observe(run, program, caplog):
    log = Log()
    caplog.clear()
    try:
        result = ("value", run(program, log))
    except BaseException as exc:
        context = exc.__context__
        result = ("error", type(exc), exc.args, type(context), getattr(context, "args", None))
        del exc, context
    log.keep = None
    gc.collect(1)  # what it has just made
    records = [
        (r.levelname, r.getMessage().split("\n")[0].split("<")[0])
        for r in caplog.records
        if r.name == "asyncio" and "Using selector" not in r.getMessage()
    ]
    # Tasks and generators are in sets: the order of their cancellation means nothing.
    in_order = sorted(log, key=str) if program.__name__.startswith("leftover") else list(log)
    return {"result": result, "log": in_order, "records": records}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_same_as_under_asyncio_run(kind, program, caplog):
    expected = observe(lambda fn, log: asyncio.run(fn(log)), program, caplog)
    assert observe(kind.run, program, caplog) == expected


def test_between_ticks_the_loop_says_that_it_is_running(kind):
    async def other():
        pass

    async def main():
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        found = []

        def in_host():
            found.append(loop.is_running())
            with pytest.raises(RuntimeError, match="running"):
                loop.close()
            coro = other()
            with pytest.raises(RuntimeError, match="running"):
                loop.run_until_complete(coro)
            coro.close()
            event.set()

        kind.in_host(in_host)
        await event.wait()
        return loop, found

    loop, found = kind.run(main)
    assert found == [True]
    assert not loop.is_running()
    assert loop.is_closed()


def test_a_refused_run_forever_does_not_break_the_guest(queue_kind):
    """In Python 3.13 it resets the loop's state although it refuses to run."""

    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def in_host():
            with pytest.raises(RuntimeError, match="running"):
                loop.run_forever()
            loop.call_soon_threadsafe(future.set_result, None)

        queue_kind.in_host(in_host)
        await future
        for _ in range(3):
            await asyncio.sleep(0.001)
        return loop.is_running()

    assert queue_kind.run(main, tick_budget=0)


def test_the_closed_loop_has_its_own_methods_again(kind):
    async def main():
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    loop = kind.run(main)
    for name in ("call_soon", "call_at", "stop", "create_task", "add_signal_handler", "_run_once"):
        assert name not in vars(loop)
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon(print)


def test_loop_stop_from_the_host_ends_the_run_as_in_asyncio_run(kind):
    async def main():
        loop = asyncio.get_running_loop()
        kind.in_host(lambda: loop.stop())
        await asyncio.sleep(3600)

    with pytest.raises(RuntimeError, match="Event loop stopped before Future completed"):
        kind.run(main)


def test_debug_mode_is_set_and_otherwise_left_alone(kind):
    async def main():
        return asyncio.get_running_loop().get_debug()

    assert kind.run(main, debug=True) is True
    assert kind.run(main, debug=False) is False
    assert kind.run(main) is asyncio.run(main())


def test_debug_mode_logs_slow_callbacks(kind, caplog):
    async def main():
        asyncio.get_running_loop().slow_callback_duration = 0
        await asyncio.sleep(0)

    with caplog.at_level(logging.WARNING, "asyncio"):
        kind.run(main, debug=True)
    assert any(
        r.getMessage().startswith("Executing <") and " took " in r.getMessage()
        for r in caplog.records
    )


def test_debug_mode_refuses_call_soon_from_another_thread(kind):
    async def main():
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        errors = []

        def from_thread():
            try:
                loop.call_soon(print)
            except RuntimeError as exc:
                errors.append(str(exc))

        def in_host():
            thread = threading.Thread(target=from_thread)
            thread.start()
            thread.join()
            event.set()

        kind.in_host(in_host)
        await event.wait()
        return errors

    (error,) = kind.run(main, debug=True)
    assert "Non-thread-safe operation" in error


def test_debug_mode_names_the_callers_line_for_work_from_the_host(kind):
    async def main():
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        sources = []

        def in_host():
            for handle in (loop.call_soon(int), loop.call_later(0, int), loop.call_at(0, int)):
                sources.append(handle._source_traceback[-1].name)  # noqa: PERF401
            event.set()

        kind.in_host(in_host)
        await event.wait()
        return sources

    assert kind.run(main, debug=True) == ["in_host"] * 3


def test_a_loop_factory_makes_the_loop_on_every_python(kind):
    class MyLoop(asyncio.SelectorEventLoop):
        pass

    async def main():
        return type(asyncio.get_running_loop())

    assert kind.run(main, loop_factory=MyLoop) is MyLoop


def test_a_task_factory_makes_every_task_the_main_one_too(kind):
    made = []

    def factory(loop, coro, **kwargs):
        made.append(coro.__name__)
        return asyncio.Task(coro, loop=loop, **kwargs)

    async def child():
        pass

    async def main():
        await asyncio.get_running_loop().create_task(child())

    kind.run(main, task_factory=factory)
    assert made[:2] == ["main", "child"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
def test_eager_tasks_run_at_once_in_the_guest_but_not_in_host_time(kind):
    order = []
    tasks = []

    async def child(name):
        order.append(name)

    async def main():
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        order.append("main")
        tasks.append(loop.create_task(child("in the guest")))
        order.append("after")

        def in_host():
            task = loop.create_task(child("from the host"))
            tasks.append(task)
            task.add_done_callback(lambda _: event.set())
            order.append("host is done")

        kind.in_host(in_host)
        await event.wait()

    def setup(api):
        def done(outcome):
            outcome.unwrap()
            api.finish()

        api.start(main, task_factory=asyncio.eager_task_factory, done_callback=done)
        order.append("started")

    kind.loop(setup)
    assert order == [
        "started",
        "main",
        "in the guest",
        "after",
        "host is done",
        "from the host",
    ]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
def test_an_eager_main_task_that_never_waits_still_ends(kind):
    async def main():
        return "quick"

    assert kind.run(main, task_factory=asyncio.eager_task_factory) == "quick"


def test_create_task_in_host_time_takes_a_name_and_fails_as_asyncio_does(kind):
    tasks = []

    async def child():
        pass

    async def main():
        loop = asyncio.get_running_loop()
        event = asyncio.Event()

        def in_host():
            with pytest.raises(TypeError):
                tasks.append(loop.create_task(42))
            task = loop.create_task(child(), name="from the host")
            tasks.append(task)
            assert task.get_name() == "from the host"
            assert loop.is_running()
            task.add_done_callback(lambda _: event.set())

        kind.in_host(in_host)
        await event.wait()

    kind.run(main)


def test_exceptions_come_with_their_traceback(kind):
    async def main():
        await asyncio.sleep(0)
        raise KeyError("deep")

    with pytest.raises(KeyError) as info:
        kind.run(main)
    assert info.traceback[-1].name == "main"


def test_the_host_lives_while_the_guest_shuts_down(kind):
    host_saw = []

    async def leftover():
        try:
            await asyncio.sleep(3600)
        finally:
            event = asyncio.Event()
            kind.in_host(lambda: (host_saw.append("leftover"), event.set()))
            await event.wait()

    async def generator():
        try:
            yield
        finally:
            event = asyncio.Event()
            kind.in_host(lambda: (host_saw.append("generator"), event.set()))
            await event.wait()

    async def main():
        main.task = asyncio.get_running_loop().create_task(leftover())
        main.generator = generator()
        await main.generator.__anext__()

    kind.run(main)
    assert host_saw == ["leftover", "generator"]


@pytest.mark.skipif(sys.version_info < (3, 9), reason="3.8 shuts the executor down by closing")
def test_the_host_lives_while_the_default_executor_shuts_down(kind):
    release = threading.Event()

    async def main():
        loop = asyncio.get_running_loop()
        started = threading.Event()
        loop.run_in_executor(None, lambda: (started.set(), release.wait()))
        await loop.run_in_executor(None, started.wait)
        # Three host turns later, when main has long ended:
        kind.in_host(kind.in_host, kind.in_host, release.set)

    kind.run(main)
    assert release.is_set()


def test_the_main_task_runs_in_a_copy_of_the_callers_context(kind):
    variable = contextvars.ContextVar("variable", default="unset")

    async def main():
        found = variable.get()
        variable.set("guest")
        await asyncio.sleep(0)
        return found, variable.get()

    seen = []

    def setup(api):
        def done(outcome):
            seen.append(outcome.unwrap())
            api.finish()

        variable.set("host")
        api.start(main, done_callback=done)
        variable.set("host, later")
        seen.append(variable.get())

    contextvars.copy_context().run(kind.loop, setup)
    assert seen == ["host, later", ("host", "guest")]


def test_the_main_task_runs_in_a_given_context(kind):
    variable = contextvars.ContextVar("variable", default="unset")
    context = contextvars.copy_context()
    context.run(variable.set, "given")

    async def main():
        found = variable.get()
        variable.set("changed")
        return found

    assert kind.run(main, context=context) == "given"
    assert variable.get() == "unset"
    # Before 3.11 no task can run in a given context itself: it runs in a copy.
    expected = "changed" if sys.version_info >= (3, 11) else "given"
    assert context[variable] == expected


def test_host_work_keeps_the_context_of_its_caller(kind):
    variable = contextvars.ContextVar("variable", default="unset")

    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def in_host():
            variable.set("from the host")
            loop.call_soon(lambda: future.set_result(variable.get()))

        kind.in_host(contextvars.copy_context().run, in_host)
        return await future

    assert kind.run(main) == "from the host"


def test_done_callbacks_of_the_main_task_get_their_iteration(kind):
    seen = []

    async def main():
        asyncio.current_task().add_done_callback(lambda _: seen.append("in the guest"))

    def setup(api):
        task = api.start(main, done_callback=lambda outcome: (seen.append("done"), api.finish()))
        task.add_done_callback(lambda _: seen.append("from the host"))

    kind.loop(setup)
    assert seen == ["from the host", "in the guest", "done"]


def test_statistics_count_ticks_and_iterations(kind):
    async def main():
        loop = asyncio.get_running_loop()
        first = aioguest.statistics(loop)
        await asyncio.sleep(0.001)
        return first, aioguest.statistics(loop)

    first, second = kind.run(main)
    assert first == (1, 0)
    assert second.ticks > 1
    assert second.iterations > 1

"""aioguest.hosts.asyncio: a guest inside another asyncio loop, and inside uvloop."""

import asyncio
import sys
import threading
import time
import traceback

import pytest
import trio

import aioguest
from aioguest.hosts.asyncio import AsyncioHost, run_asyncio
from aioguest.hosts.trio import run_asyncio as run_in_trio

HOSTS = ["asyncio"]
try:
    import uvloop
except ImportError:  # pragma: no cover
    pass
else:
    HOSTS.append("uvloop")


@pytest.fixture(params=HOSTS)
def run(request):
    """asyncio.run() on the host loop: the standard library's or uvloop's."""

    def run(coro):
        loop = asyncio.new_event_loop() if request.param == "asyncio" else uvloop.new_event_loop()
        try:
            return loop.run_until_complete(coro)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    return run


async def value_of(value):
    await asyncio.sleep(0.001)
    return value


async def fail(error):
    await asyncio.sleep(0.001)
    raise error


async def echo(reader, writer):
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()


async def ask(port, line):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(line)
    answer = await reader.readline()
    writer.close()
    return answer


def test_the_value_comes_out(run):
    assert run(run_asyncio(value_of, 3)) == 3
    assert run(run_asyncio(value_of(4))) == 4


def test_the_error_comes_out_with_its_traceback(run):
    with pytest.raises(KeyError, match="lost") as info:
        run(run_asyncio(fail, KeyError("lost")))
    assert traceback.extract_tb(info.value.__traceback__)[-1].name == "fail"


def test_a_users_error_raises_at_once(run):
    with pytest.raises(TypeError):
        run(run_asyncio(3))
    with pytest.raises(ValueError, match="tick_budget"):
        run(run_asyncio(value_of, 3, tick_budget=-1))


def test_the_guest_has_a_loop_of_its_own_in_the_same_thread(run):
    async def look():
        return asyncio.get_running_loop(), threading.get_ident(), asyncio.current_task()

    async def main():
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        guest_loop, thread, guest_task = await run_asyncio(look)
        assert guest_loop is not loop
        assert guest_task is not task
        assert asyncio.get_running_loop() is loop
        assert asyncio.current_task() is task
        return thread

    assert run(main()) == threading.get_ident()


def test_the_host_serves_its_guest(run):
    async def main():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        answer = await run_asyncio(ask, port, b"hello\n")
        server.close()
        await server.wait_closed()
        return answer

    assert run(main()) == b"hello\n"


def test_several_guests_and_the_host_run_at_once(run):
    async def main():
        guests = [run_asyncio(value_of, value) for value in range(10)]
        return await asyncio.gather(*guests, value_of("host"))

    assert run(main()) == [*range(10), "host"]


def test_no_thread_is_started(run, monkeypatch):
    started = []
    monkeypatch.setattr(threading.Thread, "start", started.append)
    assert run(run_asyncio(value_of, 3)) == 3
    assert not started


def test_timers_of_the_guest_keep_their_order(run):
    order = []

    async def sleeper(name, delay):
        await asyncio.sleep(delay)
        order.append(name)

    async def program():
        late = asyncio.ensure_future(sleeper("late", 0.05))
        await asyncio.sleep(0.001)
        await asyncio.gather(sleeper("early", 0.001), sleeper("middle", 0.02), late)

    run(run_asyncio(program))
    assert order == ["early", "middle", "late"]


def test_cancelling_the_caller_cancels_the_guest_and_waits_for_it(run):
    record = []

    async def program():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.005)
            record.append("cleaned up")

    async def main():
        task = asyncio.ensure_future(run_asyncio(program))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    run(main())
    assert record == ["cleaned up"]


def test_a_guest_that_swallows_the_cancel_returns_its_value(run):
    async def program():
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "kept"

    async def main():
        task = asyncio.ensure_future(run_asyncio(program))
        await asyncio.sleep(0.01)
        task.cancel()
        return await task

    assert run(main()) == "kept"


def test_wait_for_times_a_guest_out(run):
    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(run_asyncio(asyncio.sleep, 3600), 0.01)

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is of 3.11")
def test_asyncio_timeout_times_a_guest_out(run):
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await run_asyncio(asyncio.sleep, 3600)
        assert asyncio.current_task().cancelling() == 0

    run(main())


def test_a_guest_inside_a_guest_inside_a_guest(run):
    async def nest(depth):
        await asyncio.sleep(0)
        if depth == 0:
            return [asyncio.get_running_loop()]
        return [asyncio.get_running_loop(), *await run_asyncio(nest, depth - 1)]

    loops = run(nest(3))
    assert len(set(loops)) == 4


def test_a_cancellation_reaches_the_innermost_guest(run):
    record = []

    async def nest(depth):
        try:
            await (run_asyncio(nest, depth - 1) if depth else asyncio.sleep(3600))
        finally:
            record.append(depth)

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(nest(3), 0.05)

    run(main())
    assert record == [0, 1, 2, 3]


def test_an_asyncio_guest_inside_a_guest_of_trio():
    async def program():
        return await run_asyncio(value_of, "inner"), await value_of("outer")

    assert trio.run(run_in_trio, program) == ("inner", "outer")


def test_the_host_may_have_debug_mode_and_its_guest_too():
    async def main():
        return await run_asyncio(value_of, 3, debug=True)

    assert asyncio.run(main(), debug=True) == 3


@pytest.mark.skipif("uvloop" not in HOSTS, reason="uvloop is not installed")
@pytest.mark.skipif(sys.version_info < (3, 8, 1), reason="uvloop.run")
def test_inside_uvloop_run():
    assert uvloop.run(run_asyncio(value_of, 3)) == 3


def test_a_host_loop_that_does_not_run_yet_is_run_by_aioguest_run():
    loop = asyncio.new_event_loop()
    try:
        assert aioguest.run(value_of, 3, host=AsyncioHost(loop)) == 3
        with pytest.raises(KeyError):
            aioguest.run(fail, KeyError(), host=AsyncioHost(loop))
    finally:
        loop.close()


def test_outside_of_a_loop_the_host_needs_one():
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncioHost()
    coro = run_asyncio(value_of, 3)
    with pytest.raises(RuntimeError, match="no running event loop"):
        coro.send(None)


def test_outside_of_a_loop_the_coroutine_is_closed():
    inner = value_of(3)
    with pytest.raises(RuntimeError):
        run_asyncio(inner).send(None)
    assert inner.cr_frame is None


def test_a_loop_that_cannot_watch_descriptors_gets_the_thread_wait():
    class NoReaders(asyncio.SelectorEventLoop):
        waited = False

        def add_reader(self, fd, callback, *args):
            NoReaders.waited = True
            raise NotImplementedError

    loop = NoReaders()
    try:
        assert loop.run_until_complete(run_asyncio(value_of, 3)) == 3
        assert NoReaders.waited
    finally:
        loop.close()


@pytest.mark.filterwarnings("ignore:asyncio guest run got abandoned:RuntimeWarning")
@pytest.mark.parametrize("timer", [False, True])
def test_a_host_loop_that_is_closed_first_abandons_its_guest(timer):
    ended = []

    async def program():
        try:
            await (asyncio.sleep(3600) if timer else asyncio.get_running_loop().create_future())
        finally:
            ended.append(asyncio.get_running_loop())

    async def main():
        await asyncio.sleep(0.01)

    loop = asyncio.new_event_loop()
    task = None
    try:
        task = aioguest.start_guest_run(program, host=AsyncioHost(loop), done_callback=print)
        loop.run_until_complete(main())
    finally:
        loop.close()
    task.cancel()  # The host's queue refuses the ticket, and the guest is ended without it.
    for _ in range(20000):
        if ended and ended[0].is_closed():
            break
        time.sleep(0.001)
    assert task.cancelled()
    assert ended[0].is_closed()

"""open_guest() and Guest.run(): Trio calls a long-lived asyncio loop."""

import asyncio
import contextvars
import sys
import time

import pytest
import trio

from aioguest.hosts.trio import Guest, current_guest, open_guest

pytestmark = pytest.mark.trio

number = contextvars.ContextVar("number", default=0)


async def value_of(value):
    await asyncio.sleep(0)
    return value


async def fail(error):
    await asyncio.sleep(0)
    raise error


def raise_(error):
    raise error


async def test_a_call_returns_the_value_or_raises_the_error():
    async with open_guest() as guest:
        assert isinstance(guest, Guest)
        assert await guest.run(value_of, 3) == 3
        with pytest.raises(KeyError, match="lost"):
            await guest.run(fail, KeyError("lost"))
        assert await guest.run(value_of, 4) == 4


async def test_all_calls_run_on_one_loop_which_is_closed_at_the_end():
    async def running():
        assert current_guest() is guest
        return asyncio.get_running_loop()

    async with open_guest() as guest:
        assert await guest.run(running) is await guest.run(running) is guest.loop
        assert guest.loop.is_running()
    assert guest.loop.is_closed()


async def test_real_io_works_across_calls():
    async def serve(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async def ask(port, line):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(line)
        answer = await reader.readline()
        writer.close()
        return answer

    async with open_guest() as guest:
        server = await guest.run(asyncio.start_server, serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        assert await guest.run(ask, port, b"hello\n") == b"hello\n"
        stream = await trio.open_tcp_stream("127.0.0.1", port)  # Trio asks its own guest.
        async with stream:
            await stream.send_all(b"trio\n")
            assert await stream.receive_some() == b"trio\n"
        server.close()
        await guest.run(server.wait_closed)


async def test_many_calls_run_at_once_and_each_has_its_own_cancellation():
    ended, returned, cancelled = [], [], []

    async def work(name):
        try:
            await asyncio.sleep(3600 if name % 2 else 0.01)
        finally:
            ended.append(name)
        return name

    async def call(guest, name, scope):
        with scope:
            returned.append(await guest.run(work, name))
        if scope.cancelled_caught:
            cancelled.append(name)

    scopes = [trio.CancelScope() for _ in range(20)]
    async with open_guest() as guest:
        async with trio.open_nursery() as nursery:
            for name, scope in enumerate(scopes):
                nursery.start_soon(call, guest, name, scope)
            while len(returned) < 10:
                await trio.sleep(0.001)
            for scope in scopes[1::2]:
                scope.cancel()
    assert sorted(returned) == list(range(0, 20, 2))
    assert sorted(cancelled) == list(range(1, 20, 2))
    assert sorted(ended) == list(range(20))


async def test_cancelling_waits_for_the_tasks_cleanup():
    record = []

    async def work():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            record.append("cleaned up")

    async with open_guest() as guest:
        with trio.move_on_after(0.01) as scope:
            await guest.run(work)
        assert scope.cancelled_caught
        assert record == ["cleaned up"]


async def test_a_task_that_swallows_the_cancel_returns_its_value():
    async def work():
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "kept"

    async with open_guest() as guest:
        with trio.move_on_after(0.01) as scope:
            assert await guest.run(work) == "kept"
        assert not scope.cancelled_caught


async def test_an_error_during_the_cancellation_comes_out():
    async def work():
        try:
            await asyncio.sleep(3600)
        finally:
            raise ValueError("during cleanup")

    async with open_guest() as guest:
        with trio.move_on_after(0.01):
            with pytest.raises(ValueError, match="during cleanup"):
                await guest.run(work)


async def test_a_task_that_cancels_itself_raises_asyncios_cancelled_error():
    async def work():
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    async with open_guest() as guest:
        with trio.CancelScope() as scope:
            with pytest.raises(asyncio.CancelledError):
                await guest.run(work)
        assert not scope.cancelled_caught


async def test_a_call_runs_in_a_copy_of_the_callers_context():
    async def look_and_set():
        seen = number.get()
        number.set(99)
        return seen

    async with open_guest() as guest:
        number.set(2)
        assert await guest.run(look_and_set) == 2
        number.set(3)
        assert await guest.run(look_and_set) == 3
        assert number.get() == 3


@pytest.mark.parametrize("function", [lambda: 3, list])
async def test_a_result_that_cannot_be_awaited_is_a_type_error(function):
    async with open_guest() as guest:
        with pytest.raises(TypeError, match="must be an async function"):
            await guest.run(function)


async def test_anything_that_returns_an_awaitable_can_be_called():
    async with open_guest() as guest:

        def future():
            result = guest.loop.create_future()
            guest.loop.call_later(0.001, result.set_result, "set")
            return result

        assert await guest.run(future) == "set"
        assert await guest.run(value_of(6)) == 6


async def test_a_guest_that_has_ended_raises_closed():
    async with open_guest() as guest:
        pass
    with pytest.raises(trio.ClosedResourceError, match="has ended"):
        await guest.run(value_of, 1)
    coro = value_of(1)
    with pytest.raises(trio.ClosedResourceError):
        await guest.run(coro)
    assert coro.cr_frame is None


async def test_run_refuses_asyncio_callers():
    async def program():
        coro = value_of(1)
        with pytest.raises(RuntimeError, match="for Trio tasks"):
            await guest.run(coro)
        assert coro.cr_frame is None
        with pytest.raises(RuntimeError, match="for Trio tasks"):
            await guest.run(value_of, 1)

    async with open_guest() as guest:
        await guest.run(program)


async def test_a_call_in_flight_while_the_guest_closes_raises_closed():
    cleaned = []

    async def work():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    async def call():
        with pytest.raises(trio.ClosedResourceError, match="ended during the call"):
            await guest.run(work)
        cleaned.append("caller")

    async with trio.open_nursery() as nursery:
        async with open_guest() as guest:
            nursery.start_soon(call)
            await trio.sleep(0.01)
    assert cleaned == [True, "caller"]


async def test_a_call_in_flight_that_resists_the_close_returns_its_value():
    got = []

    async def work():
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "kept"

    async def call():
        got.append(await guest.run(work))

    async with trio.open_nursery() as nursery:
        async with open_guest() as guest:
            nursery.start_soon(call)
            await trio.sleep(0.01)
    assert got == ["kept"]


@pytest.mark.skipif(sys.version_info < (3, 9), reason="3.8 does not wait for the executor")
async def test_a_call_that_the_closing_loop_cannot_end_raises_closed():
    async def occupy():
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.1)

    async def call():
        await trio.sleep(0.03)  # The guest waits for its executor: tasks are cancelled already.
        with pytest.raises(trio.ClosedResourceError):
            await guest.run(asyncio.sleep, 3600)

    async with trio.open_nursery() as nursery:
        async with open_guest() as guest:
            await guest.run(occupy)
            nursery.start_soon(call)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_an_exit_out_of_a_callback_cancels_the_body_and_comes_out(error):
    body = []
    with pytest.raises(error, match="callback"):
        async with open_guest() as guest:
            guest.loop.call_later(0.01, raise_, error("callback"))
            try:
                await trio.sleep_forever()
            finally:
                body.append("cancelled")
    assert body == ["cancelled"]
    assert guest.loop.is_closed()


async def test_an_exit_out_of_a_callback_ends_the_calls_in_flight():
    async def call():
        with pytest.raises(trio.ClosedResourceError):
            await guest.run(asyncio.sleep, 3600)

    async with trio.open_nursery() as nursery:
        with pytest.raises(KeyboardInterrupt):
            async with open_guest() as guest:
                nursery.start_soon(call)
                await trio.sleep(0.01)
                guest.loop.call_soon(raise_, KeyboardInterrupt())
                await trio.sleep_forever()


async def test_a_second_exit_during_the_shutdown_ends_even_the_calls_that_resist():
    async def resist():
        try:
            await asyncio.sleep(3600)
        finally:
            guest.loop.call_later(0.005, raise_, KeyboardInterrupt("second"))
            await asyncio.sleep(3600)

    async def call():
        with pytest.raises(trio.ClosedResourceError):
            await guest.run(resist)

    async with trio.open_nursery() as nursery:
        with pytest.raises(KeyboardInterrupt, match="second"):
            async with open_guest() as guest:
                nursery.start_soon(call)
                await trio.sleep(0.01)
                guest.loop.call_soon(raise_, KeyboardInterrupt("first"))
                await trio.sleep_forever()


async def test_an_exit_out_of_a_task_comes_out_of_the_call_and_of_the_guest():
    with pytest.raises(SystemExit, match="5"):
        async with open_guest() as guest:
            with pytest.raises(SystemExit, match="5"):
                await guest.run(fail, SystemExit(5))


async def test_loop_stop_in_the_guest_ends_it_with_asyncios_own_error():
    with pytest.raises(RuntimeError, match="Event loop stopped before Future completed"):
        async with open_guest() as guest:
            guest.loop.call_soon(guest.loop.stop)
            await trio.sleep_forever()


async def test_loop_stop_out_of_the_hosts_time_ends_it_too():
    with pytest.raises(RuntimeError, match="Event loop stopped before Future completed"):
        async with open_guest() as guest:
            await trio.sleep(0.01)
            guest.loop.stop()
            await trio.sleep_forever()


async def test_an_error_of_the_selector_ends_the_guest_and_comes_out():
    with pytest.raises(OSError, match="broken selector"):
        async with open_guest() as guest:
            await trio.sleep(0.01)
            selector = guest.loop._selector
            original = selector.select

            def select(timeout=None):
                selector.select = original
                raise OSError("broken selector")

            selector.select = select
            guest.loop.call_soon(lambda: None)
            await trio.sleep_forever()


async def test_what_the_body_raises_comes_out_after_the_guest_ended():
    async with trio.open_nursery():
        with pytest.raises(ValueError, match="the body's"):
            async with open_guest() as guest:
                raise ValueError("the body's")
    assert guest.loop.is_closed()


async def test_a_cancelled_body_waits_for_the_guests_end():
    record = []

    async def work():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            record.append("cleaned up")

    with trio.move_on_after(0.02) as scope:
        async with open_guest() as guest:
            guest.loop.create_task(work())
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert record == ["cleaned up"]
    assert guest.loop.is_closed()


async def test_the_guests_leftover_tasks_are_cancelled_at_the_end():
    async def leave_a_task():
        return asyncio.ensure_future(asyncio.sleep(3600))

    async with open_guest() as guest:
        task = await guest.run(leave_a_task)
        assert not task.done()
    assert task.cancelled()


async def test_the_guest_works_between_calls():
    ticks = []

    async def tick():
        while True:
            ticks.append(True)
            await asyncio.sleep(0.001)

    async with open_guest() as guest:
        guest.loop.create_task(tick())
        while len(ticks) < 5:
            await trio.sleep(0.001)


async def test_several_guests_live_side_by_side():
    async with open_guest() as one, open_guest() as two:
        assert one.loop is not two.loop
        assert await one.run(value_of, 1) + await two.run(value_of, 2) == 3
        with pytest.raises(RuntimeError, match="guest's own asyncio loop"):
            await one.run(two.run_trio, trio.sleep, 0)


async def test_the_options_reach_the_guest():
    async with open_guest(debug=True, tick_budget=0) as guest:
        assert guest.loop.get_debug()
        assert await guest.run(value_of, 1) == 1


async def test_a_users_error_raises_before_the_body():
    with pytest.raises(ValueError, match="tick_budget"):
        async with open_guest(tick_budget=-1):
            raise AssertionError("not reached")


async def test_a_coroutine_is_awaited_by_the_guest_between_host_events():
    event = asyncio.Event() if sys.version_info >= (3, 10) else None

    async def wait():
        nonlocal event
        if event is None:
            event = asyncio.Event()
        await event.wait()
        return "woken"

    async with open_guest() as guest:
        async with trio.open_nursery() as nursery:
            got = []

            async def call():
                got.append(await guest.run(wait))

            nursery.start_soon(call)
            await trio.sleep(0.01)
            event.set()  # From Trio's time: wakes the idle guest.
    assert got == ["woken"]

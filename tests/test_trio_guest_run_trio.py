"""Guest.run_trio(): asyncio code calls Trio."""

import asyncio
import contextvars
import sys

import pytest
import sniffio
import trio
import trio.lowlevel

from aioguest.hosts.asyncio import run_asyncio as run_in_asyncio
from aioguest.hosts.trio import current_guest, open_guest, run_asyncio

pytestmark = pytest.mark.trio

number = contextvars.ContextVar("number", default=0)


async def trio_value_of(value):
    await trio.sleep(0.001)
    return value


async def trio_fail(error):
    await trio.lowlevel.checkpoint()
    raise error


async def run_trio(async_fn, *args):
    return await current_guest().run_trio(async_fn, *args)


async def test_a_call_returns_the_value():
    assert await run_asyncio(run_trio, trio_value_of, 3) == 3


@pytest.mark.parametrize("error", [KeyError("lost"), SystemExit(3), asyncio.CancelledError()])
async def test_a_call_raises_the_error(error):
    async def program():
        try:
            await run_trio(trio_fail, error)
        except BaseException as exc:
            return exc

    assert await run_asyncio(program) is error


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are of 3.11")
async def test_a_nurserys_exception_group_comes_through():
    async def two_fail():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_fail, ValueError("first"))

    async def program():
        with pytest.raises(BaseException) as info:
            await run_trio(two_fail)
        return info.value

    group = await run_asyncio(program)
    assert [str(error) for error in group.exceptions] == ["first"]


async def test_many_calls_run_at_once():
    async def program():
        calls = [run_trio(trio_value_of, value) for value in range(50)]
        return await asyncio.gather(*calls)

    assert await run_asyncio(program) == list(range(50))


async def test_it_runs_under_trio():
    async def look():
        await trio.lowlevel.checkpoint()
        return sniffio.current_async_library(), asyncio._get_running_loop()

    assert await run_asyncio(run_trio, look) == ("trio", None)


async def test_cancelling_the_asyncio_task_cancels_the_call_and_waits_for_its_cleanup():
    record = []

    async def call():
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.01)
            record.append("cleaned up")
            raise

    async def program():
        task = asyncio.ensure_future(run_trio(call))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        return list(record)

    assert await run_asyncio(program) == ["cleaned up"]


async def test_cancelling_twice_does_no_harm():
    async def call():
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.02)

    async def program():
        task = asyncio.ensure_future(run_trio(call))
        await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.sleep(0.005)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    await run_asyncio(program)


async def test_a_task_cancelled_before_its_call_began_makes_no_call():
    called = []

    async def call():
        called.append(True)

    async def program():
        task = asyncio.ensure_future(run_trio(call))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    await run_asyncio(program)
    assert not called


async def test_an_error_during_the_cancellation_comes_out():
    async def call():
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("during cleanup")

    async def program():
        task = asyncio.ensure_future(run_trio(call))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(ValueError, match="during cleanup"):
            await task

    await run_asyncio(program)


async def test_a_call_that_swallows_the_cancel_cancels_the_asyncio_task_all_the_same():
    async def call():
        with trio.CancelScope(shield=True):
            await trio.sleep(0.02)
        return "unheard"

    async def program():
        task = asyncio.ensure_future(run_trio(call))
        await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    await run_asyncio(program)


async def test_wait_for_times_a_call_out():
    ended = []

    async def call():
        try:
            await trio.sleep_forever()
        finally:
            ended.append(True)

    async def program():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(run_trio(call), 0.01)
        return await asyncio.wait_for(run_trio(trio_value_of, 2), 10)

    assert await run_asyncio(program) == 2
    assert ended


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is of 3.11")
async def test_asyncio_timeout_times_a_call_out():
    async def program():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await run_trio(trio.sleep_forever)
        assert asyncio.current_task().cancelling() == 0
        async with asyncio.timeout(10):
            return await run_trio(trio_value_of, 2)

    assert await run_asyncio(program) == 2


async def test_a_finally_block_calls_trio_while_trio_cancels_the_guest():
    record = []

    async def program():
        try:
            await asyncio.sleep(3600)
        finally:
            record.append(await run_trio(trio_value_of, "from the finally"))

    with trio.move_on_after(0.01) as scope:
        await run_asyncio(program)
    assert scope.cancelled_caught
    assert record == ["from the finally"]


async def test_a_cancellation_goes_through_both_libraries_and_back():
    record = []

    async def innermost():
        try:
            await trio.sleep_forever()
        finally:
            record.append("trio")

    async def program():
        try:
            await run_trio(innermost)
        finally:
            record.append("asyncio")

    with trio.move_on_after(0.01) as scope:
        await run_asyncio(program)
    assert scope.cancelled_caught
    assert record == ["trio", "asyncio"]


async def test_a_call_runs_in_a_copy_of_the_asyncio_tasks_context():
    async def look_and_set():
        seen = number.get()
        number.set(99)
        return seen

    async def program():
        number.set(4)
        return await run_trio(look_and_set), number.get()

    number.set(1)
    assert await run_asyncio(program) == (4, 4)
    assert number.get() == 1


async def test_trio_cancel_scopes_work_inside_a_call():
    async def call():
        with trio.move_on_after(0.001) as scope:
            await trio.sleep_forever()
        return scope.cancelled_caught

    assert await run_asyncio(run_trio, call)


async def test_calls_go_back_and_forth_ten_deep():
    async def in_trio(guest, depth):
        await trio.lowlevel.checkpoint()
        return await guest.run(in_asyncio, depth)

    async def in_asyncio(depth):
        await asyncio.sleep(0)
        number.set(number.get() + 1)
        if depth == 0:
            return number.get()
        return await current_guest().run_trio(in_trio, current_guest(), depth - 1)

    async with open_guest() as guest:
        number.set(100)
        assert await guest.run(in_asyncio, 10) == 111
        assert number.get() == 100


async def test_a_cancellation_goes_ten_deep():
    record = []

    async def in_trio(guest, depth):
        try:
            await guest.run(in_asyncio, depth)
        finally:
            record.append(f"trio {depth}")

    async def in_asyncio(depth):
        try:
            if depth == 0:
                await asyncio.sleep(3600)
            await current_guest().run_trio(in_trio, current_guest(), depth - 1)
        finally:
            record.append(f"asyncio {depth}")

    async with open_guest() as guest:
        with trio.move_on_after(0.05) as scope:
            await guest.run(in_asyncio, 10)
    assert scope.cancelled_caught
    assert len(record) == 21
    assert record[:3] == ["asyncio 0", "trio 0", "asyncio 1"]


async def test_another_loop_is_refused():
    async def from_a_nested_loop(guest):
        with pytest.raises(RuntimeError, match="guest's own asyncio loop"):
            await guest.run_trio(trio.sleep, 0)
        with pytest.raises(RuntimeError, match="does not run in an asyncio guest"):
            current_guest()

    async def program():
        await run_in_asyncio(from_a_nested_loop, current_guest())

    await run_asyncio(program)


async def test_trio_tasks_are_refused():
    async with open_guest() as guest:
        with pytest.raises(RuntimeError, match="guest's own asyncio loop"):
            await guest.run_trio(trio.sleep, 0)


async def test_a_trio_nursery_and_an_asyncio_task_share_an_event_loop_of_work():
    async def echo(stream):
        async for data in stream:
            await stream.send_all(data)

    async def program(nursery):
        listeners = await run_trio(nursery.start, trio.serve_tcp, echo, 0)
        port = listeners[0].socket.getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"to trio\n")
        answer = await reader.readline()
        writer.close()
        return answer

    async with trio.open_nursery() as nursery:
        assert await run_asyncio(program, nursery) == b"to trio\n"
        nursery.cancel_scope.cancel()


def break_the_selector():
    """Every phase of the life fails, and the loop closes over its pending tasks."""

    def broken(timeout):
        raise OSError("the selector broke")

    asyncio.get_running_loop()._selector.select = broken


async def test_a_call_into_trio_is_cancelled_when_the_guest_breaks():
    ended = []

    async def forever():
        try:
            await trio.sleep_forever()
        finally:
            ended.append("trio")

    async def program():
        asyncio.get_running_loop().call_later(0.001, break_the_selector)
        await current_guest().run_trio(forever)

    with pytest.raises(OSError, match="the selector broke"):
        async with open_guest() as guest:
            await guest.run(program)
    await trio.testing.wait_all_tasks_blocked()
    assert ended == ["trio"]


async def in_a_nursery(*also):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(trio.sleep_forever)
        for async_fn in also:
            nursery.start_soon(async_fn)


async def fails_when_cancelled():
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("from the clean-up")


async def nursery_values():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(trio.sleep_forever)
        await trio.sleep_forever()
        yield 1


async def iterates_a_nursery():
    async for _ in current_guest().iterate_trio(nursery_values()):
        pass


@pytest.mark.parametrize("iterates", [False, True])
async def test_a_cancelled_trio_nursery_is_a_cancellation_in_asyncio(iterates):
    async def program():
        call = iterates_a_nursery() if iterates else current_guest().run_trio(in_a_nursery)
        task = asyncio.ensure_future(call)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(current_guest().run_trio(in_a_nursery), 0.01)

    async with open_guest() as guest:
        await guest.run(program)


async def test_an_error_beside_trios_cancellation_comes_out_without_it():
    async def program():
        task = asyncio.ensure_future(current_guest().run_trio(in_a_nursery, fails_when_cancelled))
        await asyncio.sleep(0.01)
        task.cancel()
        try:
            await task
        except BaseException as exc:
            return exc

    async with open_guest() as guest:
        error = await guest.run(program)
    (inner,) = error.exceptions
    assert repr(inner) == "ValueError('from the clean-up')"

"""Guest.iterate() and Guest.iterate_trio(): async iterables across the border."""

import asyncio
import contextvars
import sys
import time
from contextlib import asynccontextmanager

import pytest
import sniffio
import trio
import trio.lowlevel

from aioguest.hosts.trio import Channel, current_guest, open_guest, run_asyncio

pytestmark = pytest.mark.trio

number = contextvars.ContextVar("number", default=0)
later_than_3_10 = pytest.mark.skipif(sys.version_info < (3, 11), reason="of 3.11")


@asynccontextmanager
async def aclosing(generator):
    try:
        yield generator
    finally:
        await generator.aclose()


class Counter:
    """An asyncio generator of 0, 1, 2 ... (of Trio's, if `sleep` is) that keeps a record."""

    def __init__(self, sleep, stop=5, error=None):
        self.sleep, self.stop, self.error = sleep, stop, error
        self.asked = 0
        self.closed_in = None

    async def __call__(self):
        try:
            for value in range(self.stop):
                self.asked += 1
                await self.sleep(0)
                yield value
            if self.error is not None:
                raise self.error
        finally:
            self.closed_in = sniffio.current_async_library()
            await self.sleep(0)


def from_trio(test):
    """Run an asyncio test body as a guest of the Trio test."""

    async def wrapper():
        await run_asyncio(test)

    wrapper.__name__ = test.__name__
    return wrapper


# Trio iterates asyncio's


async def test_all_values_come_in_order():
    count = Counter(asyncio.sleep)
    async with open_guest() as guest:
        assert [value async for value in guest.iterate(count())] == [0, 1, 2, 3, 4]
        assert count.closed_in == "asyncio"


async def test_each_value_is_asked_for():
    count = Counter(asyncio.sleep)
    async with open_guest() as guest:
        values = guest.iterate(count())
        await trio.sleep(0.005)
        assert count.asked == 0
        for expected in range(3):
            assert await values.__anext__() == expected
            await trio.sleep(0.005)
            assert count.asked == expected + 1
        await values.aclose()


async def test_an_error_of_the_generator_comes_out():
    count = Counter(asyncio.sleep, 1, ValueError("the generator's"))
    async with open_guest() as guest:
        with pytest.raises(ValueError, match="the generator's"):
            async for _ in guest.iterate(count()):
                pass


async def test_leaving_early_closes_the_generator_in_asyncio():
    count = Counter(asyncio.sleep)
    async with open_guest() as guest:
        async with aclosing(guest.iterate(count())) as values:
            async for value in values:
                if value == 2:
                    break
        assert count.closed_in == "asyncio"
        assert count.asked == 3


async def test_an_error_of_the_body_closes_the_generator_too():
    count = Counter(asyncio.sleep)
    async with open_guest() as guest:
        with pytest.raises(KeyError):
            async with aclosing(guest.iterate(count())) as values:
                async for _ in values:
                    raise KeyError
        assert count.closed_in == "asyncio"


async def test_a_cancellation_while_waiting_reaches_the_generator():
    record = []

    async def stuck():
        try:
            yield 1
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.005)
            record.append("cleaned up")
            raise

    got = []
    async with open_guest() as guest:
        with trio.move_on_after(0.02) as scope:
            async for value in guest.iterate(stuck()):
                got.append(value)  # noqa: PERF401
        assert scope.cancelled_caught
        assert (got, record) == ([1], ["cleaned up"])


async def test_a_cancellation_before_the_first_value_starts_nothing():
    count = Counter(asyncio.sleep)
    async with open_guest() as guest:
        with trio.CancelScope() as scope:
            scope.cancel()
            async for _ in guest.iterate(count()):
                pass
        assert scope.cancelled_caught
        assert count.asked == 0


async def test_it_iterates_in_the_callers_context():
    async def look():
        yield number.get()
        number.set(99)
        yield number.get()

    async with open_guest() as guest:
        number.set(7)
        assert [value async for value in guest.iterate(look())] == [7, 99]
        assert number.get() == 7


@later_than_3_10
async def test_asyncio_timeout_works_inside_the_generator():
    async def timed():
        async with asyncio.timeout(3600):
            yield 1
            yield 2
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(3600)
        yield 3

    async with open_guest() as guest:
        assert [value async for value in guest.iterate(timed())] == [1, 2, 3]


async def test_an_iterable_without_aclose_over_an_asyncio_queue():
    class Drain:
        def __init__(self):
            self.queue = asyncio.Queue()

        def __aiter__(self):
            return self

        async def __anext__(self):
            value = await self.queue.get()
            if value is None:
                raise StopAsyncIteration
            return value

    async def make():
        return Drain()

    async with open_guest() as guest:
        drain = await guest.run(make)
        guest.loop.call_later(0.005, drain.queue.put_nowait, 1)
        guest.loop.call_later(0.01, drain.queue.put_nowait, 2)
        guest.loop.call_later(0.015, drain.queue.put_nowait, None)
        assert [value async for value in guest.iterate(drain)] == [1, 2]


async def test_what_is_no_iterable_raises():
    async with open_guest() as guest:
        with pytest.raises((AttributeError, TypeError)):
            async for _ in guest.iterate([1]):
                pass


async def test_an_iterable_without_aclose_may_be_left_early():
    class Ones:
        def __aiter__(self):
            return self

        async def __anext__(self):
            await asyncio.sleep(0)
            return 1

    async with open_guest() as guest:
        async with aclosing(guest.iterate(Ones())) as values:
            assert await values.__anext__() == 1


async def test_iterate_refuses_asyncio_callers():
    async def program():
        with pytest.raises(RuntimeError, match="for Trio tasks"):
            await guest.iterate(Counter(asyncio.sleep)()).__anext__()

    async with open_guest() as guest:
        await guest.run(program)


def fails_to_close(sleep):
    async def generator():
        try:
            yield 1
            yield 2
        finally:
            await sleep(0)
            raise ValueError("during the close")

    return generator()


async def test_an_error_of_the_generators_close_comes_out():
    async with open_guest() as guest:
        values = guest.iterate(fails_to_close(asyncio.sleep))
        assert await values.__anext__() == 1
        with pytest.raises(ValueError, match="during the close"):
            await values.aclose()


async def test_a_generator_that_cancels_itself_raises_asyncios_cancelled_error():
    async def cancels_itself():
        yield 1
        raise asyncio.CancelledError

    async with open_guest() as guest:
        values = guest.iterate(cancels_itself())
        assert await values.__anext__() == 1
        with pytest.raises(asyncio.CancelledError):
            await values.__anext__()


async def test_two_iterations_interleave():
    async with open_guest() as guest:
        one, two = guest.iterate(Counter(asyncio.sleep)()), guest.iterate(Counter(asyncio.sleep)())
        got = [await values.__anext__() for _ in range(5) for values in (one, two)]
        assert got == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        await one.aclose()
        await two.aclose()


async def test_iterating_an_ended_guest_raises_closed():
    async with open_guest() as guest:
        pass
    with pytest.raises(trio.ClosedResourceError):
        async for _ in guest.iterate(Counter(asyncio.sleep)()):
            pass


async def test_a_guest_that_ends_during_a_step_raises_closed():
    async def stuck():
        await asyncio.sleep(3600)
        yield 1

    async def iterate():
        with pytest.raises(trio.ClosedResourceError):
            async for _ in guest.iterate(stuck()):
                pass

    async with trio.open_nursery() as nursery:
        async with open_guest() as guest:
            nursery.start_soon(iterate)
            await trio.sleep(0.01)


async def test_a_guest_that_ends_between_two_steps_raises_closed():
    count = Counter(asyncio.sleep)
    async with open_guest() as guest:
        values = guest.iterate(count())
        assert await values.__anext__() == 0
    assert count.closed_in == "asyncio"
    with pytest.raises(trio.ClosedResourceError):
        await values.__anext__()


async def test_a_guest_that_ends_before_the_iteration_is_closed_is_no_error():
    async with open_guest() as guest:
        values = guest.iterate(Counter(asyncio.sleep)())
        assert await values.__anext__() == 0
    await values.aclose()


@pytest.mark.skipif(sys.version_info < (3, 9), reason="3.8 does not wait for the executor")
async def test_a_step_asked_of_a_guest_that_is_closing_raises_closed():
    async def occupy():
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.1)

    async def stuck():
        await asyncio.sleep(3600)
        yield 1

    async def iterate():
        await trio.sleep(0.03)  # The guest waits for its executor: tasks are cancelled already.
        with pytest.raises(trio.ClosedResourceError):
            async for _ in guest.iterate(stuck()):
                pass

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            async with open_guest() as guest:
                await guest.run(occupy)
                nursery.start_soon(iterate)


async def test_a_guest_that_breaks_before_the_first_step_ends_the_iteration():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        async with open_guest() as guest:
            guest.loop.call_soon(interrupt)
            async for _ in guest.iterate(Counter(asyncio.sleep)()):
                pass


# asyncio iterates Trio's


async def iterate_trio(iterable):
    return [value async for value in current_guest().iterate_trio(iterable)]


async def test_trios_values_come_in_order():
    count = Counter(trio.sleep)
    assert await run_asyncio(iterate_trio, count()) == [0, 1, 2, 3, 4]
    assert count.closed_in == "trio"


@from_trio
async def test_each_of_trios_values_is_asked_for():
    count = Counter(trio.sleep)
    values = current_guest().iterate_trio(count())
    await asyncio.sleep(0.005)
    assert count.asked == 0
    for expected in range(3):
        assert await values.__anext__() == expected
        await asyncio.sleep(0.005)
        assert count.asked == expected + 1
    await values.aclose()


@from_trio
async def test_an_error_of_trios_generator_comes_out():
    with pytest.raises(ValueError, match="the generator's"):
        await iterate_trio(Counter(trio.sleep, 1, ValueError("the generator's"))())


@from_trio
async def test_leaving_early_closes_the_generator_in_trio():
    count = Counter(trio.sleep)
    async with aclosing(current_guest().iterate_trio(count())) as values:
        async for value in values:
            if value == 2:
                break
    assert count.closed_in == "trio"
    assert count.asked == 3


@from_trio
async def test_a_cancellation_while_waiting_reaches_trios_generator():
    record = []

    async def stuck():
        try:
            yield 1
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.005)
            record.append("cleaned up")

    task = asyncio.ensure_future(iterate_trio(stuck()))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert record == ["cleaned up"]


@from_trio
async def test_a_cancellation_while_trios_generator_closes_is_kept():
    async def slow_to_close():
        try:
            yield 1
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.02)

    async def program():
        async with aclosing(current_guest().iterate_trio(slow_to_close())) as values:
            await values.__anext__()

    task = asyncio.ensure_future(program())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@from_trio
async def test_trios_generator_may_fail_to_close():
    values = current_guest().iterate_trio(fails_to_close(trio.sleep))
    assert await values.__anext__() == 1
    with pytest.raises(ValueError, match="during the close"):
        await values.aclose()


@from_trio
async def test_trio_what_is_no_iterable_raises():
    with pytest.raises((AttributeError, TypeError)):
        await iterate_trio([1])


@from_trio
async def test_a_trio_cancel_scope_works_inside_the_generator():
    async def timed():
        with trio.CancelScope(deadline=trio.current_time() + 3600):
            yield 1
            yield 2
        with trio.move_on_after(0.01) as scope:
            await trio.sleep_forever()
        yield scope.cancelled_caught

    assert await iterate_trio(timed()) == [1, 2, True]


@from_trio
async def test_a_memory_channel_is_received_in_asyncio():
    send, receive = trio.open_memory_channel(0)

    async def produce():
        async with send:
            for value in range(20):
                await send.send(value)

    producer = asyncio.ensure_future(current_guest().run_trio(produce))
    assert await iterate_trio(receive) == list(range(20))
    await producer


@from_trio
async def test_trios_generator_runs_in_the_tasks_context():
    async def look():
        await trio.lowlevel.checkpoint()
        yield number.get()

    number.set(8)
    assert await iterate_trio(look()) == [8]


@from_trio
async def test_wait_for_times_a_step_out():
    async def stuck():
        await trio.sleep_forever()
        yield 1

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(iterate_trio(stuck()), 0.01)


async def test_cancelling_the_trio_caller_ends_the_iteration_on_both_sides():
    count = Counter(trio.sleep, stop=10**9)
    with trio.move_on_after(0.03) as scope:
        await run_asyncio(iterate_trio, count())
    assert scope.cancelled_caught
    assert count.closed_in == "trio"


async def test_an_iteration_goes_through_both_borders():
    async def doubled():
        async for value in current_guest().iterate_trio(Counter(trio.sleep)()):
            yield 2 * value

    async with open_guest() as guest:
        assert [value async for value in guest.iterate(doubled())] == [0, 2, 4, 6, 8]


async def test_a_channel_can_be_iterated_across():
    channel = Channel(3)
    for value in range(3):
        channel.send_nowait(value)
    channel.close()
    async with open_guest() as guest:
        assert [value async for value in guest.iterate(channel)] == [0, 1, 2]

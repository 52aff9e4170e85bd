"""Channel: a stream of values between the tasks of Trio and of asyncio."""

import asyncio
import math
import random

import pytest
import trio
import trio.lowlevel

from aioguest.hosts.trio import Channel, open_guest, run_asyncio

pytestmark = pytest.mark.trio


@pytest.mark.parametrize("size", [0, -1, 0.5, math.nan])
async def test_a_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match="1 or more"):
        Channel(size)


async def test_an_infinite_size_never_blocks():
    channel = Channel(math.inf)
    for value in range(1000):
        channel.send_nowait(value)
    assert channel.receive_nowait() == 0


async def test_without_waiting_it_raises_would_block():
    channel = Channel(2)
    with pytest.raises(trio.WouldBlock):
        channel.receive_nowait()
    channel.send_nowait(1)
    channel.send_nowait(2)
    with pytest.raises(trio.WouldBlock):
        channel.send_nowait(3)
    assert (channel.receive_nowait(), channel.receive_nowait()) == (1, 2)


async def produce(channel, values):
    for value in values:
        await channel.send(value)


async def collect(channel):
    return [value async for value in channel]


async def test_values_go_from_trio_to_asyncio():
    channel = Channel()

    async def produce_and_close():
        await produce(channel, range(100))
        channel.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce_and_close)
        assert await run_asyncio(collect, channel) == list(range(100))


async def test_values_go_from_asyncio_to_trio():
    channel = Channel()

    async def produce_and_close():
        await produce(channel, range(100))
        channel.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_asyncio, produce_and_close)
        assert await collect(channel) == list(range(100))


async def test_it_works_between_tasks_of_one_library():
    channel = Channel()

    async def both():
        producer = asyncio.ensure_future(produce(channel, range(5)))
        got = [await channel.receive() for _ in range(5)]
        await producer
        return got

    assert await run_asyncio(both) == [0, 1, 2, 3, 4]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce, channel, range(5))
        assert [await channel.receive() for _ in range(5)] == [0, 1, 2, 3, 4]


async def test_a_full_channel_holds_its_sender_back():
    channel = Channel(3)
    sent = []

    async def send_all():
        for value in range(6):
            await channel.send(value)
            sent.append(value)

    async with open_guest() as guest:
        task = guest.loop.create_task(send_all())
        await trio.sleep(0.01)
        assert sent == [0, 1, 2]
        assert await channel.receive() == 0
        await trio.sleep(0.01)
        assert sent == [0, 1, 2, 3]
        for expected in range(1, 6):
            assert await channel.receive() == expected
        await trio.sleep(0.01)
        assert task.done()


async def test_after_the_close_what_is_in_it_is_still_received():
    channel = Channel(2)
    await channel.send(1)
    await channel.send(2)
    channel.close()
    channel.close()  # Twice is no error.
    with pytest.raises(trio.ClosedResourceError):
        await channel.send(3)
    with pytest.raises(trio.ClosedResourceError):
        channel.send_nowait(3)
    assert await channel.receive() == 1
    assert await channel.receive() == 2
    with pytest.raises(trio.EndOfChannel):
        await channel.receive()
    with pytest.raises(trio.EndOfChannel):
        channel.receive_nowait()


async def test_a_close_wakes_the_waiting_senders_of_both_libraries():
    channel = Channel()
    channel.send_nowait(0)
    refused = []

    async def send():
        try:
            await channel.send(1)
        except trio.ClosedResourceError:
            refused.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(run_asyncio, send)
        await trio.sleep(0.01)
        channel.close()
    assert len(refused) == 2


async def test_a_close_wakes_the_waiting_receivers_of_both_libraries():
    channel = Channel()
    ended = []

    async def receive():
        with pytest.raises(trio.EndOfChannel):
            await channel.receive()
        ended.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(run_asyncio, receive)
        await trio.sleep(0.01)
        channel.close()
    assert len(ended) == 2


@pytest.mark.parametrize("library", ["trio", "asyncio"])
async def test_a_cancelled_waiter_loses_nothing(library):
    channel = Channel()

    async def cancel_a_receiver(call):
        with trio.move_on_after(0.005) as scope:
            await call(channel.receive)
        assert scope.cancelled_caught

    async def cancel_a_sender(call):
        with trio.move_on_after(0.005) as scope:
            await call(channel.send, "never")
        assert scope.cancelled_caught

    async with open_guest() as guest:

        async def in_trio(async_fn, *args):
            return await async_fn(*args)

        call = in_trio if library == "trio" else guest.run
        await cancel_a_receiver(call)
        await call(channel.send, "kept")
        await cancel_a_sender(call)
        assert await call(channel.receive) == "kept"
        with pytest.raises(trio.WouldBlock):
            channel.receive_nowait()


async def test_a_receiver_woken_and_cancelled_at_once_passes_its_turn_on():
    channel = Channel()

    async def program():
        first = asyncio.ensure_future(channel.receive())
        second = asyncio.ensure_future(channel.receive())
        await asyncio.sleep(0)
        channel.send_nowait("value")  # It wakes the first ...
        first.cancel()  # ... which will not take it.
        assert await second == "value"
        assert first.cancelled()

    await run_asyncio(program)


async def test_a_cancelled_future_is_no_waiter_any_more():
    channel = Channel()

    async def program():
        first = asyncio.ensure_future(channel.receive())
        second = asyncio.ensure_future(channel.receive())
        await asyncio.sleep(0)
        first.cancel()  # Its future is cancelled, but it did not run yet ...
        channel.send_nowait("value")  # ... so this finds it in the queue.
        assert await second == "value"

    await run_asyncio(program)


async def test_in_trio_both_operations_are_checkpoints():
    channel = Channel(2)
    for operation in (channel.send, lambda _: channel.receive()):
        with trio.CancelScope() as scope:
            scope.cancel()
            await operation(1)
        assert scope.cancelled_caught
    with pytest.raises(trio.WouldBlock):
        channel.receive_nowait()


@pytest.mark.parametrize("size", [1, 4, math.inf])
async def test_many_producers_and_consumers_of_both_libraries(size):
    channel = Channel(size)
    got = []
    producers = 6

    async def make(name):
        nonlocal producers
        for value in range(50):
            await channel.send((name, value))
        producers -= 1
        if producers == 0:
            channel.close()

    async def take():
        got.extend([value async for value in channel])

    async with open_guest() as guest:
        async with trio.open_nursery() as nursery:
            for name in range(3):
                nursery.start_soon(make, name)
                nursery.start_soon(guest.run, make, name + 3)
                nursery.start_soon(take)
                nursery.start_soon(guest.run, take)
    assert sorted(got) == [(name, value) for name in range(6) for value in range(50)]
    for name in range(6):
        assert len([value for value in got if value[0] == name]) == 50


@pytest.mark.parametrize("seed", range(6))
async def test_nothing_is_lost_or_doubled_under_random_cancellation(seed):
    dice = random.Random(seed)
    channel = Channel(dice.choice([1, 2, 5]))
    sent, received = [], []
    serial = iter(range(10**9))

    async def send_some():
        for _ in range(dice.randrange(1, 15)):
            value = next(serial)
            await channel.send(value)
            sent.append(value)  # No checkpoint between: sent if and only if noted.

    async def receive_some():
        for _ in range(dice.randrange(1, 15)):
            received.append(await channel.receive())

    async with open_guest() as guest:

        async def child(work, in_guest, patience):
            with trio.move_on_after(patience):
                await (guest.run(work) if in_guest else work())

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(
                    child,
                    dice.choice([send_some, receive_some]),
                    dice.random() < 0.5,
                    dice.choice([0, dice.random() * 0.02, dice.random() * 0.1]),
                )
                if dice.random() < 0.3:
                    await trio.lowlevel.checkpoint()
    channel.close()
    received += await collect(channel)
    assert sorted(received) == sorted(sent)
    assert len(set(received)) == len(received)
    assert sent


async def test_waiting_for_the_close_takes_nobodys_wake_up():
    channel = Channel()
    received = []

    async def receive():
        received.append(await channel.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.wait_closed)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await channel.send(1)
        await trio.testing.wait_all_tasks_blocked()
        assert received == [1]
        channel.close()
    await channel.wait_closed()

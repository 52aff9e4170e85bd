"""Contract 4: whatever makes work for a waiting guest runs it at once."""

import asyncio
import random
import socket
import threading

import pytest

FOREVER = 3600

# Ways to wake a guest that waits for `future`, from the host. Each gets the loop too.


def by_call_soon(loop, future):
    loop.call_soon(future.set_result, "awake")


def by_call_soon_threadsafe(loop, future):
    loop.call_soon_threadsafe(future.set_result, "awake")


def by_call_later(loop, future):
    loop.call_later(0.001, future.set_result, "awake")


def by_call_later_with_no_delay(loop, future):
    loop.call_later(0, future.set_result, "awake")


def by_call_at(loop, future):
    loop.call_at(loop.time() + 0.001, future.set_result, "awake")


def by_a_timer_in_the_past(loop, future):
    loop.call_at(loop.time() - 10, future.set_result, "awake")


def by_set_result(loop, future):
    future.set_result("awake")


def by_two_at_once(loop, future):
    loop.call_soon(lambda: None)
    future.set_result("awake")


def by_create_task(loop, future):
    async def task():
        await asyncio.sleep(0)
        future.set_result("awake")

    loop.create_task(task())


def by_run_coroutine_threadsafe(loop, future):
    async def coro():
        future.set_result("awake")

    asyncio.run_coroutine_threadsafe(coro(), loop)


def by_add_reader(loop, future):
    a, b = socket.socketpair()

    def readable():
        loop.remove_reader(a)
        a.close()
        b.close()
        future.set_result("awake")

    b.send(b"x")
    loop.add_reader(a, readable)


def by_add_writer(loop, future):
    a, b = socket.socketpair()

    def writable():
        loop.remove_writer(a)
        a.close()
        b.close()
        future.set_result("awake")

    loop.add_writer(a, writable)


def by_an_earlier_timer_than_one_it_cancelled(loop, future):
    loop.call_later(0.001, future.cancel).cancel()
    loop.call_later(0.002, future.set_result, "awake")


WAYS = [value for name, value in list(globals().items()) if name.startswith("by_")]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_wake_up_from_the_host_is_not_lost(kind, way):
    async def main():
        loop = asyncio.get_running_loop()
        for turns in range(3):
            future = loop.create_future()
            post = [kind.in_host] * turns  # a few host turns later
            kind.in_host(*post, way, loop, future)
            assert await future == "awake"
        return "ok"

    assert kind.run(main) == "ok"


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_wake_up_from_the_host_is_not_lost_on_a_sleeper(kind, way):
    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        sleeper = loop.create_task(asyncio.sleep(FOREVER))
        await asyncio.sleep(0.001)  # There was a wait, and a timer, before.
        kind.in_host(way, loop, future)
        assert await future == "awake"
        sleeper.cancel()
        return "ok"

    assert kind.run(main) == "ok"


def test_cancel_from_the_host_is_not_lost(kind):
    async def main():
        kind.in_host(asyncio.current_task().cancel)
        try:
            await asyncio.sleep(FOREVER)
        except asyncio.CancelledError:
            return "cancelled"

    assert kind.run(main) == "cancelled"


@pytest.mark.parametrize("name", ["call_soon", "call_at", "create_task", "stop"])
def test_a_method_looked_up_in_the_guest_wakes_it_from_the_host(queue_kind, name):
    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        async def child():
            future.set_result(None)

        arguments = {
            "call_soon": lambda: (future.set_result, None),
            "call_at": lambda: (loop.time(), future.set_result, None),
            "create_task": lambda: (child(),),
            "stop": lambda: (),
        }
        method = getattr(loop, name)  # In a tick, this is the loop's own.
        queue_kind.in_host(method, *arguments[name]())
        # Not a hang when it fails: a thread wakes the guest, late.
        timer = threading.Timer(1, lambda: (late.append(name), loop.call_soon_threadsafe(int)))
        timer.start()
        try:
            await future
        finally:
            timer.cancel()

    late = []
    if name == "stop":
        with pytest.raises(RuntimeError, match="stopped before Future completed"):
            queue_kind.run(main)
    else:
        queue_kind.run(main)
    assert late == []


def test_asyncios_own_events_and_queues_may_be_used_from_the_host(kind):
    async def main():
        event = asyncio.Event()
        kind.in_host(event.set)
        await event.wait()
        queue = asyncio.Queue()
        kind.in_host(queue.put_nowait, "item")
        return await queue.get()

    assert kind.run(main) == "item"


def test_a_later_timer_from_the_host_does_not_lose_the_earlier_one(kind):
    async def main():
        loop = asyncio.get_running_loop()
        order = []
        future = loop.create_future()
        loop.call_later(0.005, order.append, "own")

        def in_host():
            loop.call_later(0.010, lambda: (order.append("host's"), future.set_result(None)))

        kind.in_host(in_host)
        await future
        return order

    assert kind.run(main) == ["own", "host's"]


def test_an_earlier_timer_from_the_host_comes_first(kind):
    async def main():
        loop = asyncio.get_running_loop()
        order = []
        future = loop.create_future()
        own = loop.call_later(FOREVER, order.append, "own")

        def in_host():
            loop.call_later(0.002, lambda: (order.append("host's"), future.set_result(None)))

        kind.in_host(in_host)
        await future
        own.cancel()
        return order

    assert kind.run(main) == ["host's"]


def test_a_timer_cancelled_by_the_host_does_not_fire(kind):
    async def main():
        loop = asyncio.get_running_loop()
        fired = []
        kind.in_host(lambda: loop.call_later(0.001, fired.append, "cancelled").cancel())
        await asyncio.sleep(0.005)
        return fired

    assert kind.run(main) == []


def test_many_timers_fire_in_order(kind):
    async def main():
        loop = asyncio.get_running_loop()
        numbers = list(range(200))
        random.Random(1).shuffle(numbers)
        fired = []
        done = loop.create_future()
        start = loop.time() + 0.002
        for number in numbers:
            loop.call_at(start + number / 20_000, fired.append, number)
        loop.call_at(start + 0.011, done.set_result, None)
        await done
        return fired

    assert kind.run(main) == list(range(200))


def test_a_wake_up_before_the_first_tick_is_not_lost(kind):
    seen = []

    async def main():
        seen.append("main")
        await asyncio.sleep(0.001)

    def setup(api):
        task = api.start(main, done_callback=lambda _: api.finish())
        loop = task.get_loop()
        loop.call_soon(seen.append, "soon")
        loop.call_soon_threadsafe(seen.append, "threadsafe")
        loop.call_later(0, seen.append, "later")

    kind.loop(setup)
    assert sorted(seen) == ["later", "main", "soon", "threadsafe"]


def test_cancel_before_the_first_tick_is_not_lost(kind):
    async def main():
        raise AssertionError("must not run")

    def setup(api):
        def done(outcome):
            with pytest.raises(asyncio.CancelledError):
                outcome.unwrap()
            api.finish()

        api.start(main, done_callback=done).cancel()

    kind.loop(setup)


def test_a_thread_wakes_a_guest_that_waits_every_time(kind):
    """Ping-pong: each call finds the guest idle, or going to be."""
    randomly = random.Random(20240)
    delays = [randomly.random() * 300 for _ in range(600)]

    async def main():
        loop = asyncio.get_running_loop()
        acknowledged = threading.Semaphore(0)
        done = loop.create_future()
        count = 0

        def ping():
            nonlocal count
            count += 1
            acknowledged.release()

        def thread():
            for delay in delays:
                loop.call_soon_threadsafe(ping)
                if not acknowledged.acquire(timeout=20):
                    break
                for _ in range(int(delay)):  # let it get somewhat idle
                    pass
            loop.call_soon_threadsafe(done.set_result, None)

        worker = threading.Thread(target=thread)
        worker.start()
        await done
        worker.join()
        return count

    assert kind.run(main) == len(delays)


def test_threads_that_flood_the_guest_lose_nothing(kind):
    async def main():
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        counts = [0, 0]

        def count(thread, total):
            counts[thread] += 1
            if counts == [total, total]:
                done.set_result(None)

        def flood(number):
            randomly = random.Random(number)
            for _ in range(1500):
                loop.call_soon_threadsafe(count, number, 1500)
                for _ in range(randomly.randrange(200)):
                    pass

        threads = [threading.Thread(target=flood, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        await done
        for thread in threads:
            thread.join()
        return counts

    assert kind.run(main) == [1500, 1500]


@pytest.mark.parametrize("seed", [1, 2])
def test_random_work_from_the_host_loses_nothing(kind, seed):
    randomly = random.Random(seed)
    wakes = (by_call_soon, by_call_soon_threadsafe, by_set_result, by_a_timer_in_the_past)

    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(400):
            future = loop.create_future()
            if randomly.random() < 0.3:
                loop.call_later(randomly.choice((0, 0.0001, 0.001, 60)), int)
            kind.in_host(randomly.choice(wakes), loop, future)
            if randomly.random() < 0.1:
                await asyncio.sleep(randomly.choice((0, 0, 0.0002)))
            assert await future == "awake"
        return "ok"

    assert kind.run(main) == "ok"


def test_io_that_was_there_before_the_wait_is_not_missed(kind):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = socket.socketpair()
        a.setblocking(False)
        b.setblocking(False)
        try:
            for _ in range(100):
                b.send(b"x")
                assert await loop.sock_recv(a, 1) == b"x"
                kind.in_host(b.send, b"y")
                assert await loop.sock_recv(a, 1) == b"y"
        finally:
            a.close()
            b.close()
        return "ok"

    assert kind.run(main) == "ok"


def test_an_idle_guest_costs_the_host_nothing():
    """No turn of the host without a reason, whatever the wait."""
    from harness import QUEUE_KINDS

    for kind in QUEUE_KINDS:

        async def main(kind=kind):
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            threading.Timer(
                0.05, lambda: loop.call_soon_threadsafe(future.set_result, None)
            ).start()
            handle = loop.call_later(60, int)
            await asyncio.sleep(0)
            turns = kind.api.host.turns
            await future
            handle.cancel()
            return kind.api.host.turns - turns

        assert kind.run(main) <= 3

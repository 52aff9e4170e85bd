"""Contract 1, one thread, and contract 2, nothing leaks."""

import asyncio
import sys
import threading

import pytest
import sniffio
from harness import ambience, guest_threads

import aioguest


def test_guest_and_host_run_on_one_thread(kind):
    here = threading.get_ident()
    threads = []

    def in_host():
        threads.append(threading.get_ident())
        done.set()

    async def main():
        global done
        done = asyncio.Event()
        kind.in_host(in_host)
        await done.wait()
        await asyncio.sleep(0.002)
        threads.append(threading.get_ident())

    kind.run(main, done_callback=lambda _: threads.append(threading.get_ident()))
    assert threads == [here] * 3


def test_guest_code_and_host_code_never_run_at_once(kind):
    inside = []
    overlaps = []

    def in_host():
        if inside:
            overlaps.append("host inside guest")
        inside.append("host")
        inside.pop()

    async def main():
        for i in range(50):
            inside.append("guest")
            kind.in_host(in_host)
            inside.pop()
            await asyncio.sleep(0 if i % 5 else 0.001)

    kind.run(main)
    assert overlaps == []


def test_a_readiness_wait_has_no_thread_and_a_thread_wait_has_one(kind):
    async def main():
        future = asyncio.get_running_loop().create_future()
        # A few host turns later, when the guest has been idle.
        kind.in_host(kind.in_host, kind.in_host, future.set_result, None)
        await future
        return set(guest_threads()) - before

    before = set(guest_threads())
    assert len(kind.run(main)) == (0 if kind.readiness else 1)


def test_the_worker_starts_only_when_the_guest_has_to_wait(kind):
    async def main():
        for _ in range(10):
            await asyncio.sleep(0)
        return set(guest_threads()) - before

    before = set(guest_threads())
    assert kind.run(main) == set()


def test_the_ambience_is_the_guests_in_a_tick_and_the_hosts_elsewhere(kind):
    host, guest, done = [], [], []

    async def main():
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        guest.append(ambience())
        assert sniffio.current_async_library() == "asyncio"
        kind.in_host(lambda: (host.append(ambience()), event.set()))
        await event.wait()
        guest.append(ambience())
        await asyncio.sleep(0.001)
        guest.append(ambience())
        return loop

    loops = []

    def setup(api):
        host.append(ambience())

        def finish(outcome):
            done.append(ambience())
            loops.append(outcome.unwrap())
            api.finish()

        api.start(main, done_callback=finish)
        host.append(ambience())

    kind.loop(setup)
    before, started, between = host
    assert started == before
    assert done == [before]
    if not kind.is_async:
        # A host without hooks of its own gets ours, for its own generators.
        assert between.pop("asyncgen hooks") != (None, None)
        before.pop("asyncgen hooks")
    assert between == before
    for inside in guest:
        assert inside["running loop"] is loops[0]
        assert inside["sniffio"] == "asyncio"
        assert inside["asyncgen hooks"].finalizer.__self__ is loops[0]


def test_sniffios_context_variable_is_never_touched(kind):
    async def main():
        return sniffio.current_async_library_cvar.get()

    expected = []

    def setup(api):
        expected.append(sniffio.current_async_library_cvar.get())
        api.start(main, done_callback=lambda o: (expected.append(o.unwrap()), api.finish()))

    kind.loop(setup)
    assert expected[0] == expected[1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_leaks_when_the_guest_raises(kind, error):
    ambiences = []

    async def main():
        raise error("out")

    def setup(api):
        ambiences.append(ambience())

        def done(outcome):
            ambiences.append(ambience())
            with pytest.raises(error, match="out"):
                outcome.unwrap()
            api.finish()

        api.start(main, done_callback=done)

    kind.loop(setup)
    assert ambiences[0] == ambiences[1]


def test_debug_mode_tracks_the_origin_of_coroutines_in_the_guest_only(kind):
    depths = []

    async def main():
        depths.append(sys.get_coroutine_origin_tracking_depth())
        event = asyncio.Event()
        kind.in_host(
            lambda: (depths.append(sys.get_coroutine_origin_tracking_depth()), event.set())
        )
        await event.wait()
        depths.append(sys.get_coroutine_origin_tracking_depth())

    kind.run(main, debug=True)
    assert depths[0] > 0
    assert depths == [depths[0], 0, depths[0]]


def test_debug_mode_switched_on_by_the_guest_does_not_leak(kind):
    depths = []

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        await asyncio.sleep(0.001)
        depths.append(sys.get_coroutine_origin_tracking_depth())
        loop.set_debug(False)
        await asyncio.sleep(0.001)
        depths.append(sys.get_coroutine_origin_tracking_depth())
        loop.set_debug(True)

    kind.run(main)
    assert depths[0] > 0
    assert depths[1] == 0


def test_ambient_leaves_the_loop_running_in_host_time(queue_kind):
    async def child():
        return "child"

    async def main():
        event = asyncio.Event()
        tasks = []

        def slot():  # a plain slot of a GUI
            assert asyncio.get_running_loop() is loop
            assert sniffio.thread_local.name is None
            tasks.append(asyncio.create_task(child()))
            tasks[0].add_done_callback(lambda _: event.set())

        loop = asyncio.get_running_loop()
        queue_kind.in_host(slot)
        await event.wait()
        return await tasks[0]

    loops = []
    result = queue_kind.run(
        main, ambient=True, done_callback=lambda _: loops.append(asyncio._get_running_loop())
    )
    assert result == "child"
    assert loops == [None]


def test_without_ambient_host_time_has_no_running_loop(queue_kind):
    async def main():
        event = asyncio.Event()
        found = []
        queue_kind.in_host(lambda: (found.append(asyncio._get_running_loop()), event.set()))
        await event.wait()
        return found

    assert queue_kind.run(main) == [None]


def test_ambient_never_replaces_the_running_loop_of_an_asyncio_host():
    async def guest_main():
        await asyncio.sleep(0.001)

    async def host_main():
        from aioguest.hosts.asyncio import run_asyncio

        loop = asyncio.get_running_loop()
        waiting = asyncio.ensure_future(run_asyncio(guest_main, ambient=True))
        for _ in range(20):
            assert asyncio.get_running_loop() is loop
            await asyncio.sleep(0)
        await waiting
        assert asyncio.get_running_loop() is loop

    asyncio.run(host_main())


def test_ambient_guests_that_end_in_any_order_leave_nothing(queue_kind):
    async def main(delay):
        await asyncio.sleep(delay)

    def setup(api):
        ended = []

        def done(outcome):
            outcome.unwrap()
            ended.append(1)
            if len(ended) == 2:
                api.finish()

        api.start(main, 0.002, ambient=True, done_callback=done)
        api.start(main, 0.004, ambient=True, done_callback=done)

    queue_kind.loop(setup)
    assert asyncio._get_running_loop() is None


def test_done_callback_runs_in_host_time_and_may_start_the_next_guest(kind):
    names = []

    async def main(name):
        await asyncio.sleep(0)
        names.append(name)

    def setup(api):
        def again(outcome):
            outcome.unwrap()
            api.start(main, "second", done_callback=lambda outcome: api.finish())

        api.start(main, "first", done_callback=again)

    kind.loop(setup)
    assert names == ["first", "second"]


def test_statistics_refuse_a_loop_that_is_no_guest():
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(ValueError, match="not the loop of a guest"):
        aioguest.statistics(loop)

"""TrioHost: guests that wait by Trio itself, without a thread; and the thread wait in Trio."""

import asyncio
import math
import sys
import threading

import pytest
import trio
import trio.testing

import aioguest
from aioguest.hosts.asyncio import AsyncioHost
from aioguest.hosts.trio import TrioHost, open_guest, run_asyncio

aiohttp = pytest.importorskip("aiohttp")
from aiohttp import web  # noqa: E402


def system_tasks():
    """The names of the system tasks of this Trio run that aioguest started."""

    def names(task):
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                yield child.name
                yield from names(child)

    return sorted(n for n in names(trio.lowlevel.current_root_task()) if n.startswith("aioguest"))


async def settle():
    """Let the system tasks that were cancelled end."""
    for _ in range(5):
        await trio.testing.wait_all_tasks_blocked()


class Raw:
    """A raw start_guest_run() in Trio, with a wait of the test's choice."""

    def __init__(self, wait):
        self.wait = wait
        self.ended = trio.Event()

    def options(self):
        if self.wait == "readiness":
            return {"host": TrioHost()}
        if self.wait == "thread of the host":
            return {"host": WatchlessHost()}
        token = trio.lowlevel.current_trio_token()
        return {"run_sync_soon_threadsafe": token.run_sync_soon}

    def done(self, outcome):
        self.outcome = outcome
        self.ended.set()

    def start(self, async_fn, *args):
        self.main = aioguest.start_guest_run(
            async_fn, *args, done_callback=self.done, **self.options()
        )
        return self

    async def end(self):
        await self.ended.wait()
        return self.outcome.unwrap()


class WatchlessHost(TrioHost):
    """What TrioHost is on Windows."""

    def watch(self, fd, waiter):
        return None


all_waits = pytest.mark.parametrize("wait", ["readiness", "thread", "thread of the host"])


async def http_both_ways():
    """A real aiohttp server and a few requests, in one asyncio program."""

    async def answer(request):
        return web.Response(text=f"hello {request.match_info['name']}")

    app = web.Application()
    app.router.add_get("/{name}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession() as session:

            async def ask(name):
                async with session.get(f"http://127.0.0.1:{port}/{name}") as response:
                    return await response.text()

            return await asyncio.gather(*[ask(name) for name in range(20)])
    finally:
        await runner.cleanup()


def test_no_thread_is_started_through_a_whole_aiohttp_run(monkeypatch):
    started = []
    start = threading.Thread.start

    def counting_start(thread):
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", counting_start)
    before = threading.active_count()
    counts = []

    async def program():
        result = await http_both_ways()
        counts.append(threading.active_count())
        return result

    result = trio.run(run_asyncio, program)
    assert result == [f"hello {name}" for name in range(20)]
    assert counts == [before]
    assert started == []


@pytest.mark.trio
async def test_watch_and_timer_tasks_are_gone_after_the_run():
    async def program():
        await asyncio.sleep(0.001)
        return system_tasks()

    before = system_tasks()
    during = await run_asyncio(program)
    assert {"aioguest.watch", "aioguest.timer"} <= set(during)
    await settle()
    after = system_tasks()
    assert [name for name in after if name != "aioguest.post"] == before


@pytest.mark.trio
async def test_a_hundred_runs_leave_no_tasks_behind():
    await run_asyncio(asyncio.sleep, 0.001)
    await settle()
    before = trio.lowlevel.current_statistics().tasks_living
    for _ in range(100):
        await run_asyncio(asyncio.sleep, 0)
    for _ in range(5):
        await run_asyncio(asyncio.sleep, 0.001)
    await settle()
    assert trio.lowlevel.current_statistics().tasks_living <= before + 1


@pytest.mark.trio
async def test_the_timer_moves_earlier_and_later():
    order = []

    async def sleeper(name, delay):
        await asyncio.sleep(delay)
        order.append(name)

    async with open_guest() as guest:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.run, sleeper, "late", 0.09)
            await trio.sleep(0.01)
            nursery.start_soon(guest.run, sleeper, "middle", 0.05)
            await trio.sleep(0.01)
            nursery.start_soon(guest.run, sleeper, "early", 0.005)
    assert order == ["early", "middle", "late"]


@pytest.mark.trio
async def test_timers_from_the_hosts_time_wake_an_idle_guest():
    async with open_guest() as guest:
        await trio.sleep(0.01)
        fired = trio.Event()
        guest.loop.call_later(0.005, fired.set)
        with trio.fail_after(20):
            await fired.wait()


@pytest.mark.trio
async def test_a_call_from_another_thread_wakes_an_idle_guest():
    async with open_guest() as guest:
        await trio.sleep(0.01)
        called = trio.Event()
        await trio.to_thread.run_sync(guest.loop.call_soon_threadsafe, called.set)
        with trio.fail_after(20):
            await called.wait()


@pytest.mark.trio
async def test_a_guest_that_is_busy_for_many_ticks_parks_its_watch():
    async def program():
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"x\n")
        for _ in range(200):
            await asyncio.sleep(0)
        assert await reader.readline() == b"x\n"
        writer.close()
        return aioguest_statistics(loop)

    from aioguest._run import statistics as aioguest_statistics

    async def echo(stream):
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(lambda task_status: serve(echo, nursery, task_status))
        address = listeners[0].socket.getsockname()[:2]
        result = await run_asyncio(program, tick_budget=0)
        assert result.ticks > 100
        nursery.cancel_scope.cancel()


async def serve(handler, nursery, task_status):
    await trio.serve_tcp(handler, 0, host="127.0.0.1", task_status=task_status)


@pytest.mark.trio
async def test_the_watch_refuses_windows_where_trio_waits_for_sockets_only(monkeypatch):
    host = TrioHost()
    monkeypatch.setattr(sys, "platform", "win32")
    assert host.watch(0, None) is None


@pytest.mark.trio
async def test_a_watch_that_is_closed_before_it_began_touches_no_descriptor():
    for _ in range(10):
        watch = TrioHost().watch(2**20, None)  # Not an open one: Trio would choke on it.
        watch.close()
        await settle()


@all_waits
@pytest.mark.trio
async def test_a_raw_run_delivers_its_value(wait):
    assert await Raw(wait).start(http_both_ways).end() == [f"hello {n}" for n in range(20)]


@all_waits
@pytest.mark.trio
async def test_a_raw_run_delivers_its_error(wait):
    async def fail():
        await asyncio.sleep(0.001)
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        await Raw(wait).start(fail).end()


@all_waits
@pytest.mark.trio
async def test_a_raw_run_is_cancelled_by_its_main_task(wait):
    async def program():
        began.set()
        await asyncio.sleep(3600)

    began = trio.Event()
    raw = Raw(wait).start(program)
    await began.wait()
    await trio.sleep(0.005)
    raw.main.cancel()
    with pytest.raises(asyncio.CancelledError):
        await raw.end()


@all_waits
@pytest.mark.trio
async def test_no_user_code_runs_before_a_raw_run_is_started(wait):
    ran = []

    async def program():
        ran.append(True)

    raw = Raw(wait).start(program)
    assert not ran
    assert not raw.main.done()
    await raw.end()
    assert ran


@all_waits
@pytest.mark.trio
async def test_trio_sets_an_asyncio_event_of_a_raw_run(wait):
    async def program():
        program.event = asyncio.Event()
        began.set()
        await program.event.wait()
        return "woken"

    began = trio.Event()
    raw = Raw(wait).start(program)
    await began.wait()
    await trio.sleep(0.005)
    program.event.set()
    assert await raw.end() == "woken"


@all_waits
@pytest.mark.trio
async def test_several_raw_runs_at_once_and_trio_stays_live(wait):
    beats = []

    async def heart():
        while True:
            beats.append(True)
            await trio.sleep(0.001)

    async def program(name):
        for _ in range(5):
            await asyncio.sleep(0.002)
        return name

    async with trio.open_nursery() as nursery:
        nursery.start_soon(heart)
        raws = [Raw(wait).start(program, name) for name in range(5)]
        assert [await raw.end() for raw in raws] == [0, 1, 2, 3, 4]
        nursery.cancel_scope.cancel()
    assert len(beats) > 1


@all_waits
@pytest.mark.trio
async def test_readiness_and_thread_guests_ping_pong(wait):
    """A guest of one wait hands a value to one of the other, through Trio's own thread."""
    turns = []

    async def player(mine, other):
        for _ in range(20):
            turns.append(await queues[mine].get())
            queues[other].put_nowait(mine)

    queues = {}

    async def make_queue(mine, other):
        queues[mine] = asyncio.Queue()
        while other not in queues:
            await asyncio.sleep(0.001)
        await player(mine, other)

    one = Raw("readiness").start(make_queue, "one", "two")
    two = Raw(wait).start(make_queue, "two", "one")
    while len(queues) < 2:
        await trio.sleep(0.001)
    queues["one"].put_nowait("serve")
    await one.end()
    await two.end()
    assert turns[:4] == ["serve", "one", "two", "one"]
    assert len(turns) == 40


def test_a_guest_inside_trio_inside_asyncio():
    """Trio is itself a guest, in asyncio's guest mode; the guest's guest is another loop."""
    record = []

    async def program():
        await asyncio.sleep(0.005)
        record.append(asyncio.get_running_loop())
        reader, writer = await asyncio.open_connection(*program.address)
        writer.write(b"hello\n")
        answer = await reader.readline()
        writer.close()
        return answer

    async def trio_main():
        async with open_guest() as guest:
            with trio.move_on_after(0.01) as scope:
                await guest.run(asyncio.sleep, 3600)
            assert scope.cancelled_caught
        return await run_asyncio(program)

    async def echo(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async def asyncio_main():
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        program.address = server.sockets[0].getsockname()
        done = loop.create_future()
        trio.lowlevel.start_guest_run(
            trio_main,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        outcome = await done
        assert asyncio.get_running_loop() is loop
        server.close()
        await server.wait_closed()
        return outcome.unwrap()

    assert asyncio.run(asyncio_main()) == b"hello\n"
    assert len(record) == 1


def test_an_asyncio_guest_of_the_outer_loop_beside_trios_own():
    async def asyncio_main():
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        beside = loop.create_future()
        trio.lowlevel.start_guest_run(
            run_asyncio,
            asyncio.sleep,
            0.01,
            "inside Trio",
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        aioguest.start_guest_run(
            asyncio.sleep, 0.01, "beside", host=AsyncioHost(), done_callback=beside.set_result
        )
        return (await done).unwrap(), (await beside).unwrap()

    assert asyncio.run(asyncio_main()) == ("inside Trio", "beside")


@pytest.mark.trio
async def test_the_trio_host_has_no_run_of_its_own():
    with pytest.raises(NotImplementedError):
        TrioHost().run()


@pytest.mark.trio
async def test_an_idle_guest_sets_no_deadline():
    async with open_guest():
        await trio.sleep(0.01)
        await settle()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf

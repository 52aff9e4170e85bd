"""Contract 13, many guests, and contract 14, re-entrancy."""

import asyncio
import copy
import gc
import sys
import threading

import pytest
from harness import KINDS, QueueHost, guest_threads

import aioguest
from aioguest.hosts.asyncio import AsyncioHost, run_asyncio


async def echo(number):
    """Some real I/O: a server and its client."""

    async def serve(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"%d\n" % number)
        await asyncio.sleep(0.001)
        return int(await reader.readline())
    finally:
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()


def test_several_guests_on_one_host_thread(kind):
    got = []

    def setup(api):
        def done(outcome):
            got.append(outcome.unwrap())
            if len(got) == 5:
                api.finish()

        for number in range(5):
            api.start(echo, number, done_callback=done)

    kind.loop(setup)
    assert sorted(got) == list(range(5))


def test_a_guest_that_fails_does_not_touch_the_others(kind):
    got = []

    async def fails():
        await asyncio.sleep(0.001)
        raise KeyboardInterrupt

    def setup(api):
        def done(outcome):
            got.append(type(getattr(outcome, "error", None)))
            if len(got) == 3:
                api.finish()

        for program in ((echo, 1), (fails,), (echo, 2)):
            api.start(*program, done_callback=done)

    kind.loop(setup)
    assert sorted(got, key=str) == sorted([type(None), type(None), KeyboardInterrupt], key=str)


# One kind patches the stepper, which is for all threads.
@pytest.mark.parametrize("kind", [k for k in KINDS if "blocking" not in k.name], ids=str)
def test_guests_in_several_threads(kind):
    got = []

    def thread(number):
        got.append(copy.copy(kind).run(echo, number))

    threads = [threading.Thread(target=thread, args=(n,)) for n in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(got) == [0, 1, 2]


def test_guests_wake_each_other(kind):
    async def first():
        loop = asyncio.get_running_loop()
        mailbox.append((loop, loop.create_future()))
        return await mailbox[0][1]

    async def second():
        while not mailbox:
            await asyncio.sleep(0)
        _, future = mailbox[0]
        future.set_result("from the second")  # On one thread: no lock, no call_soon_threadsafe.

    mailbox = []
    got = []

    def setup(api):
        def done(outcome):
            got.append(outcome.unwrap())
            if len(got) == 2:
                api.finish()

        api.start(first, done_callback=done)
        api.start(second, done_callback=done)

    kind.loop(setup)
    assert set(got) == {None, "from the second"}


@pytest.mark.parametrize("depth", [1, 3])
def test_a_guest_within_a_guest(kind, depth):
    async def nested(depth):
        if depth == 0:
            return await echo(7)
        loop = asyncio.get_running_loop()
        value = await run_asyncio(nested, depth - 1)
        assert asyncio.get_running_loop() is loop
        return value

    assert kind.run(nested, depth) == 7


# hosts/asyncio.py

ASYNCIO_LOOPS = [asyncio.new_event_loop]
if sys.version_info < (3, 14):
    import uvloop

    ASYNCIO_LOOPS.append(uvloop.new_event_loop)


@pytest.fixture(params=ASYNCIO_LOOPS, ids=["asyncio", "uvloop"][: len(ASYNCIO_LOOPS)])
def host_run(request):
    def run(coro):
        loop = request.param()
        try:
            return loop.run_until_complete(coro)
        finally:
            loop.close()

    return run


def test_run_asyncio_inside_asyncio_has_no_thread(host_run):
    async def host_main():
        waiting = asyncio.ensure_future(run_asyncio(echo, 5))
        before = guest_threads()
        while not waiting.done():
            assert guest_threads() == before
            await asyncio.sleep(0.001)
        return await waiting

    assert host_run(host_main()) == 5


def test_run_asyncio_several_at_once(host_run):
    async def host_main():
        return await asyncio.gather(*[run_asyncio(echo(n)) for n in range(5)])

    assert host_run(host_main()) == list(range(5))


def test_run_asyncio_raises_what_the_guest_raises(host_run):
    async def fails():
        raise LookupError("guest")

    with pytest.raises(LookupError, match="guest"):
        host_run(run_asyncio(fails))


def test_cancelling_run_asyncio_cancels_the_guest_and_waits_for_it(host_run):
    log = []

    async def slow():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.001)
            log.append("cleaned up")

    async def host_main():
        task = asyncio.ensure_future(run_asyncio(slow))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        log.append("host goes on")

    host_run(host_main())
    assert log == ["cleaned up", "host goes on"]


def test_a_guest_that_ignores_its_cancellation_keeps_its_result(host_run):
    async def stubborn():
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "stubborn"

    async def host_main():
        task = asyncio.ensure_future(run_asyncio(stubborn))
        await asyncio.sleep(0.001)
        task.cancel()
        return await task

    assert host_run(host_main()) == "stubborn"


def test_run_asyncio_without_a_running_loop_closes_the_coroutine():
    for program in (echo(1), echo):
        with pytest.raises(RuntimeError, match="no running event loop"):
            run_asyncio(program).send(None)


def test_a_loop_without_readers_gets_a_worker_thread():
    class Loop(asyncio.SelectorEventLoop):
        def add_reader(self, *args):  # as the proactor's
            raise NotImplementedError

    async def guest():
        await asyncio.sleep(0.05)
        assert len(guest_threads()) == 1
        return await echo(5)

    loop = Loop()
    try:
        assert loop.run_until_complete(run_asyncio(guest)) == 5
    finally:
        loop.close()


def test_aioguest_run_runs_and_quits_an_asyncio_loop(host_run):
    loop = asyncio.new_event_loop()
    try:
        assert aioguest.run(echo, 6, host=AsyncioHost(loop)) == 6
    finally:
        loop.close()


@pytest.mark.filterwarnings("ignore:asyncio guest run got abandoned")
def test_an_asyncio_host_that_closed_its_loop_abandons_its_guest():
    async def guest():
        try:
            await asyncio.sleep(3600)
        finally:
            log.append("finally")

    async def host_main():
        host = AsyncioHost()
        aioguest.start_guest_run(guest, host=host, done_callback=log.append)
        await asyncio.sleep(0.002)

    log = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(host_main())
    loop.close()
    del loop
    gc.collect()
    run = list(aioguest._run._runs.values())
    for each in run:
        each.abandon()
    assert log == ["finally"]


# Contract 14


@pytest.mark.parametrize("budget", [0, 0.001])
def test_a_nested_host_loop_inside_a_task_pauses_the_guest(queue_kind, budget):
    """A modal dialog that a task opens. The guest has work to do, and I/O, and timers."""
    log = []

    async def ticker():
        while True:
            log.append("tick")
            await asyncio.sleep(0)

    async def main():
        host = queue_kind.api.host
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.002)  # The readiness wait has its watch, the worker runs.
        task = loop.create_task(ticker())
        await asyncio.sleep(0)
        loop.call_later(0, log.append, "timer")
        loop.call_soon_threadsafe(log.append, "threadsafe")
        del log[:]
        dialog = []
        host.todo.append(lambda: log.append("host"))
        timer = threading.Timer(0.02, lambda: (dialog.append("closed"), host.wake()))
        timer.start()
        turns = host.turns
        host.run_until(lambda: dialog)  # the dialog
        assert log == ["host"]
        assert host.turns - turns < 20  # It does not spin on the guest's descriptor.
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0.002)
        assert {"tick", "timer", "threadsafe"} <= set(log)
        task.cancel()
        timer.join()
        assert await echo(9) == 9
        return "ok"

    assert queue_kind.run(main, tick_budget=budget) == "ok"


def test_a_nested_host_loop_in_host_code_lets_the_guest_go_on(queue_kind):
    async def main():
        host = queue_kind.api.host
        loop = asyncio.get_running_loop()
        dialog = []
        opened = loop.create_future()
        returned = loop.create_future()

        def open_dialog():
            opened.set_result(None)
            host.run_until(lambda: dialog)
            returned.set_result("after the dialog")

        queue_kind.in_host(open_dialog)
        await opened
        for _ in range(5):
            await asyncio.sleep(0.001)
        assert await echo(3) == 3
        assert not returned.done()
        dialog.append("closed")
        return await returned

    assert queue_kind.run(main) == "after the dialog"


def test_a_guest_that_ends_inside_a_nested_host_loop_of_host_code(queue_kind):
    async def main():
        host = queue_kind.api.host
        queue_kind.in_host(host.run_until, lambda: ended)
        await asyncio.sleep(0.002)
        return "ok"

    ended = []
    assert queue_kind.run(main, done_callback=ended.append) == "ok"


def test_another_guest_goes_on_in_a_nested_host_loop(queue_kind):
    log = []

    async def dialog(host):
        host.run_until(lambda: "other ended" in log)
        log.append("dialog closed")

    async def other():
        await asyncio.sleep(0.002)
        log.append("other ended")

    def setup(api):
        ended = []

        def done(outcome):
            outcome.unwrap()
            ended.append(1)
            if len(ended) == 2:
                api.finish()

        api.start(other, done_callback=done)
        api.start(dialog, api.host, done_callback=done)

    queue_kind.loop(setup)
    assert log == ["other ended", "dialog closed"]


def test_a_guest_run_to_its_end_inside_a_task_of_another_one(kind):
    """A blocking program of its own in a task: the outer guest waits."""

    async def main():
        with QueueHost(watches=True) as host:
            value = aioguest.run(echo, 4, host=host)
        await asyncio.sleep(0.001)
        return value

    assert kind.run(main) == 4

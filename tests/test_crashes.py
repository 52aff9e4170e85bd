"""Errors of the loop, of the selector, of the worker and of the host: where they come out."""

import asyncio
import select
import threading
import time

import pytest
from harness import QUEUE_KINDS, QueueHost, QueueWatch

import aioguest
import aioguest._run
from aioguest.waits import thread as thread_wait


class Crash(Exception):
    """Injected."""


class CrashNow(BaseException):
    """Injected, and no Exception."""


@pytest.fixture(params=[Crash, CrashNow], ids=lambda error: error.__name__)
def error(request):
    return request.param


def fail_once(function, error):
    """`function`, which raises `error` the first time that it is called."""
    errors = [error]

    def wrapper(*args, **kwargs):
        if errors:
            raise errors.pop()
        return function(*args, **kwargs)

    return wrapper


# In the loop


def test_a_loop_that_breaks_reaches_done_callback(kind):
    """Its insides are gone altogether: nothing can be run to the end in it."""
    loops = []

    async def main():
        loop = asyncio.get_running_loop()
        loops.append(loop)
        loop.shutdown_asyncgens = int  # That would be a coroutine that nobody can await.
        loop._ready = None
        return "never seen"

    def setup(api):
        def done(outcome):
            with pytest.raises(AttributeError, match="NoneType") as info:
                outcome.unwrap()
            assert isinstance(info.value.__context__.__context__, TypeError)  # the first one
            api.finish()

        api.start(main, done_callback=done)

    kind.loop(setup)
    loops.pop()._selector.close()  # close() did not come to it.


def test_an_error_out_of_an_iteration_reaches_done_callback(kind, error):
    log = []

    async def main():
        loop = asyncio.get_running_loop()
        loop._run_once = fail_once(loop._run_once, error("iteration"))
        try:
            await asyncio.sleep(0.001)
        finally:
            log.append("finally")

    with pytest.raises(error, match="iteration"):
        kind.run(main)
    assert log == ["finally"]


def test_a_selector_that_fails_on_the_host_thread_reaches_done_callback(kind, error):
    log = []

    async def main():
        selector = asyncio.get_running_loop()._selector
        selector.select = fail_once(selector.select, error("select"))
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.001)  # The selector works again.
            log.append("cancelled")
            raise

    with pytest.raises(error, match="select"):
        kind.run(main)
    assert log == ["cancelled"]


def test_a_selector_that_somebody_replaced_is_used_and_left(kind):
    calls = []

    async def main():
        selector = asyncio.get_running_loop()._selector
        select = selector.select

        def counting(timeout):
            calls.append(timeout)
            return select(timeout)

        selector.select = counting
        await asyncio.sleep(0.002)
        return selector.select is counting

    assert kind.run(main)
    assert calls


def test_a_clock_that_fails_reaches_done_callback(kind, error):
    async def main():
        loop = asyncio.get_running_loop()
        loop.call_later(60, int)
        loop.time = fail_once(loop.time, error("clock"))
        await loop.create_future()

    with pytest.raises(error, match="clock"):
        kind.run(main)


def test_closing_that_fails_reaches_done_callback(kind, error):
    async def main():
        loop = asyncio.get_running_loop()
        close = loop.close

        def broken():
            close()
            raise error("close")

        loop.close = broken
        await asyncio.sleep(0.001)

    with pytest.raises(error, match="close"):
        kind.run(main)


def test_an_earlier_failure_is_the_context_of_a_later_one(kind):
    async def main():
        loop = asyncio.get_running_loop()
        close = loop.close

        def broken():
            close()
            raise Crash("close")

        loop.close = broken
        raise LookupError("main")

    with pytest.raises(Crash, match="close") as info:
        kind.run(main)
    assert isinstance(info.value.__context__, LookupError)


def test_a_shutdown_that_cannot_begin_reaches_done_callback(kind, error):
    def broken():
        raise error("no shutdown")

    async def main():
        asyncio.get_running_loop().shutdown_asyncgens = broken

    with pytest.raises(error, match="no shutdown"):
        kind.run(main)


def test_a_shutdown_that_fails_reaches_done_callback(kind, error):
    async def broken():
        await asyncio.sleep(0)
        raise error("shutdown")

    async def main():
        asyncio.get_running_loop().shutdown_asyncgens = broken
        return "lost"

    with pytest.raises(error, match="shutdown"):
        kind.run(main)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_out_of_a_shutdown_reaches_done_callback(kind, error):
    async def broken():
        raise error("shutdown")

    async def main():
        asyncio.get_running_loop().shutdown_asyncgens = broken

    with pytest.raises(error, match="shutdown"):
        kind.run(main)


# In the worker

SLEEPERS = {"queue+thread": "_NestedEpoll", "queue+blocking-thread": "_Blocking"}
THREAD_KINDS = [kind for kind in QUEUE_KINDS if kind.name in SLEEPERS]


@pytest.fixture(params=THREAD_KINDS, ids=str)
def thread_kind(request):
    return request.param


def sleeper_of(kind):
    return getattr(thread_wait, SLEEPERS[kind.name])


def test_a_worker_that_fails_reaches_done_callback(thread_kind, monkeypatch, error):
    """And the next wait starts a new worker."""
    cls = sleeper_of(thread_kind)
    monkeypatch.setattr(cls, "sleep", fail_once(cls.sleep, error("worker")))
    log = []

    async def main():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.002)
            log.append("waited again")

    with pytest.raises(error, match="worker"):
        thread_kind.run(main)
    assert log == ["waited again"]


def test_a_worker_that_fails_without_a_ticket_is_replaced(thread_kind, monkeypatch):
    """It fails while the guest is on its way to work from the host."""
    cls = sleeper_of(thread_kind)
    sleeping, fail = threading.Event(), threading.Event()

    def sleep(self, timeout):
        sleeping.set()
        fail.wait(20)
        raise Crash("nobody asked")

    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def in_host():
            sleeping.wait(20)
            loop.call_soon(int)  # takes the ticket back
            fail.set()
            while not worker_failed():
                time.sleep(0.001)
            monkeypatch.undo()
            future.set_result("ok")

        def worker_failed():
            (run,) = aioguest._run._runs.values()
            return run._wait._worker.error is not None

        # A few host turns later: the worker has been started.
        thread_kind.in_host(thread_kind.in_host, thread_kind.in_host, in_host)
        result = await future
        await asyncio.sleep(0.002)
        return result

    monkeypatch.setattr(cls, "sleep", sleep)
    if thread_kind.blocking:  # The harness's patch would be undone with it.
        monkeypatch.undo()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cls, "sleep", sleep)
            monkeypatch = patch
            assert thread_kind.run(main) == "ok"
    else:
        assert thread_kind.run(main) == "ok"


def test_a_worker_that_cannot_start_reaches_done_callback(thread_kind, monkeypatch, error):
    monkeypatch.setattr(
        threading.Thread, "start", fail_once(threading.Thread.start, error("no thread"))
    )

    async def main():
        await asyncio.sleep(0.05)

    with pytest.raises(error, match="no thread"):
        thread_kind.run(main)


def test_an_epoll_that_cannot_be_made_reaches_done_callback(monkeypatch, error):
    async def main():
        monkeypatch.setattr(select, "epoll", fail_once(select.epoll, error("no epoll")))
        await asyncio.sleep(0.05)

    with pytest.raises(error, match="no epoll"):
        THREAD_KINDS[0].run(main)


@pytest.mark.parametrize("method", ["arm", "poke"])
def test_a_sleeper_that_fails_reaches_done_callback(thread_kind, monkeypatch, error, method):
    cls = sleeper_of(thread_kind)

    async def main():
        loop = asyncio.get_running_loop()
        handles = [loop.call_later(3600, int)]
        future = loop.create_future()

        def in_host():  # The worker sleeps, for long.
            (run,) = aioguest._run._runs.values()
            while run._wait._worker.sleeps_until < 0:
                time.sleep(0.001)
            monkeypatch.setattr(cls, method, fail_once(getattr(cls, method), error(method)))
            handles.append(loop.call_later(60, future.set_result, None))

        thread_kind.in_host(thread_kind.in_host, thread_kind.in_host, in_host)
        try:
            await future
        finally:
            for each in handles:
                each.cancel()

    with pytest.raises(error, match=method):
        thread_kind.run(main)


# In the host's callbacks


class CrashHost(QueueHost):
    """Fails in one of its methods, or those of its watch, once."""

    def __init__(self, method, error):
        super().__init__(watches=True)
        self.method = method
        self.error = error

    def watch(self, fd, waiter):
        if self.method == "watch":
            self.method = None
            raise self.error
        watch = QueueWatch(self, fd, waiter)
        if self.method in ("arm", "set_timer"):
            setattr(watch, self.method, fail_once(getattr(watch, self.method), self.error))
        elif self.method == "close":

            def close():
                QueueWatch.close(watch)
                raise self.error

            watch.close = close
        return watch


@pytest.mark.parametrize("method", ["watch", "arm", "set_timer", "close"])
def test_a_host_whose_watch_fails_is_told_by_done_callback(method, error):
    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        handle = loop.call_later(3600, int)
        host.todo.append(lambda: host.todo.append(lambda: host.todo.append(wake)))

        def wake():  # The guest has been idle.
            if not future.done():
                future.set_result(None)

        try:
            await future
        finally:
            handle.cancel()

    outcomes = []
    with CrashHost(method, error(method)) as host:
        aioguest.start_guest_run(main, host=host, done_callback=outcomes.append)
        host.run_until(lambda: outcomes)
        assert host.open_watches == []
    with pytest.raises(error, match=method):
        outcomes[0].unwrap()


def test_a_host_that_cannot_watch_any_more_is_told_by_done_callback():
    async def main():
        await asyncio.sleep(0.001)
        host.watches = False
        host.run_until_readable()
        await asyncio.sleep(0.001)

    class Host(QueueHost):
        def run_until_readable(self):
            # A nested host loop that has the watch closed: the next wait opens another.
            asyncio.get_running_loop()._write_to_self()
            self.run_until(lambda: not self.open_watches)

    outcomes = []
    with Host(watches=True) as host:
        aioguest.start_guest_run(main, host=host, done_callback=outcomes.append)
        host.run_until(lambda: outcomes)
    with pytest.raises(RuntimeError, match=r"watch\(\) returned None for a descriptor it watched"):
        outcomes[0].unwrap()


def test_a_done_callback_that_fails_fails_in_the_host_and_leaves_nothing(queue_kind, error):
    async def main():
        await asyncio.sleep(0.001)

    def done(outcome):
        raise error("done_callback")

    with QueueHost(queue_kind.readiness) as host:
        aioguest.start_guest_run(main, host=host, done_callback=done)
        with pytest.raises(error, match="done_callback"):
            host.run()
        host.check()

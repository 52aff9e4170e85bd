"""Hosts to test guests in, and what the tests share.

A *kind* is a host together with a wait. ``kind.run(async_fn, *args, **options)`` runs one
guest to its end; ``kind.in_host(fn)`` calls `fn` in the host's time; ``kind.loop(setup)`` is
the host loop alone, for the tests that start their guests themselves.
"""

import asyncio
import collections
import contextlib
import importlib.util
import os
import select
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import sniffio
import trio

import aioguest
from aioguest.hosts.asyncio import AsyncioHost
from aioguest.hosts.trio import TrioHost
from aioguest.loops.stdlib import StdlibStepper

WATCHDOG = 30  # seconds until a host loop whose guest hangs fails its test


class QueueHost(aioguest.Host):
    """A strict little host: a queue, and for the readiness wait a poll() and timers.

    It fails the test when a post function is called from a thread it is not made for, when
    a watch is misused, and when the guest does not end.
    """

    def __init__(self, watches=False):
        self.watches = watches
        self.thread = threading.get_ident()
        self.todo = collections.deque()
        self.open_watches = []
        self.failures = []
        self.turns = 0
        self.posts = collections.Counter()
        self._receive, self._send = socket.socketpair()
        self._receive.setblocking(False)
        self._send.setblocking(False)
        self._quit = False

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._receive.close()
        self._send.close()
        if exc[0] is None:
            self.check()

    def check(self):
        assert self.failures == []

    def run_sync_soon_threadsafe(self, fn):
        if threading.get_ident() == self.thread:
            self.failures.append("the threadsafe post function, from the host's own thread")
        self.posts["threadsafe"] += 1
        self.todo.append(fn)
        self.wake()

    def run_sync_soon_not_threadsafe(self, fn):
        if threading.get_ident() != self.thread:
            self.failures.append(
                f"the not-threadsafe post function, from {threading.current_thread().name}"
            )
        self.posts["not threadsafe"] += 1
        self.todo.append(fn)

    def watch(self, fd, waiter):
        if not self.watches:
            return None
        return QueueWatch(self, fd, waiter)

    def wake(self):
        with contextlib.suppress(BlockingIOError):
            self._send.send(b"\0")

    def turn(self, block=True):
        """Poll, then the timers, then what was posted before."""
        self.turns += 1
        poller = select.poll()
        poller.register(self._receive, select.POLLIN)
        timeout = WATCHDOG if block and not self.todo else 0
        for watch in self.open_watches:
            poller.register(watch.fd, select.POLLIN)
            timeout = min(timeout, max(0, watch.deadline - time.monotonic()))
        ready = {fd for fd, _ in poller.poll(timeout * 1000 + 1 if timeout else 0)}
        if self._receive.fileno() in ready:
            self._receive.recv(4096)
        for watch in list(self.open_watches):
            if watch.fd in ready and watch in self.open_watches:
                watch.waiter.on_readable()
            if watch.deadline <= time.monotonic() and watch in self.open_watches:
                watch.deadline = float("inf")
                watch.waiter.on_timer()
        for _ in range(len(self.todo)):
            if self.todo:
                self.todo.popleft()()

    def run_until(self, condition):
        """The host's loop; a second one inside a callback is a modal dialog."""
        stop_at = time.monotonic() + WATCHDOG
        while not condition():
            self.turn()
            if time.monotonic() > stop_at:
                pytest.fail("the host's watchdog: the guest did not end")

    def run(self):
        self.run_until(lambda: self._quit)
        self._quit = False

    def quit(self):
        self._quit = True
        self.wake()

    def end(self):
        """The host loop ends, as one that tells its watches so."""
        for watch in list(self.open_watches):
            watch.waiter.on_host_end()


class QueueWatch(aioguest.Watch):
    def __init__(self, host, fd, waiter):
        assert threading.get_ident() == host.thread
        self.host = host
        self.fd = fd
        self.waiter = waiter
        self.deadline = float("inf")
        host.open_watches.append(self)

    def set_timer(self, delay):
        assert self in self.host.open_watches
        assert delay >= 0
        self.deadline = time.monotonic() + delay

    def close(self):
        os.fstat(self.fd)  # fails if the descriptor was closed before its watch
        self.host.open_watches.remove(self)


class HostApi:
    """What a test gets of a host loop that runs."""

    def __init__(self, options, post, finish, host=None):
        self.options = options
        self.finish = finish
        self.host = host
        self._post = post
        self.errors = []

    def post(self, fn, *args):
        """Have `fn` called in the host's time. On the host's thread."""

        def call():
            try:
                fn(*args)
            except BaseException as exc:
                self.errors.append(exc)
                self.finish()

        self._post(call)

    def start(self, async_fn, *args, **options):
        return aioguest.start_guest_run(async_fn, *args, **{**self.options, **options})


class Kind:
    name = ""
    readiness = False
    is_async = False  # The host itself is an async library.

    def __init__(self):
        self.api = None

    def __repr__(self):
        return self.name

    def loop(self, setup):
        """Run a host loop; `setup(api)` is called in it; it ends with ``api.finish()``."""
        try:
            self._loop(setup)
        finally:
            api, self.api = self.api, None
        if api.errors:
            raise api.errors[0]

    def run(self, async_fn, *args, **options):
        outcomes = []
        user_done = options.pop("done_callback", lambda outcome: None)

        def setup(api):
            def done(outcome):
                outcomes.append(outcome)
                api.finish()
                user_done(outcome)

            api.start(async_fn, *args, done_callback=done, **options)

        self.loop(setup)
        assert len(outcomes) == 1
        return outcomes.pop().unwrap()

    def in_host(self, fn, *args):
        self.api.post(fn, *args)


class QueueKind(Kind):
    def __init__(self, name, readiness=False, blocking=False):
        super().__init__()
        self.name = name
        self.readiness = readiness
        self.blocking = blocking

    def _loop(self, setup):
        with contextlib.ExitStack() as stack:
            if self.blocking:
                patch = stack.enter_context(pytest.MonkeyPatch.context())
                patch.setattr(StdlibStepper, "fileno", lambda self: None)
            host = stack.enter_context(QueueHost(watches=self.readiness))

            def post(fn):
                host.todo.append(fn)
                host.wake()

            self.api = HostApi({"host": host}, post, host.quit, host)
            setup(self.api)
            host.run()
            assert host.open_watches == []


class TrioKind(Kind):
    is_async = True

    def __init__(self, name, readiness):
        super().__init__()
        self.name = name
        self.readiness = readiness

    def _loop(self, setup):
        async def main():
            token = trio.lowlevel.current_trio_token()
            finished = trio.Event()
            if self.readiness:
                options = {"host": TrioHost()}
            else:
                options = {"run_sync_soon_threadsafe": token.run_sync_soon}
            self.api = HostApi(options, token.run_sync_soon, finished.set)
            with trio.fail_after(WATCHDOG):
                setup(self.api)
                await finished.wait()

        trio.run(main)


class AsyncioKind(Kind):
    is_async = True

    def __init__(self, name, readiness, new_loop=asyncio.new_event_loop):
        super().__init__()
        self.name = name
        self.readiness = readiness
        self.new_loop = new_loop

    def _loop(self, setup):
        async def main():
            loop = asyncio.get_running_loop()
            finished = loop.create_future()
            if self.readiness:
                options = {"host": AsyncioHost()}
            else:
                options = {
                    "run_sync_soon_threadsafe": loop.call_soon_threadsafe,
                    "run_sync_soon_not_threadsafe": loop.call_soon,
                }

            def finish():
                if not finished.done():
                    loop.call_soon(finished.set_result, None)

            self.api = HostApi(options, loop.call_soon, finish)
            setup(self.api)
            await asyncio.wait_for(asyncio.shield(finished), WATCHDOG)

        loop = self.new_loop()
        try:
            loop.run_until_complete(main())
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


def make_kinds():
    kinds = [
        QueueKind("queue+thread"),
        QueueKind("queue+blocking-thread", blocking=True),
        QueueKind("queue+readiness", readiness=True),
        TrioKind("trio+thread", readiness=False),
        TrioKind("trio+readiness", readiness=True),
        AsyncioKind("asyncio+thread", readiness=False),
        AsyncioKind("asyncio+readiness", readiness=True),
    ]
    if importlib.util.find_spec("uvloop"):  # Not every Python has a wheel of it.
        import uvloop

        uvloop.new_event_loop().close()  # libuv opens descriptors of its own, once.
        kinds.append(AsyncioKind("uvloop+readiness", True, uvloop.new_event_loop))
    return kinds


KINDS = make_kinds()
QUEUE_KINDS = [kind for kind in KINDS if isinstance(kind, QueueKind)]


def take_finalizer_back():
    """A run that another thread had to end leaves its hook until this thread's next run ends."""
    with QueueHost(watches=True) as host:
        aioguest.run(asyncio.sleep, 0, host=host)


def ambience():
    """What must not leak between guest and host."""
    return {
        "running loop": asyncio._get_running_loop(),
        "sniffio": sniffio.thread_local.name,
        "asyncgen hooks": sys.get_asyncgen_hooks(),
        "origin tracking": sys.get_coroutine_origin_tracking_depth(),
    }


def open_descriptors():
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def guest_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("aioguest")]


def run_script(source, *args, timeout=20):
    """Run a Python program of its own. Returns the CompletedProcess, with text."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    env = {**os.environ, "PYTHONPATH": root}
    source = textwrap.dedent(source)
    if "coverage" in sys.modules and sys.modules["coverage"].Coverage.current() is not None:
        env["COVERAGE_PROCESS_START"] = os.path.join(root, "pyproject.toml")
        source = "import coverage; coverage.process_startup()\n" + source
    return subprocess.run(
        [sys.executable, "-c", source, *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
    )

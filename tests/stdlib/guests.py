"""Runs modules of ``test.test_asyncio`` with every loop driven as a guest, in one process.

    python guests.py HOST WAIT MODULE [MODULE...]      HOST: plain, queue, trio or asyncio

Prints one JSON object: {test id: outcome}. ``plain`` changes nothing: the measure.
"""

import asyncio
import collections
import json
import os
import select
import sys
import time
import unittest
import warnings


def guest_host(name, wait):
    """A function that makes the host of one run."""
    import aioguest
    from aioguest.hosts.asyncio import AsyncioHost

    class NoWatch:
        def watch(self, fd, waiter):
            return None

    class QueueHost(aioguest.Host):
        """A host with a poll() of its own."""

        def __init__(self):
            self.todo = collections.deque()
            self.pipe = os.pipe()
            os.set_blocking(self.pipe[0], False)
            os.set_blocking(self.pipe[1], False)
            self.watched = None
            self.going = True

        def run_sync_soon_threadsafe(self, fn):
            self.todo.append(fn)
            try:
                os.write(self.pipe[1], b"x")
            except BlockingIOError:
                pass

        def run_sync_soon_not_threadsafe(self, fn):
            self.todo.append(fn)

        def watch(self, fd, waiter):
            self.watched = QueueWatch(self, fd, waiter)
            return self.watched

        def run(self):
            try:
                while self.going:
                    self.turn()
            finally:
                os.close(self.pipe[0])
                os.close(self.pipe[1])

        def turn(self):
            poll = select.poll()
            poll.register(self.pipe[0], select.POLLIN)
            watch, timeout = self.watched, None
            if watch is not None:
                poll.register(watch.fd, select.POLLIN)
                if watch.at is not None:
                    timeout = max(0.0, watch.at - time.monotonic()) * 1000 + 0.99
            ready = [fd for fd, _ in poll.poll(0 if self.todo else timeout)]
            if self.pipe[0] in ready:
                os.read(self.pipe[0], 65536)
            if watch is not None and watch.fd in ready:
                watch.waiter.on_readable()
            if watch is not None and watch is self.watched:
                due = watch.at
                if due is not None and due <= time.monotonic():
                    watch.at = None
                    watch.waiter.on_timer()
            for _ in range(len(self.todo)):
                self.todo.popleft()()

        def quit(self):
            self.going = False

    class QueueWatch(aioguest.Watch):
        def __init__(self, host, fd, waiter):
            self.host, self.fd, self.waiter, self.at = host, fd, waiter, None

        def set_timer(self, delay):
            self.at = time.monotonic() + delay

        def close(self):
            self.host.watched = None

    class HostLoop(asyncio.SelectorEventLoop):
        run_forever = asyncio.SelectorEventLoop.run_forever  # before it is patched

    class OwnedAsyncioHost(AsyncioHost):
        def __init__(self):
            super().__init__(HostLoop())

        def run(self):
            try:
                super().run()
            finally:
                self.loop.close()

    class OwnedTrioHost(aioguest.Host):
        """Starts a Trio run, and hosts in it."""

        def __init__(self):
            self.before = []
            self.host = None

        def run_sync_soon_threadsafe(self, fn):
            (self.before.append if self.host is None else self.host.run_sync_soon_threadsafe)(fn)

        def run_sync_soon_not_threadsafe(self, fn):
            if self.host is None:
                self.before.append(fn)
            else:
                self.host.run_sync_soon_not_threadsafe(fn)

        def watch(self, fd, waiter):
            return self.host.watch(fd, waiter)

        def run(self):
            import trio

            trio.run(self.main)

        async def main(self):
            import trio

            from aioguest.hosts.trio import TrioHost

            self.over = trio.Event()
            self.host = TrioHost()
            for fn in self.before:
                self.host.run_sync_soon_not_threadsafe(fn)
            await self.over.wait()

        def quit(self):
            self.over.set()

    base = {"queue": QueueHost, "asyncio": OwnedAsyncioHost, "trio": OwnedTrioHost}[name]
    if wait == "thread":
        return type(base.__name__, (NoWatch, base), {})
    return base


def drive_all_loops_as_guests(name, wait):
    from asyncio import unix_events

    from aioguest import _owner

    new_host = guest_host(name, wait)

    plain = unix_events._UnixSelectorEventLoop.run_forever

    def run_forever(self):
        if hasattr(self._selector, "fileno"):
            _owner.run_forever(self, new_host, 0.001, False)
        else:  # the tests with select() and poll(), which no guest can have
            plain(self)

    unix_events._UnixSelectorEventLoop.run_forever = run_forever


class Outcomes(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.outcomes = {}
        self.details = {}

    def _note(self, test, outcome, detail=""):
        # A test with failing subtests counts once, as failed.
        if self.outcomes.get(test.id()) not in ("failed", "error"):
            self.outcomes[test.id()] = outcome
            if detail:
                self.details[test.id()] = detail

    def addSuccess(self, test):
        self._note(test, "ok")

    def addError(self, test, err):
        self._note(test, "error", self._exc_info_to_string(err, test))

    def addFailure(self, test, err):
        self._note(test, "failed", self._exc_info_to_string(err, test))

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self._note(test, "failed", self._exc_info_to_string(err, test))

    def addSkip(self, test, reason):
        self._note(test, "skipped")

    def addExpectedFailure(self, test, err):
        self._note(test, "ok")

    def addUnexpectedSuccess(self, test):
        self._note(test, "failed")

    def startTest(self, test):
        super().startTest(test)
        print(test.id(), file=sys.stderr, flush=True)


def main():
    name, wait, *modules = sys.argv[1:]
    warnings.simplefilter("ignore")
    if name != "plain":
        drive_all_loops_as_guests(name, wait)
    result = Outcomes()
    for module in modules:
        suite = unittest.defaultTestLoader.loadTestsFromName("test.test_asyncio." + module)
        suite.run(result)
    with open(os.environ["AIOGUEST_STDLIB_OUT"], "w") as file:
        json.dump({"outcomes": result.outcomes, "details": result.details}, file)
    sys.stdout.flush()
    os._exit(0)  # whatever the tests left behind


if __name__ == "__main__":
    main()

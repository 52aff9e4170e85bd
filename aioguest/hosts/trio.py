"""Trio as the host.

    from aioguest.hosts.trio import open_guest, run_asyncio

    async def main():
        page = await run_asyncio(fetch_with_aiohttp, url)      # one asyncio program

        async with open_guest() as guest:                      # or one that stays
            session = await guest.run(open_session)
            page = await guest.run(session.get, url)

Guests wait by ``trio.lowlevel.wait_readable()`` on their loop's descriptor: no thread is
involved. (With ``start_guest_run(run_sync_soon_threadsafe=token.run_sync_soon)``, a worker
thread would be.)
"""

from __future__ import annotations

import asyncio
import collections
import math
import sys
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Callable, Deque, Optional, TypeVar

import trio

from .._host import Host, Waiter, Watch
from .._run import AsyncFn
from ._trio_channel import Channel
from ._trio_guest import Guest, current_guest, trio_runs_here

T = TypeVar("T")

__all__ = ["Channel", "Guest", "TrioHost", "current_guest", "open_guest", "run_asyncio"]


class _Poster:
    """Calls functions soon: a system task, one for each Trio run.

    The Trio token's queue would do, but it wakes Trio by a socket each time. When Trio ends
    its system tasks, the token takes over, to the very end.
    """

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._todo: Deque[Callable[[], Any]] = collections.deque()
        self._parked = False
        self._ended = False
        self._task = trio.lowlevel.spawn_system_task(self._work, name="aioguest.post")

    def post(self, fn: Callable[[], Any]) -> None:
        if self._ended:
            self._token.run_sync_soon(fn)
            return
        self._todo.append(fn)
        if self._parked:
            self._parked = False
            trio.lowlevel.reschedule(self._task)

    async def _work(self) -> None:
        todo = self._todo

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._parked = False
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            while True:
                for _ in range(len(todo)):
                    todo.popleft()()
                if todo:
                    await trio.lowlevel.checkpoint()
                else:
                    self._parked = True
                    await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            self._ended = True
            while todo:
                self.post(todo.popleft())


_poster: trio.lowlevel.RunVar[_Poster] = trio.lowlevel.RunVar("aioguest.poster")


class TrioHost(Host):
    """Host guests in the Trio run of the calling thread.

    When Trio ends, a guest that still runs is abandoned. (Not those of
    :func:`run_asyncio` and :func:`open_guest`: Trio waits for them.)
    """

    _shield = False

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        try:
            poster = _poster.get()
        except LookupError:
            poster = _Poster()
            _poster.set(poster)
        self._poster = poster

    def run_sync_soon_threadsafe(self, fn: Callable[[], Any]) -> Any:
        self._token.run_sync_soon(fn)

    def run_sync_soon_not_threadsafe(self, fn: Callable[[], Any]) -> Any:
        self._poster.post(fn)

    def watch(self, fd: int, waiter: Waiter) -> Optional[Watch]:
        if sys.platform == "win32":
            return None  # Trio waits there for sockets only.
        return _TrioWatch(fd, waiter, self._shield)


class _AwaitedTrioHost(TrioHost):
    """For guests that a Trio task waits for: their watches outlive Trio's system tasks.

    Trio cancels that task, which cancels the guest; and the guest can end in its own order.
    """

    _shield = True


class _TrioWatch(Watch):
    """Two system tasks: one waits for the descriptor, one (when needed) for the timer.

    They are two so that a round trip of I/O opens no cancel scope and moves no deadline.
    """

    def __init__(self, fd: int, waiter: Waiter, shield: bool) -> None:
        self._fd = fd
        self._waiter = waiter
        self._shield = shield
        self._closed = False
        self._armed = True
        self._parked = False
        self._reading = trio.CancelScope(shield=shield)
        self._timing: Optional[trio.CancelScope] = None
        self._deadline = math.inf
        self._reader = trio.lowlevel.spawn_system_task(self._read, name="aioguest.watch")

    def arm(self) -> None:
        self._armed = True
        if self._parked:
            self._parked = False
            trio.lowlevel.reschedule(self._reader)

    async def _read(self) -> None:
        waiter, fd = self._waiter, self._fd
        wait_readable = trio.lowlevel.wait_readable

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._parked = False
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            with self._reading:
                # Closed before it first came here, say. Trio would choke on a dead descriptor.
                while not self._closed:
                    await wait_readable(fd)
                    self._armed = False
                    waiter.on_readable()
                    if not self._armed:  # The guest is busy for longer than one tick.
                        self._parked = True
                        await trio.lowlevel.wait_task_rescheduled(abort)
        except RuntimeError:  # pragma: no cover  # seen only while the interpreter exits
            if trio_runs_here():
                raise
            # Trio has crashed, and the collector closes this coroutine: no scope can end.
        finally:
            if not self._closed:
                waiter.on_host_end()  # Trio cancels its system tasks when main has ended.

    async def _time(self) -> None:
        while not self._closed:
            with trio.CancelScope(deadline=self._deadline, shield=self._shield) as self._timing:
                await trio.sleep_forever()
            if not self._closed and trio.current_time() >= self._deadline:
                self._deadline = math.inf
                self._waiter.on_timer()

    def set_timer(self, delay: float) -> None:
        self._deadline = trio.current_time() + delay
        if self._timing is None:
            self._timing = trio.CancelScope()
            trio.lowlevel.spawn_system_task(self._time, name="aioguest.timer")
        else:
            self._timing.deadline = self._deadline

    def close(self) -> None:
        self._closed = True
        self._reading.cancel()
        if self._timing is not None:
            self._timing.cancel()


async def run_asyncio(coro: AsyncFn[T], *args: Any, **options: Any) -> T:
    """Run an asyncio program to its end inside this Trio task: ``asyncio.run()`` as a guest.

    If Trio cancels the caller (a deadline, say), the program's main task is cancelled and
    the program ends in its own order; then Trio's ``Cancelled`` comes out. A main task that
    returns or raises something else in spite of it hands that out, and an
    ``asyncio.CancelledError`` for which Trio did not ask comes out as it is.

    Args:
        coro: a coroutine, or an async function to be called with `args`.
        options: ``debug``, ``loop_factory``, ``task_factory``, ``context``,
            ``tick_budget``: see :func:`aioguest.start_guest_run`.

    Returns:
        What the coroutine returns; what it raises is raised, with its traceback.

    Example::

        page = await run_asyncio(fetch_with_aiohttp, "http://localhost:8080/")
    """
    raise_cancel: Any = None
    guest = Guest()
    main = guest._start(_AwaitedTrioHost, coro, args, options)
    caller = trio.lowlevel.current_task()
    guest._on_end = lambda: trio.lowlevel.reschedule(caller)

    def abort(raise_it: Any) -> trio.lowlevel.Abort:
        nonlocal raise_cancel
        raise_cancel = raise_it
        main.cancel()
        return trio.lowlevel.Abort.FAILED

    await trio.lowlevel.wait_task_rescheduled(abort)
    assert guest.outcome is not None
    if raise_cancel is not None and isinstance(
        getattr(guest.outcome, "error", None), asyncio.CancelledError
    ):
        raise_cancel()
    value: T = guest.outcome.unwrap()
    return value


@asynccontextmanager
async def open_guest(**options: Any) -> AsyncIterator[Guest]:
    """A long-lived asyncio loop inside Trio: ``async with open_guest() as guest``.

    At the end of the block the guest ends as ``asyncio.run()`` would: what still runs in
    it is cancelled and awaited. If the guest breaks before (a KeyboardInterrupt or
    SystemExit out of a callback, an error of its selector), the block is cancelled and the
    error comes out.

    Args:
        options: as for :func:`run_asyncio`.
    """
    guest = Guest()
    guest._start(_AwaitedTrioHost, guest._serve, (), options)
    with trio.CancelScope() as scope:
        guest._on_end = scope.cancel
        try:
            yield guest
        finally:
            await guest._close()
            assert guest.outcome is not None
            guest.outcome.unwrap()

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
import contextvars
import math
import sys
from contextlib import asynccontextmanager
from typing import (
    Any,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Deque,
    Dict,
    Generic,
    Optional,
    TypeVar,
)

import outcome
import sniffio
import trio

from .._host import Host, Waiter, Watch
from .._run import AsyncFn, start_guest_run

T = TypeVar("T")

__all__ = ["Channel", "Guest", "TrioHost", "current_guest", "open_guest", "run_asyncio"]


class TrioHost(Host):
    """Host guests in the Trio run of the calling thread."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()

    def run_sync_soon_threadsafe(self, fn: Callable[[], Any]) -> Any:
        self._token.run_sync_soon(fn)

    def watch(self, fd: int, waiter: Waiter) -> Optional[Watch]:
        if sys.platform == "win32":
            return None  # There a proactor loop has no descriptor, and a selector loop no way.
        return _TrioWatch(fd, waiter)


class _TrioWatch(Watch):
    """Two system tasks: one waits for the descriptor, one (when needed) for the timer.

    They are two so that a round trip of I/O opens no cancel scope and moves no deadline.
    """

    def __init__(self, fd: int, waiter: Waiter) -> None:
        self._fd = fd
        self._waiter = waiter
        self._closed = False
        self._reading = trio.CancelScope()
        self._timing: Optional[trio.CancelScope] = None
        self._deadline = math.inf
        trio.lowlevel.spawn_system_task(self._read, name="aioguest.watch")

    async def _read(self) -> None:
        waiter, fd = self._waiter, self._fd
        wait_readable = trio.lowlevel.wait_readable
        try:
            with self._reading:
                while not self._closed:
                    await wait_readable(fd)
                    waiter.on_readable()
        finally:
            if not self._closed:
                waiter.on_host_end()  # Trio cancels its system tasks when main has ended.

    async def _time(self) -> None:
        while not self._closed:
            with trio.CancelScope(deadline=self._deadline) as self._timing:
                await trio.sleep_forever()
            if not self._closed and self._timing.cancelled_caught:
                if trio.current_time() >= self._deadline:
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

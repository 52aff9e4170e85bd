"""An asyncio loop as the host: one loop as the guest of another one, of uvloop too.

from aioguest.hosts.asyncio import run_asyncio

async def main():                      # on uvloop, say
    return await run_asyncio(other)    # on a loop of its own, in the same thread
"""

from __future__ import annotations

import asyncio
from typing import Any, Callable, Optional, TypeVar

from .._host import Host, Waiter, Watch
from .._run import AsyncFn, start_guest_run

T = TypeVar("T")

__all__ = ["AsyncioHost", "run_asyncio"]


class AsyncioHost(Host):
    """Host guests in `loop`, any asyncio event loop. Default: the running one.

    Guests wait by ``loop.add_reader()``, or in a worker thread if the loop (the proactor)
    has no such thing.
    """

    def __init__(self, loop: Optional[asyncio.AbstractEventLoop] = None) -> None:
        self.loop = asyncio.get_running_loop() if loop is None else loop

    def run_sync_soon_threadsafe(self, fn: Callable[[], Any]) -> Any:
        self.loop.call_soon_threadsafe(fn)

    def run_sync_soon_not_threadsafe(self, fn: Callable[[], Any]) -> Any:
        self.loop.call_soon(fn)

    def watch(self, fd: int, waiter: Waiter) -> Optional[Watch]:
        try:
            return _AsyncioWatch(self.loop, fd, waiter)
        except NotImplementedError:
            return None

    def run(self) -> None:
        self.loop.run_forever()

    def quit(self) -> None:
        self.loop.stop()


class _AsyncioWatch(Watch):
    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, waiter: Waiter) -> None:
        self._loop = loop
        self._fd = fd
        self._waiter = waiter
        self._timer: Optional[asyncio.TimerHandle] = None
        loop.add_reader(fd, waiter.on_readable)

    def set_timer(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, self._waiter.on_timer)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd)


async def run_asyncio(coro: AsyncFn[T], *args: Any, **options: Any) -> T:
    """Run a guest to its end inside the running asyncio loop, and wait for it.

    Cancelling the waiting task cancels the guest's main task, and waits until the guest
    has ended. A cancellation that the guest's main task does not heed is not lost: its
    result or its own error comes out.

    Args:
        coro: a coroutine, or an async function to be called with `args`.
        options: those of :func:`aioguest.start_guest_run`.

    Returns:
        What the coroutine returns; what it raises is raised.
    """
    try:
        host = AsyncioHost()
    except RuntimeError:  # There is no running loop.
        if asyncio.iscoroutine(coro):
            coro.close()
        raise
    done: asyncio.Future[Any] = host.loop.create_future()
    main = start_guest_run(coro, *args, host=host, done_callback=done.set_result, **options)
    while not done.done():
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError:
            main.cancel()
    result: T = done.result().unwrap()
    return result

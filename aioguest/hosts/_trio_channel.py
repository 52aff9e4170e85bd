"""A channel between the tasks of Trio and of asyncio, in one thread."""

from __future__ import annotations

import asyncio
import collections
from typing import Any, Callable, Deque, Generic, TypeVar

import sniffio
import trio

T = TypeVar("T")


class Channel(Generic[T]):
    """A stream of values with back-pressure, between Trio and asyncio tasks of one thread.

    Both libraries' tasks may use every method, any number on each side: it parks the
    caller by the library that the caller runs under. Nothing is lost when a waiting
    sender or receiver is cancelled.

    Args:
        max_buffer_size: how many values it holds (1 or more) before :meth:`send` waits.
    """

    def __init__(self, max_buffer_size: float = 1) -> None:
        if not max_buffer_size >= 1:
            raise ValueError(f"max_buffer_size must be 1 or more, not {max_buffer_size!r}")
        self._size = max_buffer_size
        self._values: Deque[T] = collections.deque()
        self._closed = False
        self._senders: Deque[Callable[[], bool]] = collections.deque()
        self._receivers: Deque[Callable[[], bool]] = collections.deque()
        self._closers: Deque[Callable[[], bool]] = collections.deque()

    async def send(self, value: T) -> None:
        """Put `value` in; wait while the channel is full.

        Raises ``trio.ClosedResourceError`` if it is closed, also while waiting.
        """
        await _checkpoint()
        while not self._closed and len(self._values) >= self._size:
            await self._park(self._senders)
        self.send_nowait(value)

    def send_nowait(self, value: T) -> None:
        """Put `value` in, or raise ``trio.WouldBlock`` or ``trio.ClosedResourceError``."""
        if self._closed:
            raise trio.ClosedResourceError("this channel was closed")
        if len(self._values) >= self._size:
            raise trio.WouldBlock
        self._values.append(value)
        self._wake(self._receivers)

    async def receive(self) -> T:
        """Take the oldest value; wait for one.

        Raises ``trio.EndOfChannel`` if the channel is closed and empty.
        """
        await _checkpoint()
        while not self._closed and not self._values:
            await self._park(self._receivers)
        return self.receive_nowait()

    def receive_nowait(self) -> T:
        """Take the oldest value, or raise ``trio.WouldBlock`` or ``trio.EndOfChannel``."""
        if not self._values:
            raise trio.EndOfChannel if self._closed else trio.WouldBlock
        value = self._values.popleft()
        self._wake(self._senders)
        return value

    def close(self) -> None:
        """No more values: what is in it can still be received."""
        self._closed = True
        for waiters in (self._senders, self._receivers, self._closers):
            while waiters:
                waiters.popleft()()

    async def wait_closed(self) -> None:
        """Wait until somebody has called :meth:`close`; what arrives meanwhile stays."""
        if not self._closed:
            await self._park(self._closers)

    def __aiter__(self) -> Channel[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def _wake(self, waiters: Deque[Callable[[], bool]]) -> None:
        while waiters:
            if waiters.popleft()():
                return

    async def _park(self, waiters: Deque[Callable[[], bool]]) -> None:
        if not in_asyncio():
            task = trio.lowlevel.current_task()

            def wake_trio() -> bool:
                trio.lowlevel.reschedule(task)
                return True

            def abort(_: Any) -> trio.lowlevel.Abort:
                waiters.remove(wake_trio)
                return trio.lowlevel.Abort.SUCCEEDED

            waiters.append(wake_trio)
            await trio.lowlevel.wait_task_rescheduled(abort)
            return
        future = asyncio.get_running_loop().create_future()

        def wake_asyncio() -> bool:
            if future.done():
                return False
            future.set_result(None)
            return True

        waiters.append(wake_asyncio)
        try:
            await future
        except BaseException:
            if wake_asyncio in waiters:
                waiters.remove(wake_asyncio)
            else:
                self._wake(waiters)  # Woken and cancelled at once: the next one's turn.
            raise


def in_asyncio() -> bool:
    return sniffio.thread_local.name == "asyncio"


async def _checkpoint() -> None:
    if not in_asyncio():
        await trio.lowlevel.checkpoint()

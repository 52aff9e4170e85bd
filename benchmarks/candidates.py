"""The ways to run asyncio that are compared, behind one small interface."""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from typing import Any, Callable, Dict


class Candidate(ABC):
    """A host, and how an asyncio program runs in it. Its constructor imports what it needs."""

    @abstractmethod
    def run_host(self, async_fn: Callable[..., Any], *args: Any) -> Any:
        """Run the host with the host's task ``async_fn(*args)``."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Sleep in a task of the host."""

    @abstractmethod
    async def together(self, *async_fns: Callable[[], Any]) -> None:
        """Run these in tasks of the host, until all have ended."""

    @abstractmethod
    async def guest(self, async_fn: Callable[..., Any], *args: Any) -> Any:
        """From a task of the host: run an asyncio program to its end."""

    def run(self, async_fn: Callable[..., Any], *args: Any) -> Any:
        """Run an asyncio program, and a host for it."""
        return self.run_host(self.guest, async_fn, *args)


class PlainAsyncio(Candidate):
    """No host: the one loop is both."""

    def run_host(self, async_fn: Callable[..., Any], *args: Any) -> Any:
        return asyncio.run(async_fn(*args))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def together(self, *async_fns: Callable[[], Any]) -> None:
        await asyncio.gather(*[fn() for fn in async_fns])

    async def guest(self, async_fn: Callable[..., Any], *args: Any) -> Any:
        return await async_fn(*args)


class AsyncioHosted(PlainAsyncio):
    """aioguest in an asyncio host, with the readiness wait."""

    def __init__(self) -> None:
        import aioguest.hosts.asyncio

        self._run_asyncio = aioguest.hosts.asyncio.run_asyncio

    async def guest(self, async_fn: Callable[..., Any], *args: Any) -> Any:
        return await self._run_asyncio(async_fn, *args)


class _Trio(Candidate):
    def __init__(self) -> None:
        import trio

        self._trio = trio

    def run_host(self, async_fn: Callable[..., Any], *args: Any) -> Any:
        return self._trio.run(async_fn, *args)

    async def sleep(self, seconds: float) -> None:
        await self._trio.sleep(seconds)

    async def together(self, *async_fns: Callable[[], Any]) -> None:
        async with self._trio.open_nursery() as nursery:
            for fn in async_fns:
                nursery.start_soon(fn)


class _TrioGuest(_Trio):
    """aioguest under Trio, by its front door: the same code for every version and wait."""

    def __init__(self) -> None:
        super().__init__()
        import aioguest

        self._aioguest: Any = aioguest

    def _start(self, async_fn: Any, args: Any, done: Callable[[Any], None]) -> None:
        raise NotImplementedError

    async def guest(self, async_fn: Callable[..., Any], *args: Any) -> Any:
        lowlevel = self._trio.lowlevel
        caller = lowlevel.current_task()
        outcomes = []

        def done(outcome: Any) -> None:
            outcomes.append(outcome)
            lowlevel.reschedule(caller)

        self._start(async_fn, args, done)
        await lowlevel.wait_task_rescheduled(lambda _: lowlevel.Abort.FAILED)
        return outcomes[0].unwrap()


class TrioReadiness(_TrioGuest):
    def __init__(self) -> None:
        super().__init__()
        import aioguest.hosts.trio

        self._host = aioguest.hosts.trio.TrioHost

    def _start(self, async_fn: Any, args: Any, done: Callable[[Any], None]) -> None:
        self._aioguest.start_guest_run(async_fn, *args, host=self._host(), done_callback=done)


class TrioThread(_TrioGuest):
    def _start(self, async_fn: Any, args: Any, done: Callable[[Any], None]) -> None:
        self._aioguest.start_guest_run(
            async_fn(*args),
            run_sync_soon_threadsafe=self._trio.lowlevel.current_trio_token().run_sync_soon,
            done_callback=done,
        )


class TrioAsyncio(_Trio):
    def __init__(self) -> None:
        super().__init__()
        import trio_asyncio  # type: ignore[import-not-found]

        self._trio_asyncio = trio_asyncio

    async def guest(self, async_fn: Callable[..., Any], *args: Any) -> Any:
        async with self._trio_asyncio.open_loop():
            return await self._trio_asyncio.aio_as_trio(async_fn)(*args)


CANDIDATES: Dict[str, Callable[[], Candidate]] = {
    "asyncio": PlainAsyncio,
    "trio-readiness": TrioReadiness,
    "trio-thread": TrioThread,
    "asyncio-host": AsyncioHosted,
    "aioguest-0.1.0": TrioThread,
    "trio-asyncio": TrioAsyncio,
}


def versions() -> Dict[str, str]:
    """The versions of what was imported, and where aioguest came from."""
    found = {}
    for name in ("aioguest", "trio", "trio_asyncio", "greenlet"):
        module = sys.modules.get(name)
        if module is not None:
            found[name] = str(getattr(module, "__version__", "?"))
            if name == "aioguest":
                found["path"] = str(module.__file__)
    return found

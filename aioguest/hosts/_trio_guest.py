"""The calls between Trio and one asyncio guest in it."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import weakref
from typing import (
    Any,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Dict,
    Generic,
    Optional,
    Set,
    Tuple,
    TypeVar,
)

import outcome
import trio

from .._host import Host
from .._run import start_guest_run
from ._trio_channel import Channel, in_asyncio

if sys.version_info < (3, 11):  # pragma: no cover
    from exceptiongroup import BaseExceptionGroup  # Trio depends on it.

T = TypeVar("T")


class Guest:
    """One asyncio loop inside Trio, and the calls between the two.

    Made by :func:`open_guest`; asyncio code finds its own by :func:`current_guest`.

    Attributes:
        loop: the guest's asyncio loop.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self.outcome: Optional[outcome.Outcome[Any]] = None
        self._ended = trio.Event()
        self._on_end: Callable[[], None] = lambda: None
        # What would wait for ever if the loop broke: the callers of run() and the pumps of
        # iterate(), by their tasks.
        self._callers: Dict[asyncio.Task[Any], trio.lowlevel.Task] = {}
        self._scopes: Set[trio.CancelScope] = set()
        self._pumps: Dict[asyncio.Task[Any], _Pump[Any]] = {}

    # Trio calls asyncio

    async def run(self, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """From Trio: call ``async_fn(*args)`` in a new asyncio task, and await it.

        The call runs in a copy of the caller's context. If Trio cancels the caller, the
        asyncio task is cancelled and awaited, and Trio's ``Cancelled`` comes out; a task
        that ends with a result or an error of its own in spite of it hands that out.

        Raises:
            trio.ClosedResourceError: the guest is closed, or was before the call ended.
        """
        try:
            self._check("run")
        except BaseException:
            _close_coroutine(async_fn)
            raise
        caller = trio.lowlevel.current_task()
        raise_cancel: Any = None
        task: asyncio.Task[T] = self.loop.create_task(_call(async_fn, args))
        self._callers[task] = caller

        def finished(_: Any) -> None:
            del self._callers[task]
            trio.lowlevel.reschedule(caller)

        def abort(raise_it: Any) -> trio.lowlevel.Abort:
            nonlocal raise_cancel
            raise_cancel = raise_it
            task.cancel()
            return trio.lowlevel.Abort.FAILED

        task.add_done_callback(finished)
        await trio.lowlevel.wait_task_rescheduled(abort)
        if not task.done() or task.cancelled():
            if raise_cancel is not None:
                raise_cancel()
            if self._is_closing():
                raise trio.ClosedResourceError("this asyncio guest ended during the call")
        return task.result()

    async def iterate(self, iterable: AsyncIterable[T]) -> AsyncIterator[T]:
        """From Trio: iterate an async iterable of asyncio's.

        One asyncio task runs all of it, a step ahead of nobody: each value is asked for.
        Leaving the loop early closes the iterable; ``contextlib.aclosing()`` makes sure
        that this happens at once.
        """
        self._check("iterate")
        pump = _Pump(iterable)
        task = self.loop.create_task(pump.work())
        self._pumps[task] = pump
        asked = False
        try:
            while True:
                await pump.requests.send(None)
                asked = True
                try:
                    value = await pump.replies.receive()
                except trio.EndOfChannel:
                    break
                asked = False
                yield value
            if isinstance(pump.error, asyncio.CancelledError) and self._is_closing():
                raise trio.ClosedResourceError("this asyncio guest has ended") from None
            pump.check()
        finally:
            pump.requests.close()
            if asked and self.outcome is None:
                task.cancel()
            with trio.CancelScope(shield=True):
                await pump.replies.wait_closed()
            self._pumps.pop(task, None)
            pump.check_close()

    # asyncio calls Trio

    async def run_trio(self, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """From asyncio: call ``async_fn(*args)`` in a new Trio task, and await it.

        The call runs in a copy of the caller's context. If the asyncio task is cancelled,
        the Trio call is cancelled (``trio.CancelScope.cancel()``) and awaited, and
        ``asyncio.CancelledError`` comes out.
        """
        result: Any = None  # None: it was cancelled

        async def work() -> None:
            nonlocal result
            try:
                result = outcome.Value(await async_fn(*args))
            except BaseException as exc:
                rest = _without_cancelled(exc)
                if rest is None:
                    raise  # to `scope`, or to the system nursery
                result = outcome.Error(rest)

        done, scope = self._spawn(work, async_fn)
        cancelled = await self._until(done, scope)
        if result is not None and (cancelled is None or isinstance(result, outcome.Error)):
            value: T = result.unwrap()
            return value
        raise asyncio.CancelledError("Trio has ended") if cancelled is None else cancelled

    async def iterate_trio(self, iterable: AsyncIterable[T]) -> AsyncIterator[T]:
        """From asyncio: iterate an async iterable of Trio's, such as a receive channel.

        As :meth:`iterate`, the other way round.
        """
        pump = _Pump(iterable)
        done, scope = self._spawn(pump.work, iterable)
        asked = False
        try:
            while True:
                await pump.requests.send(None)
                asked = True
                try:
                    value = await pump.replies.receive()
                except trio.EndOfChannel:
                    break
                asked = False
                yield value
            if pump.error is not None and _without_cancelled(pump.error) is None:
                raise asyncio.CancelledError("Trio has ended") from None
            pump.check()
        finally:
            pump.requests.close()
            if asked:
                scope.cancel()
            cancelled = await self._until(done, scope)
            if cancelled is not None:
                raise cancelled
            pump.check_close()

    # The insides

    def _is_closing(self) -> bool:
        return self.outcome is not None or self._closing.done()

    def _check(self, name: str) -> None:
        if in_asyncio():
            raise RuntimeError(
                f"Guest.{name}() is for Trio tasks: asyncio code can await the thing itself"
            )
        if self._is_closing():
            raise trio.ClosedResourceError("this asyncio guest has ended")

    def _spawn(
        self, work: Callable[[], Awaitable[None]], what: Any
    ) -> Tuple[asyncio.Future[None], trio.CancelScope]:
        """Run `work` in a Trio task. Returns a future for its end, and its cancel scope."""
        if asyncio._get_running_loop() is not self.loop:
            raise RuntimeError("this is for tasks of the guest's own asyncio loop")
        done: asyncio.Future[None] = self.loop.create_future()
        scope = trio.CancelScope()

        async def call() -> None:
            try:
                with scope:
                    await work()
            finally:
                self._scopes.discard(scope)
                if not self.loop.is_closed():
                    done.set_result(None)

        # A system task: the asyncio task that waits for it is its parent. So an asyncio
        # `finally` block can still call Trio while the guest is being cancelled by it.
        self._scopes.add(scope)
        trio.lowlevel.spawn_system_task(
            call, name=f"aioguest call of {what!r}", context=contextvars.copy_context()
        )
        return done, scope

    async def _until(
        self, done: asyncio.Future[None], scope: trio.CancelScope
    ) -> Optional[asyncio.CancelledError]:
        """Wait for `done`, cancelling `scope` when cancelled. Returns that cancellation."""
        cancelled = None
        while not done.done():
            try:
                await asyncio.wait({done})
            except asyncio.CancelledError as exc:
                if not trio_runs_here():
                    raise  # Trio has crashed and is gone: nobody will set `done`.
                cancelled = exc
                scope.cancel()
        return cancelled

    def _start(
        self, new_host: Callable[[], Host], coro: Any, args: Any, options: Any
    ) -> asyncio.Task[Any]:
        try:
            if in_asyncio():
                raise RuntimeError(
                    "this asyncio guest can be started by a Trio task only; to start one inside "
                    "an asyncio task there is aioguest.hosts.asyncio.run_asyncio()"
                )
            host = new_host()
        except BaseException:
            _close_coroutine(coro)
            raise
        main = start_guest_run(coro, *args, host=host, done_callback=self._end, **options)
        self.loop = main.get_loop()
        self._closing: asyncio.Future[None] = self.loop.create_future()
        _guests[id(self.loop)] = self
        return main

    def _end(self, result: outcome.Outcome[Any]) -> None:
        self.outcome = result
        _guests.pop(id(self.loop), None)
        callers, self._callers = self._callers, {}
        for task, caller in callers.items():
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            trio.lowlevel.reschedule(caller)
        for task, pump in self._pumps.items():
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            pump.error = pump.error or asyncio.CancelledError()
            pump.replies.close()
        for scope in self._scopes:  # Calls into Trio that nobody waits for any more.
            scope.cancel()
        self._ended.set()
        self._on_end()

    async def _serve(self) -> None:
        await self._closing

    async def _close(self) -> None:
        if not self._is_closing():
            self._closing.set_result(None)
        with trio.CancelScope(shield=True):
            await self._ended.wait()


# By the id() of their loops; a run keeps its guest alive, and not the other way round.
_guests: weakref.WeakValueDictionary[int, Guest] = weakref.WeakValueDictionary()


def current_guest() -> Guest:
    """From asyncio: the guest that the running loop belongs to.

    Raises RuntimeError outside of a guest of :func:`open_guest` or :func:`run_asyncio`.
    """
    guest = _guests.get(id(asyncio._get_running_loop()))
    if guest is None:
        raise RuntimeError("this code does not run in an asyncio guest of Trio")
    return guest


def trio_runs_here() -> bool:
    """Whether this is called from inside of a Trio run."""
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True


def _without_cancelled(error: BaseException) -> Optional[BaseException]:
    """What is left of `error` without Trio's Cancelled, which a nursery puts into a group."""
    if isinstance(error, trio.Cancelled):
        return None
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1]
    return error


def _is_cancellation(error: BaseException) -> bool:
    return isinstance(error, asyncio.CancelledError) or _without_cancelled(error) is None


async def _call(async_fn: Any, args: Any) -> Any:
    awaitable = async_fn(*args) if callable(async_fn) else async_fn
    if not hasattr(awaitable, "__await__"):
        raise TypeError(f"{async_fn!r} must be an async function, it returned {awaitable!r}")
    return await awaitable


def _close_coroutine(coro: Any) -> None:
    if asyncio.iscoroutine(coro):
        coro.close()


class _Pump(Generic[T]):
    """Iterates an async iterable in its own library, in one task, a value for each request."""

    def __init__(self, iterable: AsyncIterable[T]) -> None:
        self.requests: Channel[None] = Channel()
        self.replies: Channel[T] = Channel()  # closed at the end
        self.error: Optional[BaseException] = None  # what ended it, or came out of its close
        self._iterable = iterable

    async def work(self) -> None:
        try:
            iterator = self._iterable.__aiter__()
            try:
                async for _ in self.requests:
                    self.replies.send_nowait(await iterator.__anext__())
            finally:
                if hasattr(iterator, "aclose"):
                    await iterator.aclose()
        except StopAsyncIteration:
            pass
        except BaseException as exc:
            self.error = _without_cancelled(exc) or exc
            if _is_cancellation(self.error):
                raise
        finally:
            self.replies.close()

    def check(self) -> None:
        """The iteration ended: raise the error that ended it, if one did."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def check_close(self) -> None:
        """It was left early: raise what came out of its close, unless that was asked for."""
        if self.error is not None and not _is_cancellation(self.error):
            self.check()

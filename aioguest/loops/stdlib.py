"""Steps the standard library's loops: the selector loops and the proactor loop.

This is the only file that touches asyncio's private names. What it relies on:

    name                                   3.8-3.12  3.13-3.15  used for
    -------------------------------------  --------  ---------  ---------------------------
    _run_once()                            yes       yes        one iteration
    _ready, _scheduled, _stopping          yes       yes        is there work, and when
    _selector (a proactor, there)          yes       yes        poll without blocking
    _thread_id                             yes       yes        is_running() between ticks
    _check_closed(), _check_running()      yes       yes        work from outside a tick
    _csock, _write_to_self()               yes       yes        wake, signal descriptor
    _signal_handlers, _process_self_data   yes       yes        signals (Unix)
    unix_events._sighandler_noop           yes       yes        signals (Unix)
    _asyncgen_{firstiter,finalizer}_hook   yes       yes        async generators
    _set_coroutine_origin_tracking()       yes       yes        debug mode
    _loop_self_reading(), _proactor        yes       yes        the proactor's self-pipe

How an iteration is made not to block: ``_run_once()`` works out how long to wait and calls
``self._selector.select(timeout)``. With work ready it passes 0 by itself and runs as it is.
Without, ``select`` is replaced for that one call by a poll that notes what it found, so the
timeout, the order and the processing stay asyncio's own.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from logging import getLogger
from typing import Any, Callable, Iterator, Optional, Set

import sniffio

from ._wakeup import Borrowed
from .base import Progress, Stepper

logger = getLogger("aioguest")

_MAXIMUM_TIMEOUT = 24 * 3600.0  # asyncio's own MAXIMUM_SELECT_TIMEOUT
# Methods of the loop that are ours in the host's time, and during the whole run.
_BETWEEN_TICKS = ("_check_closed", "create_task")
_WHOLE_RUN = (
    "stop",
    "add_signal_handler",
    "remove_signal_handler",
    "_process_self_data",
)
_thread_local = sniffio.thread_local
# Python 3.14 enters no task while its thread is in a task of another loop: one of the host's,
# in which the host called us, or in which the collector found that a guest was dropped.
_swap_current_task: Any = None
if sys.version_info >= (3, 14):  # pragma: no cover
    _swap_current_task = asyncio.tasks._swap_current_task


class StdlibStepper(Stepper):
    """Steps one ``asyncio.BaseEventLoop`` over a selector whose state is in the kernel.

    What the loop's attributes say, and when:

        attribute               in a tick   between ticks  before start, after close
        ----------------------  ----------  -------------  -------------------------
        _thread_id              our thread  our thread     None
        _check_closed()         the loop's  ours           the loop's
        create_task()           the loop's  ours           the loop's
        stop(), signal methods  ours        ours           the loop's
        running loop (thread)   the loop    the host's     the host's
    """

    _borrowed: Optional[Borrowed]
    loop: Any  # An AbstractEventLoop, but for its private names.

    def __init__(self, loop: Any, ambient: bool) -> None:
        self.loop = loop
        self._ambient = ambient
        self._started = False
        self.iterations = 0
        self._borrowed: Optional[Borrowed] = None
        self._outer: Any = None

    def start(self, on_work: Callable[[], None]) -> None:
        loop = self.loop
        self._on_work = on_work
        self._loop_check_closed = loop._check_closed
        self._loop_create_task = loop.create_task
        self._loop_stop = loop.stop
        self._loop_signals = (
            loop.add_signal_handler,
            loop.remove_signal_handler,
            getattr(loop, "_process_self_data", None),
        )
        loop.stop = self._stop
        loop.add_signal_handler = self._add_signal_handler
        loop.remove_signal_handler = self._remove_signal_handler
        loop._process_self_data = self._process_self_data
        self.adopt()
        self._started = True
        self._install_hooks()

    def adopt(self) -> None:
        self._thread_id = self.loop._thread_id = threading.get_ident()

    def enter(self) -> None:
        loop = self.loop
        del loop._check_closed, loop.create_task
        outer = asyncio._get_running_loop()
        task = None
        if _swap_current_task is not None and outer is not None:  # pragma: no cover  # 3.14
            task = _swap_current_task(outer, None)
        self._outer = (outer, task, _thread_local.name, sys.get_asyncgen_hooks())
        asyncio._set_running_loop(loop)
        loop._thread_id = self._thread_id  # 3.13 resets it when it refuses a run_forever().
        _thread_local.name = "asyncio"
        sys.set_asyncgen_hooks(
            firstiter=loop._asyncgen_firstiter_hook, finalizer=loop._asyncgen_finalizer_hook
        )
        if loop._debug:
            loop._set_coroutine_origin_tracking(True)

    def leave(self) -> None:
        loop = self.loop
        outer, task, _thread_local.name, hooks = self._outer
        self._outer = None
        if loop._coroutine_origin_tracking_enabled:
            loop._set_coroutine_origin_tracking(False)
        sys.set_asyncgen_hooks(*hooks)
        if self._ambient and self._started and outer is None:
            outer = loop
        elif outer is loop and not self._started:
            outer = None
        asyncio._set_running_loop(outer)
        if task is not None:  # pragma: no cover  # 3.14
            _swap_current_task(outer, task)
        if self._started:
            self._install_hooks()

    def run(self, end: float) -> Progress:
        # The hot path: nothing here is one call deeper than it must be.
        loop = self.loop
        run_once = loop._run_once
        clock = time.monotonic
        iterations = 0
        selector: Any = None
        select: Any = None
        found = False

        def poll(timeout: Optional[float]) -> Any:
            """Stands in for ``select()`` once, in an iteration with nothing ready."""
            nonlocal found
            selector.select = select
            events = select(0)
            found = bool(events) or timeout == 0  # 0: a timer is due
            return events

        try:
            while True:
                iterations += 1
                if loop._ready or loop._stopping:
                    run_once()
                else:
                    selector = loop._selector
                    select = selector.select
                    selector.select = poll
                    run_once()
                    if not (found or loop._ready or loop._stopping):
                        return Progress.IDLE
                if loop._stopping:
                    loop._stopping = False
                    return Progress.STOPPED
                if clock() >= end:
                    return Progress.BUSY
        finally:
            self.iterations += iterations
            if selector is not None and selector.select in (poll, select):
                if getattr(select, "__self__", None) is selector:
                    vars(selector).pop("select", None)  # so that the class's own is found
                else:
                    selector.select = select  # which somebody had put there

    def run_blocking(self) -> None:
        loop = self.loop
        while not loop._stopping:
            loop._run_once()
        loop._stopping = False

    def timeout(self) -> Optional[float]:
        scheduled = self.loop._scheduled
        if not scheduled:
            return None
        delay: float = scheduled[0]._when - self.loop.time()
        return min(max(0.0, delay), _MAXIMUM_TIMEOUT)

    def fileno(self) -> Optional[int]:
        if isinstance(self.loop._selector, getattr(selectors, "DevpollSelector", ())):
            return None  # /dev/poll cannot itself be polled.
        fd: int = self.loop._selector.fileno()
        return fd

    def block(self, timeout: Optional[float]) -> Any:
        # The kernel's readiness is level-triggered: what is found here, and thrown away,
        # is found again by the step that follows on the loop's own thread.
        # (Of the class: on the instance there may be the stand-in of a tick.)
        selector = self.loop._selector
        return type(selector).select(selector, timeout)

    def wake(self) -> None:
        self.loop._write_to_self()

    def all_tasks(self) -> Set[asyncio.Task[Any]]:
        # Python 3.14 has a list of tasks for each thread, and looks into the other ones only
        # if the loop is not running in this one. An abandoned loop can have changed threads.
        running = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            return asyncio.all_tasks(self.loop)
        finally:
            asyncio._set_running_loop(running)

    def attach(self) -> None:
        # Handlers that are older than the run: of a loop that is run again and again.
        handlers = getattr(self.loop, "_signal_handlers", None)
        if handlers and self._borrowed is None and _in_main_thread():
            self._borrowed = Borrowed(self.loop._csock.fileno())
            _relay_signals(self.loop, False)

    def release(self) -> None:
        loop = self.loop
        self._started = False
        loop._thread_id = None
        if self._borrowed is not None:
            borrowed, self._borrowed = self._borrowed, None
            if _in_main_thread():
                _relay_signals(loop, True)
                borrowed.give_back(borrowed.fd)
            else:
                borrowed.forget()
        for name in (*_BETWEEN_TICKS, *_WHOLE_RUN):
            vars(loop).pop(name, None)
        # What refers to us goes now: let the last reference be the last.
        del self._loop_check_closed, self._loop_create_task, self._loop_stop
        del self._loop_signals

    def release_and_close(self) -> None:
        loop = self.loop
        loop._thread_id = None
        try:
            # close() would do it after it has closed the descriptor that signals write to.
            for sig in list(getattr(loop, "_signal_handlers", ())):
                loop.remove_signal_handler(sig)
            loop.close()
        finally:
            self.release()

    # Between ticks: whatever gives the loop work must wake it.

    def _install_hooks(self) -> None:
        loop = self.loop
        loop._check_closed = self._check_closed
        loop.create_task = self._create_task

    def _check_closed(self) -> None:
        # The first thing that call_soon(), call_at(), create_task() and their like do, also
        # when the bound method was taken inside a tick. What they add is there by the time
        # that the host comes to the tick.
        check_closed = self._loop_check_closed
        if threading.get_ident() == self._thread_id:
            self._on_work()  # If the host is gone, the loop is closed after this.
        check_closed()

    def _create_task(self, *args: Any, **kwargs: Any) -> Any:
        # An eager task runs at once if the loop is running. Not in the host's time.
        loop = self.loop
        thread_id, loop._thread_id = loop._thread_id, None
        try:
            task = self._loop_create_task(*args, **kwargs)
        finally:
            loop._thread_id = thread_id
        self._on_work()
        return task

    def _stop(self) -> None:
        self._loop_stop()
        self._on_work()

    # Signals: asyncio takes the process's wake-up descriptor and leaves -1 behind.

    def _add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:
        add, _, _ = self._loop_signals
        if self._borrowed is not None or not _in_main_thread():
            return add(sig, callback, *args)  # type: ignore[no-any-return]
        borrowed = Borrowed(self.loop._csock.fileno())
        try:
            add(sig, callback, *args)
        except BaseException:
            borrowed.give_back(borrowed.fd)
            raise
        self._borrowed = borrowed

    def _remove_signal_handler(self, sig: int) -> Any:
        _, remove, _ = self._loop_signals
        if self._borrowed is None:
            return remove(sig)
        handlers = self.loop._signal_handlers
        if not _in_main_thread():
            # Only when an abandoned run is wound down by another thread. Signals belong
            # to the main one: the handler, which does nothing by itself, must stay.
            logger.warning("cannot restore the handler of signal %d outside the main thread", sig)
            return handlers.pop(sig, None) is not None
        current = signal.set_wakeup_fd(-1)
        try:
            return remove(sig)
        finally:
            if handlers:
                signal.set_wakeup_fd(current, warn_on_full_buffer=False)
            else:
                borrowed, self._borrowed = self._borrowed, None
                borrowed.give_back(current)

    def _process_self_data(self, data: bytes) -> None:
        _, _, process = self._loop_signals
        process(data)  # type: ignore[misc]
        if self._borrowed is not None:
            handlers = self.loop._signal_handlers
            others = bytes(number for number in data if number and number not in handlers)
            if others:
                self._borrowed.pass_on(others)


class ProactorStepper(StdlibStepper):
    """Steps the proactor loop, whose "selector" is a completion port."""

    def start(self, on_work: Callable[[], None]) -> None:
        super().start(on_work)
        if self.loop._self_reading_future is None:
            self.loop.call_soon(self.loop._loop_self_reading)

    def fileno(self) -> Optional[int]:
        return None

    def block(self, timeout: Optional[float]) -> Any:
        import _overlapped  # type: ignore[import-not-found,unused-ignore]  # Windows

        port = self.loop._proactor._iocp
        milliseconds = 0xFFFFFFFF if timeout is None else math.ceil(timeout * 1000)
        status = _overlapped.GetQueuedCompletionStatus(port, milliseconds)
        if status is not None:
            # Taken off the port to look at it; put back for the loop's own thread. The
            # error is not lost: asyncio reads it from the OVERLAPPED structure.
            _, transferred, key, address = status
            _overlapped.PostQueuedCompletionStatus(port, transferred, key, address)
        return status

    def release(self) -> None:
        loop = self.loop
        future = loop._self_reading_future
        if future is not None:
            # As run_forever() does at its end: cancelled, and never to be waited for.
            overlapped = future._ov
            future.cancel()
            if overlapped is not None:
                loop._proactor._unregister(overlapped)
            loop._self_reading_future = None
        super().release()

    def release_and_close(self) -> None:
        self.release()
        self.loop.close()


def new_stepper(loop: Any, ambient: bool) -> Stepper:
    """The stepper for `loop`. Raises TypeError or ValueError for a loop that has none."""
    if not isinstance(loop, asyncio.BaseEventLoop):
        raise TypeError(
            f"aioguest cannot step a loop of type {type(loop).__module__}.{type(loop).__name__}: "
            "use one of the standard library's loops "
            "(loop_factory=asyncio.SelectorEventLoop, or ProactorEventLoop on Windows)"
        )
    if hasattr(loop, "_proactor"):
        return ProactorStepper(loop, ambient)
    selector = getattr(loop, "_selector", None)
    if not callable(getattr(selector, "fileno", None)):
        raise ValueError(
            f"aioguest cannot wait on a {type(selector).__name__} from outside the loop: only "
            "selectors whose state is in the kernel can be changed while they wait. "
            "Use selectors.DefaultSelector() (epoll, kqueue or /dev/poll) instead"
        )
    return StdlibStepper(loop, ambient)


def check_can_run(loop: Any) -> None:
    """Raise the RuntimeError that ``loop.run_forever()`` would raise here, if any."""
    loop._check_closed()
    loop._check_running()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _relay_signals(loop: Any, on: bool) -> None:
    """Have the signals that `loop` handles write to it from Python, or leave it to the C code.

    The C code writes to the wake-up descriptor, which others have meanwhile.
    """

    def relay(number: int, frame: Any) -> None:
        with suppress(OSError):
            loop._csock.send(bytes([number]))

    unix_events: Any = asyncio.unix_events
    for sig in loop._signal_handlers:
        signal.signal(sig, relay if on else unix_events._sighandler_noop)
        signal.siginterrupt(sig, False)


@contextmanager
def signals_between_runs(loop: Any) -> Iterator[None]:
    """While a host starts, runs and ends: the wake-up descriptor is the host's to take.

    For a loop that is run again and again, whose handlers live on between its runs.
    """
    if not hasattr(loop, "_signal_handlers") or not _in_main_thread():
        yield
        return
    if loop._signal_handlers:
        _relay_signals(loop, True)
        signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        if loop._signal_handlers:
            signal.set_wakeup_fd(loop._csock.fileno())
            _relay_signals(loop, False)

"""What ``asyncio.run()`` does, as phases, so that a host stays live between their steps.

Theory of operation
-------------------
A life moves through four phases and ends. Each phase waits for one future by asking the
loop to stop when that future is done, as ``run_until_complete()`` does; whoever drives the
loop calls :meth:`Life.proceed` when it stopped, or hands in the exception that came out of it.

    phase       the future it waits for               it ended well   it failed
    ----------  ------------------------------------  --------------  ---------
    MAIN        the main task                         LEFTOVERS       LEFTOVERS
    LEFTOVERS   all other tasks, after cancel()       ASYNCGENS       CLOSE
    ASYNCGENS   loop.shutdown_asyncgens()             EXECUTOR        CLOSE
    EXECUTOR    loop.shutdown_default_executor()      CLOSE           CLOSE
    CLOSE       (nothing: the loop is closed)         the end         the end

The order, the messages and which failure wins are those of ``asyncio.Runner`` in the
standard library: the first three phases' outcome is the main task's unless a later phase
fails, and then the earlier failure is its ``__context__``.

Rules of this file:
- Everything that decides what comes next in a life lives here.
- It does not know who drives the loop, or that there is a host.
"""

from __future__ import annotations

import asyncio
import sys
from enum import Enum
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Protocol

if TYPE_CHECKING:
    from outcome import Outcome

    from .loops.base import Stepper

# Seconds that asyncio.Runner gives the executor's threads, since Python 3.12.
_EXECUTOR_TIMEOUT = (300,) if sys.version_info >= (3, 12) else ()


class Phase(Enum):
    MAIN = "main"
    LEFTOVERS = "leftovers"
    ASYNCGENS = "async generators"
    EXECUTOR = "executor"
    CLOSE = "close"


# phase: (next if it ended well, next if it failed)
_NEXT = {
    Phase.MAIN: (Phase.LEFTOVERS, Phase.LEFTOVERS),
    Phase.LEFTOVERS: (Phase.ASYNCGENS, Phase.CLOSE),
    Phase.ASYNCGENS: (Phase.EXECUTOR, Phase.CLOSE),
    Phase.EXECUTOR: (Phase.CLOSE, Phase.CLOSE),
}


class AnyLife(Protocol):
    """What a run needs of a life. All of it with the loop entered (the running loop)."""

    outcome: Optional[Outcome[Any]]

    def proceed(self, error: Optional[BaseException] = None) -> bool:
        """The loop stopped, or raised `error`. Returns True if the life is over now."""

    def cancel(self, message: str) -> None:
        """Make the life end soon, for the reason in `message`."""


class Life:
    """One life of a stepper's loop around the task `main`.

    At the end it calls `close_wait`, and closes the loop.
    """

    def __init__(
        self, stepper: Stepper, main: asyncio.Task[Any], close_wait: Callable[[], None]
    ) -> None:
        self.phase = Phase.MAIN
        self.outcome: Optional[Outcome[Any]] = None
        self._stepper = stepper
        self._loop = stepper.loop
        self._main = main
        self._close_wait = close_wait
        self._leftovers: List[asyncio.Task[Any]] = []
        self._future: asyncio.Future[Any] = main
        main.add_done_callback(self._stop_when_done)

    def proceed(self, error: Optional[BaseException] = None) -> bool:
        """The loop stopped, or raised `error`: end this phase, begin the next.

        Returns True when the life is over; :attr:`outcome` is final then.
        """
        from outcome import Value  # It imports attrs: too slow for our own import.

        next_if_well, next_if_failed = _NEXT[self.phase]
        try:
            value = self._end_phase(error)
            if self.phase is Phase.MAIN:
                self.outcome = Value(value)
            following = next_if_well
        except BaseException as exc:
            self._fail(exc)
            following = next_if_failed
        try:
            self.phase = self._begin(following)
        except BaseException as exc:
            self._fail(exc)
            self.phase = Phase.CLOSE
        if self.phase is not Phase.CLOSE:
            return False
        for close in (self._close_wait, self._stepper.release_and_close):
            try:
                close()
            except BaseException as exc:
                self._fail(exc)
        return True

    def cancel(self, message: str) -> None:
        """Cancel the main task, or once it has ended every task, naming the reason."""
        tasks = self._stepper.all_tasks() if self._main.done() else {self._main}
        for task in tasks:
            task.cancel(*((message,) if sys.version_info >= (3, 9) else ()))

    def _fail(self, error: BaseException) -> None:
        """Make `error` the outcome; an earlier failure becomes its context."""
        from outcome import Error

        earlier = getattr(self.outcome, "error", None)
        if earlier is not error and error.__context__ is None:
            error.__context__ = earlier
        self.outcome = Error(error)

    def _stop_when_done(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and isinstance(
            future.exception(), (SystemExit, KeyboardInterrupt)
        ):
            return  # It came out of the loop as well: the phase has ended already.
        self._loop.stop()

    def _end_phase(self, error: Optional[BaseException]) -> Any:
        future = self._future
        future.remove_done_callback(self._stop_when_done)
        if error is not None:
            if future is not self._main and future.done() and not future.cancelled():
                future.exception()  # Retrieved here: nobody else ever sees this future.
            try:
                raise error
            finally:
                del error  # Its traceback refers to this frame.
        if not future.done():
            raise RuntimeError("Event loop stopped before Future completed.")
        if self.phase is Phase.LEFTOVERS:
            self._report_leftovers()
        return future.result()

    def _begin(self, phase: Phase) -> Phase:
        """Begin `phase`, or the first one after it that has something to wait for."""
        loop: Any = self._loop  # AbstractEventLoop does not declare the executor's timeout.
        if phase is Phase.LEFTOVERS:
            self._leftovers = list(self._stepper.all_tasks())
            if self._leftovers:
                for task in self._leftovers:
                    task.cancel()
                self._wait_for(asyncio.gather(*self._leftovers, return_exceptions=True))
                return Phase.LEFTOVERS
            phase = Phase.ASYNCGENS
        if phase is Phase.ASYNCGENS:
            self._wait_for_task(loop.shutdown_asyncgens())
        elif phase is Phase.EXECUTOR:
            if sys.version_info < (3, 9):  # pragma: no cover
                return Phase.CLOSE  # There is no such method: closing shuts it down.
            self._wait_for_task(loop.shutdown_default_executor(*_EXECUTOR_TIMEOUT))
        return phase

    def _report_leftovers(self) -> None:
        for task in self._leftovers:
            if not task.cancelled() and task.exception() is not None:
                self._loop.call_exception_handler(
                    {
                        "message": "unhandled exception during asyncio.run() shutdown",
                        "exception": task.exception(),
                        "task": task,
                    }
                )

    def _wait_for_task(self, coro: Any) -> None:
        task: Any = self._loop.create_task(coro)
        task._log_destroy_pending = False  # If it cannot end, the life's error says so.
        self._wait_for(task)

    def _wait_for(self, future: asyncio.Future[Any]) -> None:
        self._future = future
        future.add_done_callback(self._stop_when_done)


class Forever:
    """The life of a loop that ``run_forever()`` drives: until ``loop.stop()``, and no end."""

    def __init__(self, stepper: Stepper, close_wait: Callable[[], None]) -> None:
        self.outcome: Optional[Outcome[Any]] = None
        self._stepper = stepper
        self._close_wait = close_wait

    def proceed(self, error: Optional[BaseException] = None) -> bool:
        from outcome import Error, Value

        self.outcome = Value(None) if error is None else Error(error)
        for close in (self._close_wait, self._stepper.release):
            try:
                close()
            except BaseException as exc:
                self.outcome = Error(exc)
        return True

    def cancel(self, message: str) -> None:
        self._stepper.loop.stop()

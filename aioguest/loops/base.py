"""The loop interface: what a run needs of one asyncio loop. One implementation a kind of loop."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from enum import Enum
from typing import Any, Callable, Optional, Set


class Progress(Enum):
    """Why :meth:`Stepper.run` returned."""

    IDLE = "idle"  # nothing to do before I/O or the next timer
    BUSY = "busy"  # there is more to do, but the time is up
    STOPPED = "stopped"  # loop.stop() was called


class Stepper(ABC):
    """Drives one asyncio loop by hand: enter, run, leave.

    Between :meth:`start` and :meth:`release` the loop says that it is running; only between
    :meth:`enter` and :meth:`leave` is it this thread's running loop.

    Guarantees:
    - `on_work` is called, on the loop's thread, whenever something outside a tick gave
      the loop work that its descriptor does not show (``call_soon()`` and its like).
    - :meth:`block` and :meth:`wake` may be called from any thread.
    """

    loop: asyncio.AbstractEventLoop
    iterations: int  # run so far

    @abstractmethod
    def start(self, on_work: Callable[[], None]) -> None:
        """Begin the run, on the calling thread. The loop is left, not entered."""

    def attach(self) -> None:  # noqa: B027  # an optional hook
        """The first tick is about to begin: the host is running now."""

    @abstractmethod
    def enter(self) -> None:
        """Make the loop the running one, and asyncio the current library."""

    @abstractmethod
    def leave(self) -> None:
        """Restore everything that :meth:`enter` found."""

    @abstractmethod
    def run(self, end: float) -> Progress:
        """Run iterations without blocking until one of these, and say which.

        `end` is a moment of ``time.monotonic()``; at least one iteration is run. What
        comes out of the loop (of its selector, or a KeyboardInterrupt) is raised.
        """

    @abstractmethod
    def run_blocking(self) -> None:
        """Run iterations that wait for work until ``loop.stop()``: a run without a host."""

    @abstractmethod
    def timeout(self) -> Optional[float]:
        """Seconds until the next timer (0 or more), None if there is none."""

    @abstractmethod
    def fileno(self) -> Optional[int]:
        """A descriptor that is readable whenever the loop has I/O to handle, or None."""

    @abstractmethod
    def block(self, timeout: Optional[float]) -> Any:
        """Block up to `timeout` seconds until there is I/O, and leave it there.

        Returns something true if there is I/O.
        """

    @abstractmethod
    def wake(self) -> None:
        """Make :meth:`block` return."""

    @abstractmethod
    def all_tasks(self) -> Set[asyncio.Task[Any]]:
        """The loop's tasks that are not done, also those of another thread's time."""

    @abstractmethod
    def adopt(self) -> None:
        """The calling thread is the loop's thread from now on."""

    @abstractmethod
    def release(self) -> None:
        """End the run: undo :meth:`start`. Nothing but :meth:`leave` may follow."""

    @abstractmethod
    def release_and_close(self) -> None:
        """End the run, and close the loop."""

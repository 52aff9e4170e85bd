"""The wait in a worker thread: works for every host that takes a call from another thread.

Theory of operation
-------------------
One worker thread a run, started when the guest is idle for the first time. It waits for
the loop's I/O and posts the run's ticket to the host. It never touches the loop.

How it learns that the guest is idle again is the price of this wait, paid on every round
trip. Where the loop's descriptor is an epoll, the worker waits in an epoll of its own that
holds the loop's *once at a time* (EPOLLONESHOT): arming is one system call on the host's
thread and the worker sleeps through it. A lock would wake the worker to say "go and
sleep", and the worker would need the interpreter to hear it. Elsewhere a lock it is.

Guarantees:
- The ticket is posted at most once for each arm(), and not after disarm() returned it.
- A deadline that moves closer wakes the worker; one that moves away costs one idle
  wake-up of the worker, not of the host.
- After close() returns, the thread has ended (unless it is the caller).
- The worker keeps no reference to the run except the armed ticket: a run that its host
  dropped can be collected.

Assumes:
- arm(), disarm() and close() are called by one thread at a time.
"""

from __future__ import annotations

import itertools
import math
import os
import select
import threading
import time
import weakref
from abc import ABC, abstractmethod
from typing import Any, Optional

from ..loops.base import Stepper
from .base import Ticket, Wait

_numbers = itertools.count(1)


class _Sleeper(ABC):
    """How the worker sleeps."""

    @abstractmethod
    def park(self) -> None:
        """Worker: return when it makes sense to call :meth:`sleep`."""

    @abstractmethod
    def sleep(self, timeout: Optional[float]) -> Any:
        """Worker: sleep. Returns something true if the loop has I/O."""

    @abstractmethod
    def arm(self) -> None:
        """Owner: from now on the loop's I/O ends the sleep."""

    @abstractmethod
    def poke(self) -> None:
        """Owner: end the sleep."""

    def close(self) -> None:  # noqa: B027  # nothing, by default
        """Owner: the worker has ended, release everything."""


class _NestedEpoll(_Sleeper):
    """Sleeps in an epoll that contains the loop's epoll."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # The end of a pipe to which nobody writes is always ready for it: arming it once
        # is a poke, and there is nothing to drain.
        self._pipe = os.pipe()
        try:
            self._epoll = select.epoll()
            try:
                self._epoll.register(fd, select.EPOLLONESHOT)
                self._epoll.register(self._pipe[1], select.EPOLLONESHOT)
            except BaseException:
                self._epoll.close()
                raise
        except BaseException:
            self._close_pipe()
            raise

    def park(self) -> None:
        pass

    def sleep(self, timeout: Optional[float]) -> Any:
        return any(fd == self._fd for fd, _ in self._epoll.poll(timeout, 2))

    def arm(self) -> None:
        self._epoll.modify(self._fd, select.EPOLLIN | select.EPOLLONESHOT)

    def poke(self) -> None:
        self._epoll.modify(self._pipe[1], select.EPOLLOUT | select.EPOLLONESHOT)

    def close(self) -> None:
        self._epoll.close()
        self._close_pipe()

    def _close_pipe(self) -> None:
        for fd in self._pipe:
            os.close(fd)


class _Blocking(_Sleeper):
    """Sleeps in the loop's own blocking call, and on a lock while it must not."""

    def __init__(self, stepper: Stepper) -> None:
        # Weak: a parked worker must not keep the run from being collected.
        self._stepper = weakref.ref(stepper)
        self._armed = threading.Event()

    def park(self) -> None:
        self._armed.wait()
        self._armed.clear()

    def sleep(self, timeout: Optional[float]) -> Any:
        stepper = self._stepper()
        return stepper is not None and stepper.block(timeout)

    def arm(self) -> None:
        self._armed.set()

    def poke(self) -> None:
        self._armed.set()
        stepper = self._stepper()
        if stepper is not None:
            stepper.wake()


class _Worker:
    """The thread and what it shares with its owner. It knows no run and no loop."""

    def __init__(self, sleeper: _Sleeper) -> None:
        self.sleeper = sleeper
        self.lock = threading.Lock()  # guards what follows
        self.ticket: Optional[Ticket] = None
        self.deadline = math.inf
        self.sleeps_until = -math.inf  # The worker looks at the deadline then, or before.
        self.closing = False
        self.error: Optional[BaseException] = None  # what ended the thread
        self.thread = threading.Thread(
            target=self._work,
            name=f"aioguest-wait-{next(_numbers)}",
            daemon=True,  # It must not keep the interpreter from exiting.
        )

    def take_ticket(self) -> Optional[Ticket]:
        """Under the lock: the ticket, which from now on is the caller's."""
        ticket, self.ticket = self.ticket, None
        self.deadline = math.inf
        return ticket

    def _work(self) -> None:
        while True:
            self.sleeper.park()
            with self.lock:
                if self.closing:
                    return
                self.sleeps_until = deadline = self.deadline
            error: Optional[BaseException] = None
            try:
                ready = self.sleeper.sleep(
                    None if deadline == math.inf else max(0.0, deadline - time.monotonic())
                )
            except BaseException as exc:
                error = exc
            with self.lock:
                self.sleeps_until = -math.inf
                if error is not None:
                    self.error = error
                    ticket = self.take_ticket()
                elif ready or self.deadline <= time.monotonic():
                    ticket = self.take_ticket()
                else:
                    ticket = None
            if error is not None:
                if ticket is not None:
                    ticket.fail(error)
                return  # The next arm() tries with a new worker.
            if ticket is not None:
                ticket.post()
                del ticket


class ThreadWait(Wait):
    """Waits in a worker thread for the loop of `stepper`."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._worker: Optional[_Worker] = None

    def arm(self, ticket: Ticket, timeout: Optional[float]) -> None:
        worker = self._worker
        if worker is None or worker.error is not None:
            worker = self._start()
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with worker.lock:
            if worker.error is not None:  # since just now
                raise worker.error
            worker.ticket = ticket
            worker.deadline = deadline
            poke = deadline < worker.sleeps_until
        worker.sleeper.arm()
        if poke:
            worker.sleeper.poke()

    def disarm(self) -> Optional[Ticket]:
        worker = self._worker
        if worker is None:
            return None
        with worker.lock:
            return worker.take_ticket()

    def close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        with worker.lock:
            worker.closing = True
        worker.sleeper.poke()
        if worker.thread is not threading.current_thread():
            worker.thread.join()
        worker.sleeper.close()

    def _start(self) -> _Worker:
        self.close()
        fd = self._stepper.fileno()
        sleeper: _Sleeper
        if fd is not None and hasattr(select, "epoll"):
            sleeper = _NestedEpoll(fd)
        else:
            sleeper = _Blocking(self._stepper)
        worker = _Worker(sleeper)
        try:
            worker.thread.start()
        except BaseException:
            sleeper.close()
            raise
        self._worker = worker
        return worker

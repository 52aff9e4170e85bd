"""The wait without a thread: the host itself watches the loop's descriptor."""

from __future__ import annotations

import time
from typing import Callable, Optional

from .._host import Host, Waiter, Watch
from .base import Ticket, Wait


class ReadinessWait(Wait, Waiter):
    """Waits by a :class:`~aioguest.Watch` of the host, on descriptor `fd`.

    The watch stays in place from tick to tick, and so does a timer that expires earlier
    than the next one has to: in the common case arming costs no system call.
    """

    def __init__(
        self,
        host: Host,
        fd: int,
        is_ticking: Callable[[], bool],
        abandon: Callable[[], None],
    ) -> None:
        self._host = host
        self._fd = fd
        self._is_ticking = is_ticking
        self._abandon = abandon
        self._ticket: Optional[Ticket] = None
        self._timer_at: Optional[float] = None
        self._watch: Optional[Watch] = None

    def begin(self) -> bool:
        """Start watching. Returns False if the host cannot."""
        self._watch = self._host.watch(self._fd, self)
        return self._watch is not None

    def arm(self, ticket: Ticket, timeout: Optional[float]) -> None:
        if self._watch is None and not self.begin():
            raise RuntimeError(f"{self._host!r}.watch() returned None for a descriptor it watched")
        assert self._watch is not None
        self._ticket = ticket
        self._watch.arm()
        if timeout is not None:
            deadline = time.monotonic() + timeout
            if self._timer_at is None or deadline < self._timer_at:
                self._timer_at = deadline
                self._watch.set_timer(timeout)

    def disarm(self) -> Optional[Ticket]:
        ticket, self._ticket = self._ticket, None
        return ticket

    def close(self) -> None:
        watch, self._watch = self._watch, None
        self._timer_at = None
        if watch is not None:
            watch.close()

    def on_readable(self) -> None:
        ticket = self.disarm()
        if ticket is not None:
            ticket()
        elif self._is_ticking():
            # A task of this guest opened a nested host loop. The guest is paused until
            # that returns, and a level-triggered host would spin on its descriptor.
            self.close()
        # else: the ticket is in the host's queue, and its tick will see the I/O.

    def on_timer(self) -> None:
        self._timer_at = None
        self.on_readable()

    def on_host_end(self) -> None:
        self._abandon()

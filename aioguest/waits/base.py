"""The wait interface: what stands in for the loop's blocking ``select()`` between ticks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Optional, Protocol


class Ticket(Protocol):
    """The right to one tick. Whoever holds it calls it, or drops it and abandons the run."""

    def __call__(self) -> None:
        """Run the tick. On the host's thread; a second call does nothing."""

    def post(self) -> None:
        """Have the host call it. From any thread; never raises."""

    def fail(self, error: BaseException) -> None:
        """Have the host call it, and the tick begin with `error`. Never raises."""


class Wait(ABC):
    """Holds a run's ticket until there is I/O, or the timer expires.

    Guarantees:
    - A ticket handed to :meth:`arm` is used once or handed back by :meth:`disarm`.
    - What became ready before :meth:`arm` is not missed: readiness is level-triggered.
    """

    @abstractmethod
    def arm(self, ticket: Ticket, timeout: Optional[float]) -> None:
        """Take `ticket`, and use it on I/O or in `timeout` seconds (None: only on I/O)."""

    @abstractmethod
    def disarm(self) -> Optional[Ticket]:
        """Give the ticket back; None if it is on its way to the host already."""

    @abstractmethod
    def close(self) -> None:
        """Stop waiting for ever and release everything."""

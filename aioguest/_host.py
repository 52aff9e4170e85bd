"""What a host is to a guest: the one interface a new host implements.

Rules of this file:
- It knows nothing of runs, loops or waits.
- A host needs one method. Everything else has a default, and a guest that finds the
  default uses its own worker thread instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Callable, Optional

__all__ = ["Host", "Waiter", "Watch"]


class Waiter(ABC):
    """The guest's side of a :class:`Watch`. The host calls it, always on its own thread.

    All three may be called at any time, also when nothing happened: a call too many
    costs a little time and changes nothing.
    """

    @abstractmethod
    def on_readable(self) -> None:
        """The watched descriptor is readable."""

    @abstractmethod
    def on_timer(self) -> None:
        """The timer of :meth:`Watch.set_timer` expired. Late is allowed, lost is not."""

    @abstractmethod
    def on_host_end(self) -> None:
        """The host loop is ending while this guest still runs: abandon the guest now."""


class Watch(ABC):
    """One descriptor and one timer that a host watches for a guest."""

    def arm(self) -> None:  # noqa: B027  # an optional hook
        """The guest is idle: from now until ``waiter.on_readable()`` the descriptor matters.

        For hosts whose watches fire once. Others may ignore it (the default).
        """

    @abstractmethod
    def set_timer(self, delay: float) -> None:
        """Call ``waiter.on_timer()`` once, `delay` seconds from now (0 or more).

        It replaces the timer set before, whether or not that one has expired.
        """

    @abstractmethod
    def close(self) -> None:
        """Forget the descriptor and the timer. Called once, before the descriptor closes."""


class Host(ABC):
    """A loop that owns a thread, and what a guest needs of it.

    Only :meth:`run_sync_soon_threadsafe` must be there. A host that can watch a
    descriptor overrides :meth:`watch`, and its guests then need no worker thread.

    Example::

        class QueueHost(aioguest.Host):
            def __init__(self):
                self.todo = queue.SimpleQueue()

            def run_sync_soon_threadsafe(self, fn):
                self.todo.put(fn)
    """

    @abstractmethod
    def run_sync_soon_threadsafe(self, fn: Callable[[], Any]) -> Any:
        """Have the host call ``fn()`` soon, on the host's thread. Called from any thread.

        ``fn`` must not be called before this returns. Calls are made in order.
        """

    def run_sync_soon_not_threadsafe(self, fn: Callable[[], Any]) -> Any:
        """The same, only ever called on the host's thread; often cheaper there."""
        return self.run_sync_soon_threadsafe(fn)

    def watch(self, fd: int, waiter: Waiter) -> Optional[Watch]:
        """Call ``waiter.on_readable()`` while descriptor `fd` is readable (level-triggered).

        Returns the :class:`Watch`, or None if this host cannot watch descriptors (the
        default): the guest then waits in a worker thread.
        """
        return None

    def run(self) -> None:
        """Run the host's loop until :meth:`quit`. Only :func:`aioguest.run` needs it."""
        raise NotImplementedError(
            f"{type(self).__name__} does not implement run() and quit(): "
            "start its loop yourself and call aioguest.start_guest_run() from it"
        )

    def quit(self) -> None:
        """Make :meth:`run` return soon. Called on the host's thread, while it runs."""
        raise NotImplementedError(f"{type(self).__name__} implements run() but not quit()")


class CallbackHost(Host):
    """The host behind the plain callables of :func:`aioguest.start_guest_run`."""

    def __init__(
        self,
        threadsafe: Callable[[Callable[[], Any]], Any],
        not_threadsafe: Optional[Callable[[Callable[[], Any]], Any]],
    ) -> None:
        self._threadsafe = threadsafe
        self._not_threadsafe = threadsafe if not_threadsafe is None else not_threadsafe

    def run_sync_soon_threadsafe(self, fn: Callable[[], Any]) -> Any:
        return self._threadsafe(fn)

    def run_sync_soon_not_threadsafe(self, fn: Callable[[], Any]) -> Any:
        return self._not_threadsafe(fn)

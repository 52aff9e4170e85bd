"""Run asyncio as a guest inside a loop that already owns the thread."""

from ._host import Host, Waiter, Watch
from ._owner import loop_factory
from ._run import Statistics, run, start_guest_run, statistics

__version__ = "1.0.0.dev0"

__all__ = [
    "Host",
    "Statistics",
    "Waiter",
    "Watch",
    "loop_factory",
    "run",
    "start_guest_run",
    "statistics",
]

for _public in (Host, Statistics, Waiter, Watch, loop_factory, run, start_guest_run, statistics):
    _public.__module__ = __name__
del _public

"""Loops that own their host: ``run_forever()`` enters the host's loop and leaves it.

The other way round than :func:`aioguest.start_guest_run`, on the same parts: here asyncio's
own ``run_until_complete()``, ``asyncio.run()`` and ``asyncio.Runner`` decide what runs and
when, so the run's life is just "until ``loop.stop()``".
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Callable, List, Optional

from ._host import Host
from ._life import Forever
from ._run import DEFAULT_TICK_BUDGET, Run, check_budget
from .loops.stdlib import check_can_run, new_stepper, signals_between_runs


def loop_factory(
    new_host: Callable[[], Host],
    *,
    new_loop: Optional[Callable[[], asyncio.AbstractEventLoop]] = None,
    tick_budget: float = DEFAULT_TICK_BUDGET,
    ambient: bool = False,
) -> Callable[[], asyncio.AbstractEventLoop]:
    """A factory of asyncio loops that run inside a host's own loop.

    Give it to ``asyncio.Runner`` or ``asyncio.run()`` (Python 3.12), or to a test
    framework: whenever such a loop is run, it starts a host, runs inside it as a guest,
    and quits it.

    Args:
        new_host: called at each run for a :class:`Host` with ``run()`` and ``quit()``.
        new_loop: makes the loops. Default: ``asyncio.new_event_loop``.
        tick_budget, ambient: as for :func:`start_guest_run`.

    Example::

        asyncio.run(main(), loop_factory=aioguest.loop_factory(MyHost))
    """
    check_budget(tick_budget)

    def new_owning_loop() -> asyncio.AbstractEventLoop:
        loop: Any = asyncio.new_event_loop() if new_loop is None else new_loop()
        try:
            new_stepper(loop, ambient)  # Refuses what cannot be stepped, now.
        except BaseException:
            loop.close()
            raise
        loop.run_forever = partial(run_forever, loop, new_host, tick_budget, ambient)
        return loop  # type: ignore[no-any-return]

    return new_owning_loop


def run_forever(loop: Any, new_host: Callable[[], Host], tick_budget: float, ambient: bool) -> None:
    """``loop.run_forever()``, inside the loop of a new host."""
    check_can_run(loop)
    host = new_host()
    stepper = new_stepper(loop, ambient)
    outcomes: List[Any] = []

    def done(outcome: Any) -> None:
        outcomes.append(outcome)
        host.quit()

    run = Run(host, stepper, partial(Forever, stepper), done, tick_budget)
    with signals_between_runs(loop):
        run.start()
        try:
            host.run()
        finally:
            run.detach()
    if not outcomes:
        raise RuntimeError(f"{host!r}: run() returned before the loop was stopped")
    outcomes.pop().unwrap()

"""One run: the front door, the tick, and what happens when a host goes away.

Theory of operation
-------------------
At any moment somebody holds the run's one *ticket*, the right to the next tick:

    state    who holds the ticket          what ends it
    -------  ----------------------------  -------------------------------------------
    POSTED   the host's queue              the host calls it
    TICKING  nobody: it was used           idle, or the budget is spent, or the end
    WAITING  the wait                      I/O, the timer, or work from the host
    OVER     nobody                        (done_callback has the outcome, or the log)

A tick runs iterations of the loop until it is idle (-> WAITING), or its budget is spent
(-> POSTED), or the life is over (-> OVER). A ticket that is dropped unused, refused by the
host, or still out when the interpreter exits means that the host abandoned the run: then
the life is run to its end right there, without a host.

Who keeps what alive: this module keeps the life, and so the loop and its tasks, until it is
over (`_lives`). Only the host's side keeps the run: its queue and its watches, by way of the
ticket. The life and the loop know the run weakly. So what a host drops is seen to be
dropped, also by the collector, and the loop is whole when it has to be driven to its end.

Guarantees:
- Nothing of the guest runs outside a tick, except when abandoned.
- A run is driven by one thread at a time: whoever holds `_driver`.
- The outcome goes to done_callback once, or, abandoned, to the log once.
"""

from __future__ import annotations

import asyncio
import atexit
import collections.abc
import concurrent.futures.thread  # noqa: F401  # its exit handler must be registered before ours
import contextlib
import inspect
import math
import os
import sys
import threading
import time
import warnings
import weakref
from contextvars import Context
from enum import Enum
from functools import partial
from logging import getLogger
from typing import (
    TYPE_CHECKING,
    Any,
    Awaitable,
    Callable,
    Coroutine,
    List,
    NamedTuple,
    Optional,
    Set,
    TypeVar,
    Union,
)

from . import _asyncgens
from ._host import CallbackHost, Host
from ._life import AnyLife, Life
from .loops.base import Progress, Stepper
from .loops.stdlib import new_stepper
from .waits.base import Ticket, Wait
from .waits.readiness import ReadinessWait
from .waits.thread import ThreadWait

if TYPE_CHECKING:
    from outcome import Outcome

T = TypeVar("T")
AsyncFn = Union[Coroutine[Any, Any, T], Callable[..., Awaitable[T]]]

DEFAULT_TICK_BUDGET = 0.001
_RESCUE_DELAY = 0.05  # seconds

logger = getLogger("aioguest")


class State(Enum):
    POSTED = "posted"
    TICKING = "ticking"
    WAITING = "waiting"
    OVER = "over"


class _Ticket:
    """The right to one tick of `run`."""

    __slots__ = ("__weakref__", "_run")

    def __init__(self, run: Run) -> None:
        self._run: Optional[Run] = run

    def __call__(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.tick()

    def post(self) -> None:
        run = self._run
        if run is not None:
            try:
                run.host.run_sync_soon_threadsafe(self)
            except BaseException as exc:
                run.abandon(self, exc)

    def fail(self, error: BaseException) -> None:
        run = self._run
        if run is not None:
            run.error = error
            self.post()

    def __del__(self) -> None:
        run = self._run
        if run is not None:
            run.abandon(self)


class Run:
    """One guest's life in one host."""

    state = State.OVER  # until start()

    def __init__(
        self,
        host: Host,
        stepper: Stepper,
        new_life: Callable[[Callable[[], None]], AnyLife],
        done_callback: Callable[[Outcome[Any]], Any],
        tick_budget: float,
    ) -> None:
        self.host = host
        self.ticks = 0
        self.error: Optional[BaseException] = None  # the next tick begins with it
        self._stepper = stepper
        self._life = new_life(_weakly(self._close_wait))
        self._done_callback = done_callback
        self._budget = tick_budget
        self._thread = threading.current_thread()
        self._thread_ident = threading.get_ident()
        self._driver = threading.Lock()
        self._wait: Optional[Wait] = None  # until the guest is idle for the first time
        self._asyncgen_users: Optional[List[None]] = None
        self._kept: Optional[Ticket] = None

    def start(self) -> None:
        self._stepper.start(_weakly(self._on_work))
        self.state = State.POSTED
        _runs[id(self._stepper.loop)] = self
        _lives.add(self._life)
        ticket = _Ticket(self)
        try:
            self.host.run_sync_soon_not_threadsafe(ticket)
        except BaseException:
            self._forget()
            self._stepper.release()
            raise

    def __del__(self) -> None:
        if self.state is not State.OVER:
            self.abandon()

    def tick(self) -> None:
        """Run the guest until it is idle or its budget is spent."""
        if threading.get_ident() != self._thread_ident:
            self._refuse_thread()
            return
        if not self._driver.acquire(blocking=False):
            return  # Another thread has found it abandoned, and drives it to its end.
        stepper, life = self._stepper, self._life
        over, progress = False, Progress.BUSY
        try:
            if self.state is State.OVER:
                return
            self.state = State.TICKING
            if self.ticks == 0:
                # Here, and not in start(): now the host is running.
                self._asyncgen_users = _asyncgens.install()
                stepper.attach()
            self.ticks += 1
            error, self.error = self.error, None
            stepper.enter()
            try:
                end = time.monotonic() + self._budget
                while True:
                    try:
                        if error is None:
                            progress = stepper.run(end)
                            over = progress is Progress.STOPPED and life.proceed()
                        else:
                            over = life.proceed(error)
                            error = None
                        if over or progress is Progress.IDLE or time.monotonic() >= end:
                            break
                    except BaseException as exc:
                        error = exc  # The life's next step is told, whatever it is.
                    if self.state is not State.TICKING:  # pragma: no cover
                        # This is the child of a fork: the run is the parent's.
                        if error is not None:
                            raise error  # SystemExit, say
                        return
            finally:
                stepper.leave()
        finally:
            self._driver.release()
        if over:
            self._forget()
            assert life.outcome is not None
            self._done_callback(life.outcome)
        elif progress is Progress.IDLE:
            self._wait_for_work()
        else:
            self.state = State.POSTED
            self._post(_Ticket(self))

    def _wait_for_work(self) -> None:
        ticket = _Ticket(self)
        self.state = State.WAITING
        try:
            if self._wait is None:
                self._wait = self._new_wait()
            self._wait.arm(ticket, self._stepper.timeout())
        except BaseException as exc:
            if self._wait is not None:
                self._wait.disarm()
            self.state = State.POSTED
            self.error = exc
            self._post(ticket)

    def _new_wait(self) -> Wait:
        fd = self._stepper.fileno()
        if fd is not None:
            readiness = ReadinessWait(self.host, fd, self._is_ticking, self.abandon)
            if readiness.begin():
                return readiness
        return ThreadWait(self._stepper)

    def _post(self, ticket: _Ticket) -> None:
        try:
            self.host.run_sync_soon_not_threadsafe(ticket)
        except BaseException as exc:
            self.abandon(ticket, exc)
            if not isinstance(exc, Exception):
                raise

    def _on_work(self) -> None:
        """Something outside a tick gives the loop work: no need to wait any more."""
        if self.state is State.WAITING and self._wait is not None:
            ticket = self._wait.disarm()
            if ticket is not None:
                self.state = State.POSTED
                try:
                    self.host.run_sync_soon_not_threadsafe(ticket)
                except BaseException as exc:
                    self._rescue(ticket)
                    if not isinstance(exc, Exception):
                        raise

    def _rescue(self, ticket: Ticket) -> None:
        """The host refused `ticket`, but who called us is a function of asyncio's.

        To drive the loop to its end from inside of that would be to wait for what it has
        not done yet. A worker thread comes a moment later, and finds the host gone.
        """
        with contextlib.suppress(Exception):
            self._close_wait()
        self._wait = ThreadWait(self._stepper)
        self.state = State.WAITING
        self._kept = ticket  # If there is no thread any more, _at_exit() will see to it.
        with contextlib.suppress(Exception):
            self._wait.arm(ticket, _RESCUE_DELAY)
            self._kept = None

    def _is_ticking(self) -> bool:
        return self.state is State.TICKING

    def _close_wait(self) -> None:
        wait, self._wait = self._wait, None
        if wait is not None:
            wait.close()

    def _forget(self) -> None:
        self.state = State.OVER
        _runs.pop(id(self._stepper.loop), None)
        _lives.discard(self._life)
        if self._asyncgen_users is not None:
            _asyncgens.remove(self._asyncgen_users)

    # The ways in which a run ends early.

    def detach(self) -> None:
        """Leave the loop as it is, if the run is not over: its owner was interrupted."""
        if self.state is not State.OVER:
            self._forget()
            self._close_wait()
            self._stepper.release()

    def abandon(
        self, ticket: Optional[_Ticket] = None, cause: Optional[BaseException] = None
    ) -> None:
        """The host will not call `ticket` (or any): run the life to its end, right here."""
        if not self._driver.acquire(blocking=False):
            return  # Somebody drives it, so it is not abandoned or already being ended.
        try:
            if self.state is State.OVER or (ticket is not None and ticket._run is None):
                return
            reason = "" if cause is None else f" ({type(cause).__name__}: {cause})"
            try:
                warnings.warn(
                    RuntimeWarning(
                        "asyncio guest run got abandoned: its host loop ended, or dropped it, "
                        f"before the guest was done{reason}. Its tasks are cancelled now. Keep "
                        "the host running until done_callback was called, or cancel the main "
                        "task and wait for that"
                    ),
                    stacklevel=2,
                )
            finally:
                self._drive_to_end("aioguest: the host loop abandoned this guest run")
                self._log_outcome()
        finally:
            self._driver.release()

    def _refuse_thread(self) -> None:
        with self._driver:
            if self.state is State.OVER:
                return
            self._drive_to_end("aioguest: the host called this guest run from a wrong thread")
        error = RuntimeError(
            f"the host called a guest from thread {threading.current_thread().name!r}, but the "
            f"guest was started in thread {self._thread.name!r}: call start_guest_run() on the "
            "host loop's own thread, and let run_sync_soon_threadsafe() run its argument there"
        )
        from outcome import Error

        self._done_callback(Error(error))

    def _drive_to_end(self, message: str) -> None:
        """Cancel, and run the life to its end with blocking iterations, without a host."""
        stepper, life = self._stepper, self._life
        self._forget()
        with contextlib.suppress(Exception):
            self._close_wait()  # What a dead host says of its watch is of no use.
        stepper.adopt()
        stepper.enter()
        try:
            life.cancel(message)
            over = False
            while not over:
                try:
                    stepper.run_blocking()
                except BaseException as exc:
                    over = life.proceed(exc)
                else:
                    over = life.proceed()
        finally:
            stepper.leave()

    def _log_outcome(self) -> None:
        outcome = self._life.outcome
        assert outcome is not None
        try:
            value = outcome.unwrap()
        except BaseException as exc:
            logger.exception("abandoned by its host: couldn't deliver the guest exception: %r", exc)
        else:
            logger.warning("abandoned by its host: couldn't deliver the guest result: %r", value)


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """`method`, without keeping its object alive."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        strong = reference()
        if strong is not None:
            strong()

    return call


# Every life that is not over, and its run by the id() of the loop.
_lives: Set[AnyLife] = set()
_runs: weakref.WeakValueDictionary[int, Run] = weakref.WeakValueDictionary()


def _at_exit() -> None:
    for run in list(_runs.values()):
        # The threads that still run now are daemons: such a host dies with its guest.
        if run._thread is threading.current_thread() or not run._thread.is_alive():
            run.abandon()


def _after_fork_in_child() -> None:
    # The descriptors are shared with the parent, and its thread is not here.
    for run in list(_runs.values()):
        run.state = State.OVER
    _runs.clear()  # The lives stay, and so never meet the collector here.


try:
    # Runs before the executors' threads are joined, while threads can still be started.
    threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
except (AttributeError, RuntimeError):  # 3.8, or imported while the interpreter exits
    atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):  # pragma: no branch  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Statistics(NamedTuple):
    """What a guest's run did so far: how many ticks, and iterations of its loop."""

    ticks: int
    iterations: int


def statistics(loop: asyncio.AbstractEventLoop) -> Statistics:
    """The statistics of the guest run of `loop`. Raises ValueError if it has none now."""
    run = _runs.get(id(loop))
    if run is None:
        raise ValueError(f"{loop!r} is not the loop of a guest that runs now")
    return Statistics(run.ticks, run._stepper.iterations)


# Coroutines that were started and may not have run yet: no other mark tells.
_started: weakref.WeakSet[Any] = weakref.WeakSet()


def _check_coroutine(coro: Any, args: Any) -> bool:
    """Whether `coro` is a coroutine (True) or an async function (False), else TypeError."""
    if isinstance(coro, collections.abc.Coroutine):
        if args:
            raise TypeError(
                "start_guest_run() got positional arguments beside a coroutine: pass the async "
                "function and its arguments, or the coroutine alone"
            )
        if coro in _started or (
            inspect.iscoroutine(coro) and (inspect.getcoroutinestate(coro) != inspect.CORO_CREATED)
        ):
            raise RuntimeError(
                f"the coroutine {coro!r} was started before, and a coroutine runs only once: "
                "call its async function again for a new one"
            )
        return True
    if inspect.iscoroutinefunction(coro) or inspect.iscoroutinefunction(
        getattr(coro, "__call__", None)  # noqa: B004  # to look at it, not for callable()
    ):
        return False
    if inspect.isgenerator(coro) or inspect.isasyncgen(coro):
        what = f"the generator {coro!r}"
    elif callable(coro):
        what = f"{coro!r}, which is not an async function (if it returns a coroutine, call it)"
    else:
        what = repr(coro)
    raise TypeError(f"start_guest_run() needs a coroutine or an async function, not {what}")


def _is_fresh(coro: Any) -> bool:
    # Of a coroutine that is not Python's own (compiled, say) nothing can be known.
    return not inspect.iscoroutine(coro) or (
        inspect.getcoroutinestate(coro) == inspect.CORO_CREATED
    )


def _close_if_fresh(coro: Any) -> None:
    """Close a coroutine that nobody has started, so that it is not "never awaited"."""
    if isinstance(coro, collections.abc.Coroutine) and coro not in _started and _is_fresh(coro):
        coro.close()


def _check_host(
    host: Optional[Host],
    threadsafe: Optional[Callable[..., Any]],
    not_threadsafe: Optional[Callable[..., Any]],
) -> Host:
    if host is not None:
        if threadsafe is not None or not_threadsafe is not None:
            raise TypeError("pass either host= or the run_sync_soon_* functions, not both")
        if not isinstance(host, Host):
            raise TypeError(f"host= needs an aioguest.Host, not {host!r}")
        return host
    if threadsafe is None:
        raise TypeError(
            "start_guest_run() needs to know its host: pass run_sync_soon_threadsafe= or host="
        )
    for name, fn in (
        ("run_sync_soon_threadsafe", threadsafe),
        ("run_sync_soon_not_threadsafe", not_threadsafe),
    ):
        if fn is not None and not callable(fn):
            raise TypeError(f"{name} must be a function that takes a function, not {fn!r}")
    return CallbackHost(threadsafe, not_threadsafe)


def check_budget(tick_budget: Any) -> float:
    if isinstance(tick_budget, bool) or not isinstance(tick_budget, (int, float)):
        raise TypeError(f"tick_budget must be a number of seconds, not {tick_budget!r}")
    if math.isnan(tick_budget) or tick_budget < 0:
        raise ValueError(f"tick_budget must be 0 or more seconds, not {tick_budget!r}")
    return tick_budget


def _new_loop(
    loop_factory: Optional[Callable[[], asyncio.AbstractEventLoop]], ambient: bool
) -> Stepper:
    loop = asyncio.new_event_loop() if loop_factory is None else loop_factory()
    if not isinstance(loop, asyncio.AbstractEventLoop):
        raise TypeError(f"loop_factory must return an asyncio event loop, not {loop!r}")
    if loop.is_closed():
        raise RuntimeError(f"loop_factory returned a closed loop, it must make a new one: {loop!r}")
    if loop.is_running():
        raise RuntimeError(
            f"loop_factory returned a loop that already runs, it must make a new one: {loop!r}"
        )
    try:
        return new_stepper(loop, ambient)
    except BaseException:
        loop.close()
        raise


def _new_main_task(
    loop: asyncio.AbstractEventLoop, coro: Any, context: Optional[Context]
) -> asyncio.Task[Any]:
    main: Any
    if context is None:
        main = loop.create_task(coro)
    elif sys.version_info >= (3, 11):
        main = loop.create_task(coro, context=context)
    else:  # pragma: no cover
        main = context.run(loop.create_task, coro)
    if not asyncio.isfuture(main):
        raise TypeError(f"the task factory must return an asyncio.Task, not {main!r}")
    return main  # type: ignore[return-value]


def start_guest_run(
    coro: AsyncFn[T],
    *args: Any,
    done_callback: Callable[[Outcome[T]], Any],
    run_sync_soon_threadsafe: Optional[Callable[[Callable[[], Any]], Any]] = None,
    run_sync_soon_not_threadsafe: Optional[Callable[[Callable[[], Any]], Any]] = None,
    host: Optional[Host] = None,
    debug: Optional[bool] = None,
    loop_factory: Optional[Callable[[], asyncio.AbstractEventLoop]] = None,
    task_factory: Optional[Callable[..., Any]] = None,
    context: Optional[Context] = None,
    tick_budget: float = DEFAULT_TICK_BUDGET,
    ambient: bool = False,
) -> asyncio.Task[T]:
    """Start a guest: what ``asyncio.run(coro)`` would do, inside the loop that runs here.

    Call it on the host loop's thread. It returns at once; none of the guest's code has run
    by then. The guest lives as under ``asyncio.run()``: when the main task ends, the other
    tasks are cancelled and awaited, the async generators and the default executor are shut
    down and the loop is closed, all of it while the host goes on. Then `done_callback` is
    called.

    Args:
        coro: a coroutine, or an async function to be called with `args`.
        done_callback: called once, on the host's thread, with an ``outcome.Value`` or
            ``outcome.Error`` when the guest has ended altogether.
        run_sync_soon_threadsafe: a function that makes the host call its argument soon,
            and may be called from any thread. Give this or `host`.
        run_sync_soon_not_threadsafe: the same for calls from the host's thread, if there
            is a cheaper way there. Default: `run_sync_soon_threadsafe`.
        host: a :class:`Host`, instead of the two functions.
        debug: asyncio's debug mode, on or off. Default: as ``asyncio.run()``.
        loop_factory: makes the guest's loop. Default: ``asyncio.new_event_loop``.
        task_factory: set on the loop (``loop.set_task_factory``) before the main task is
            made.
        context: the ``contextvars.Context`` that the main task runs in (before Python
            3.11: a copy of it). Default: a copy of the caller's.
        tick_budget: seconds that the guest may run before the host has a turn (it always
            completes an iteration of its loop). 0 means one iteration at a time.
        ambient: leave the guest's loop as the thread's running loop in the host's time
            too, if the host has none, so that plain callbacks of a GUI can call
            ``asyncio.create_task()``.

    Returns:
        The main task. ``task.cancel()`` is the way to stop the run. The task ends before
        the run does: wait for `done_callback`.

    Raises:
        TypeError: `coro` is no coroutine and no async function, or an option is of a wrong
            type, or no stepper knows the loop.
        ValueError: `tick_budget` is negative, or the loop's selector cannot be waited on.
        RuntimeError: `coro` was started before, or the loop is closed or running.

        Whatever it raises, the coroutine is closed (except one that already runs
        elsewhere) and nothing is left behind. Everything that goes wrong later goes to
        `done_callback`.

    Example::

        aioguest.start_guest_run(
            fetch, "https://example.org/",
            run_sync_soon_threadsafe=lambda fn: my_queue.put(fn),
            done_callback=lambda outcome: print(outcome.unwrap()),
        )
    """
    function: Any = coro
    try:
        is_coroutine = _check_coroutine(function, args)
        the_host = _check_host(host, run_sync_soon_threadsafe, run_sync_soon_not_threadsafe)
        if not callable(done_callback):
            raise TypeError(
                f"done_callback must be a function of one outcome, not {done_callback!r}"
            )
        budget = check_budget(tick_budget)
        stepper = _new_loop(loop_factory, ambient)
    except BaseException:
        _close_if_fresh(function)
        raise
    loop = stepper.loop
    coroutine: Any = function if is_coroutine else None
    main: Any = None
    try:
        if debug is not None:
            loop.set_debug(debug)
        if task_factory is not None:
            loop.set_task_factory(task_factory)
        if coroutine is None:
            coroutine = function(*args)
        main = _new_main_task(loop, coroutine, context)
        run = Run(the_host, stepper, partial(Life, stepper, main), done_callback, budget)
        run.start()
    except BaseException:
        if main is not None:
            main._log_destroy_pending = False
        _close_if_fresh(coroutine)
        loop.close()
        raise
    with contextlib.suppress(TypeError):  # a compiled coroutine without weak references
        _started.add(coroutine)
    return main  # type: ignore[no-any-return]


def run(coro: AsyncFn[T], *args: Any, host: Host, **options: Any) -> T:
    """Run a guest to its end inside `host`'s own loop, which this starts and quits.

    Ctrl+C, and any other exception out of the host's loop, cancels the guest, lets it end
    and comes out again.

    Args:
        coro: a coroutine, or an async function to be called with `args`.
        host: a :class:`Host` with ``run()`` and ``quit()``, whose loop does not run yet.
        options: those of :func:`start_guest_run`.

    Returns:
        What the coroutine returns; what it raises is raised.

    Raises:
        RuntimeError: the host's loop ended before the guest.
    """
    outcomes: List[Outcome[T]] = []

    def done(outcome: Outcome[T]) -> None:
        outcomes.append(outcome)
        host.quit()

    main = start_guest_run(coro, *args, host=host, done_callback=done, **options)
    try:
        host.run()
    except BaseException:
        if not outcomes:
            main.cancel()
            host.run()
        raise
    if not outcomes:
        abandoned = _runs.get(id(main.get_loop()))
        if abandoned is not None:
            abandoned.abandon()
        raise RuntimeError(f"{host!r}: run() returned before the guest was done")
    return outcomes.pop().unwrap()

"""The fixtures: a host of each kind, and an audit after every test."""

import asyncio
import gc
import signal
import sys
import time

import pytest
import sniffio
from harness import KINDS, QUEUE_KINDS, guest_threads, open_descriptors

import aioguest._run
from aioguest.loops._wakeup import Borrowed


@pytest.fixture(params=KINDS, ids=str)
def kind(request):
    """A host with a wait: every combination there is."""
    return request.param


@pytest.fixture(params=QUEUE_KINDS, ids=str)
def queue_kind(request):
    """The strict queue host, with each wait."""
    return request.param


SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def _state():
    return {
        "sniffio": sniffio.thread_local.name,
        "running loop": asyncio._get_running_loop(),
        "asyncgen hooks": sys.get_asyncgen_hooks(),
        "origin tracking": sys.get_coroutine_origin_tracking_depth(),
        "wakeup fd": signal.set_wakeup_fd(-1),
        "signal handlers": [signal.getsignal(sig) for sig in SIGNALS],
        "borrowed wakeup fds": list(Borrowed._chain),
        "threads": set(guest_threads()),
        "descriptors": set(open_descriptors().items()),
        "runs": set(aioguest._run._runs.values()),
        "users of our asyncgen hook": len(aioguest._asyncgens._here.users),
    }


def _clean_up(handlers):
    """One test's mess is not the next one's."""
    sniffio.thread_local.name = None
    asyncio._set_running_loop(None)
    sys.set_asyncgen_hooks(None, None)
    sys.set_coroutine_origin_tracking_depth(0)
    for sig, handler in zip(SIGNALS, handlers):
        signal.signal(sig, handler)
    Borrowed._chain.clear()
    aioguest._asyncgens._here.users.clear()
    aioguest._run._runs.clear()


@pytest.fixture(autouse=True)
def audit():
    """Nothing of a guest is left behind by any test."""
    before = _state()
    yield
    for _ in range(100):  # A worker that ended its own run is on its way out.
        if set(guest_threads()) <= before["threads"]:
            break
        time.sleep(0.01)
    if set(open_descriptors().items()) - before["descriptors"]:
        gc.collect()  # An exception's traceback may keep a test's own sockets.
    after = _state()
    _clean_up(before["signal handlers"])
    for name in ("threads", "descriptors"):  # One more may have gone in the meantime.
        after[name] -= before[name]
        before[name] = set()
    assert after == before

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


@pytest.fixture(autouse=True)
def audit():
    """Nothing of a guest is left behind by any test."""
    descriptors = open_descriptors()
    threads = guest_threads()  # none, or those of a test that has failed already
    runs = list(aioguest._run._runs.values())
    users = len(aioguest._asyncgens._here.users)
    handlers = [signal.getsignal(sig) for sig in SIGNALS]
    yield
    for _ in range(100):  # A worker that ended its own run is on its way out.
        if set(guest_threads()) <= set(threads):
            break
        time.sleep(0.01)
    assert [name for name in guest_threads() if name not in threads] == []
    if set(open_descriptors()) - set(descriptors):
        gc.collect()  # An exception's traceback may keep a test's own sockets.
    left = {k: v for k, v in open_descriptors().items() if k not in descriptors}
    assert left == {}
    ambient = {
        "sniffio": sniffio.thread_local.name,
        "running loop": asyncio._get_running_loop(),
        "asyncgen hooks": sys.get_asyncgen_hooks(),
        "origin tracking": sys.get_coroutine_origin_tracking_depth(),
        "wakeup fd": signal.set_wakeup_fd(-1),
        "signal handlers": [signal.getsignal(sig) for sig in SIGNALS],
    }
    # One test's mess is not the next one's.
    sniffio.thread_local.name = None
    asyncio._set_running_loop(None)
    sys.set_asyncgen_hooks(None, None)
    sys.set_coroutine_origin_tracking_depth(0)
    for sig, handler in zip(SIGNALS, handlers):
        signal.signal(sig, handler)
    Borrowed._chain.clear()
    assert ambient == {
        "sniffio": None,
        "running loop": None,
        "asyncgen hooks": (None, None),
        "origin tracking": 0,
        "wakeup fd": -1,
        "signal handlers": handlers,
    }
    assert [run for run in aioguest._run._runs.values() if run not in runs] == []
    assert len(aioguest._asyncgens._here.users) == users

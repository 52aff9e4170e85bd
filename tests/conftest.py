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


@pytest.fixture(params=KINDS, ids=str)
def kind(request):
    """A host with a wait: every combination there is."""
    return request.param


@pytest.fixture(params=QUEUE_KINDS, ids=str)
def queue_kind(request):
    """The strict queue host, with each wait."""
    return request.param


def _wakeup_fd():
    fd = signal.set_wakeup_fd(-1)
    if fd != -1:
        signal.set_wakeup_fd(fd)
    return fd


@pytest.fixture(autouse=True)
def audit():
    """Nothing of a guest is left behind by any test."""
    descriptors = open_descriptors()
    threads = guest_threads()  # none, or those of a test that has failed already
    runs = list(aioguest._run._runs.values())
    handlers = [signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)]
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
    assert sniffio.thread_local.name is None
    assert asyncio._get_running_loop() is None
    assert sys.get_asyncgen_hooks() == (None, None)
    assert sys.get_coroutine_origin_tracking_depth() == 0
    assert _wakeup_fd() == -1
    assert handlers == [
        signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    ]
    assert [run for run in aioguest._run._runs.values() if run not in runs] == []
    assert aioguest._asyncgens._here.users == [None] * len(runs)

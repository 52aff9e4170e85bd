"""The proactor loop's stepper, with a fake of Windows' completion port."""

import asyncio
import collections
import sys
import types

import pytest

from aioguest.loops.stdlib import ProactorStepper, new_stepper

STATUS = (0, 17, 23, 0xADD)


class FakePort:
    """_overlapped: statuses on a port."""

    def __init__(self):
        self.port = collections.deque()
        self.waits = []

    def GetQueuedCompletionStatus(self, port, milliseconds):
        assert port == "the port"
        self.waits.append(milliseconds)
        return self.port.popleft() if self.port else None

    def PostQueuedCompletionStatus(self, port, transferred, key, address):
        assert port == "the port"
        self.port.append((0, transferred, key, address))


class FakeProactor:
    _iocp = "the port"

    def __init__(self):
        self.unregistered = []

    def _unregister(self, overlapped):
        self.unregistered.append(overlapped)


class FakeFuture:
    def __init__(self, overlapped):
        self._ov = overlapped
        self.cancelled = False

    def cancel(self):
        self.cancelled = True
        self._ov = None


class ProactorLoop(asyncio.SelectorEventLoop):
    """A loop that looks like a proactor's from outside."""

    def __init__(self):
        super().__init__()
        self._proactor = FakeProactor()
        self._self_reading_future = None
        self.readings = 0

    def _loop_self_reading(self):
        self.readings += 1


@pytest.fixture
def overlapped(monkeypatch):
    fake = FakePort()
    module = types.ModuleType("_overlapped")
    module.GetQueuedCompletionStatus = fake.GetQueuedCompletionStatus
    module.PostQueuedCompletionStatus = fake.PostQueuedCompletionStatus
    monkeypatch.setitem(sys.modules, "_overlapped", module)
    return fake


@pytest.fixture
def loop():
    loop = ProactorLoop()
    yield loop
    loop.close()


def test_a_proactor_loop_gets_the_proactor_stepper(loop):
    stepper = new_stepper(loop, False)
    assert type(stepper) is ProactorStepper
    assert stepper.fileno() is None


@pytest.mark.parametrize(
    ("timeout", "milliseconds"), [(None, 0xFFFFFFFF), (0, 0), (0.0001, 1), (1.5, 1500)]
)
def test_block_waits_in_whole_milliseconds(loop, overlapped, timeout, milliseconds):
    assert not new_stepper(loop, False).block(timeout)
    assert overlapped.waits == [milliseconds]


def test_block_puts_back_what_it_found(loop, overlapped):
    overlapped.port.append(STATUS)
    stepper = new_stepper(loop, False)
    assert stepper.block(1)
    assert list(overlapped.port) == [STATUS]
    assert stepper.block(1)


def test_start_begins_to_read_the_self_pipe_and_the_end_cancels_that(loop):
    stepper = new_stepper(loop, False)
    stepper.start(lambda: None)
    stepper.enter()
    stepper.run(0)
    assert loop.readings == 1
    future = loop._self_reading_future = FakeFuture("overlapped")
    stepper.release_and_close()
    stepper.leave()
    assert future.cancelled
    assert loop._proactor.unregistered == ["overlapped"]
    assert loop._self_reading_future is None
    assert loop.is_closed()
    assert not loop.is_running()


def test_a_self_pipe_that_is_read_already_is_not_read_twice(loop):
    stepper = new_stepper(loop, False)
    loop._self_reading_future = FakeFuture(None)
    stepper.start(lambda: None)
    stepper.enter()
    stepper.run(0)
    assert loop.readings == 0
    stepper.release_and_close()
    stepper.leave()
    assert loop._proactor.unregistered == []


def test_the_end_without_a_reading_future_is_quiet(loop):
    stepper = new_stepper(loop, False)
    stepper.start(lambda: None)
    stepper.enter()
    stepper.release_and_close()
    stepper.leave()
    assert loop.is_closed()

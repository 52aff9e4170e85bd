"""The two waits alone, and the steppers' small print, with fakes around them."""

import asyncio
import gc
import os
import selectors
import threading
import time

import pytest

from aioguest.loops.stdlib import StdlibStepper, check_can_run, new_stepper
from aioguest.waits.readiness import ReadinessWait
from aioguest.waits.thread import ThreadWait, _Blocking, _NestedEpoll


class Ticket:
    def __init__(self):
        self.calls = []
        self.called = threading.Event()

    def __call__(self):
        self.calls.append("called")

    def post(self):
        self.calls.append("posted")
        self.called.set()

    def fail(self, error):
        self.calls.append(error)
        self.called.set()


@pytest.fixture(params=["epoll", "blocking"])
def wait(request, monkeypatch):
    if request.param == "blocking":
        monkeypatch.setattr(StdlibStepper, "fileno", lambda self: None)
    loop = asyncio.new_event_loop()
    wait = ThreadWait(StdlibStepper(loop, False))
    wait.loop = loop
    yield wait
    wait.close()
    loop.close()


def test_io_posts_the_ticket_once(wait):
    for _ in range(50):
        ticket = Ticket()
        wait.arm(ticket, None)
        wait.loop._write_to_self()
        assert ticket.called.wait(20)
        assert wait.disarm() is None
        assert ticket.calls == ["posted"]
        wait.loop._ssock.recv(4096)


def test_io_that_is_there_already_posts_the_ticket(wait):
    wait.loop._write_to_self()
    for _ in range(3):
        ticket = Ticket()
        wait.arm(ticket, None)
        assert ticket.called.wait(20)


def test_a_deadline_posts_the_ticket(wait):
    for timeout in (0, 0.001, 0.002):
        ticket = Ticket()
        wait.arm(ticket, timeout)
        assert ticket.called.wait(20)
        assert ticket.calls == ["posted"]


def test_a_disarmed_ticket_is_not_posted(wait):
    ticket = Ticket()
    wait.arm(ticket, 0.05)
    assert wait.disarm() is ticket
    assert wait.disarm() is None
    wait.loop._write_to_self()
    other = Ticket()
    wait.arm(other, None)
    assert other.called.wait(20)
    assert ticket.calls == []


def test_a_deadline_that_comes_closer_wakes_the_worker(wait):
    ticket = Ticket()
    wait.arm(ticket, 3600)
    assert wait.disarm() is ticket
    wait.arm(ticket, 0.001)
    assert ticket.called.wait(20)


def test_a_deadline_that_moves_away_does_not_post_early(wait):
    early, late = Ticket(), Ticket()
    wait.arm(early, 0.05)
    assert wait.disarm() is early
    wait.arm(late, None)
    time.sleep(0.08)
    assert late.calls == []
    wait.loop._write_to_self()
    assert late.called.wait(20)
    assert early.calls == []


def test_closing_ends_the_thread_and_forgets_the_ticket(wait):
    ticket = Ticket()
    wait.arm(ticket, None)
    thread = wait._worker.thread
    assert thread.daemon
    assert thread.name.startswith("aioguest-wait-")
    wait.close()
    assert not thread.is_alive()
    assert ticket.calls == []
    wait.close()
    assert wait.disarm() is None


def test_a_wait_that_was_never_armed_has_no_thread(wait):
    assert wait.disarm() is None
    assert wait._worker is None


def test_a_blocking_sleeper_does_not_keep_its_stepper_alive():
    loop = asyncio.new_event_loop()
    stepper = StdlibStepper(loop, False)
    sleeper = _Blocking(stepper)
    del stepper
    gc.collect()
    assert not sleeper.sleep(None)
    sleeper.poke()
    sleeper.park()  # It was poked.
    sleeper.close()
    loop.close()


def test_the_nested_epoll_is_poked_without_being_drained():
    read, write = os.pipe()
    selector = selectors.EpollSelector()
    selector.register(read, selectors.EVENT_READ)
    sleeper = _NestedEpoll(selector.fileno())
    try:
        sleeper.poke()
        assert not sleeper.sleep(20)
        os.write(write, b"x")
        assert not sleeper.sleep(0)  # not armed
        sleeper.arm()
        assert sleeper.sleep(20)
        assert not sleeper.sleep(0)  # once only
    finally:
        sleeper.close()
        selector.close()
        os.close(read)
        os.close(write)


class FakeHost:
    def __init__(self):
        self.log = []
        self.able = True

    def watch(self, fd, waiter):
        self.log.append(("watch", fd))
        return FakeWatch(self.log) if self.able else None


class FakeWatch:
    def __init__(self, log):
        self.log = log

    def arm(self):
        self.log.append("arm")

    def set_timer(self, delay):
        self.log.append(("timer", delay))

    def close(self):
        self.log.append("close")


@pytest.fixture
def readiness():
    host = FakeHost()
    ticking = []
    wait = ReadinessWait(host, 5, lambda: bool(ticking), lambda: host.log.append("abandon"))
    wait.ticking = ticking
    wait.log = host.log
    wait.host = host
    assert wait.begin()
    del wait.log[:]
    return wait


def test_readiness_calls_the_ticket_once(readiness):
    ticket = Ticket()
    readiness.arm(ticket, None)
    readiness.on_readable()
    readiness.on_readable()
    assert ticket.calls == ["called"]
    assert readiness.log == ["arm"]


def test_a_timer_that_expires_early_enough_stays(readiness):
    ticket = Ticket()
    readiness.arm(ticket, 5)
    assert readiness.disarm() is ticket
    readiness.arm(ticket, 10)
    assert readiness.disarm() is ticket
    readiness.arm(ticket, 1)
    assert readiness.log == ["arm", ("timer", 5), "arm", "arm", ("timer", 1)]
    readiness.on_timer()
    assert ticket.calls == ["called"]
    readiness.arm(ticket, 20)
    assert readiness.log[-1] == ("timer", 20)


def test_a_readable_descriptor_in_a_nested_loop_closes_the_watch_until_the_next_wait(readiness):
    readiness.on_readable()  # posted: its tick will see to it
    assert readiness.log == []
    readiness.ticking.append(1)
    readiness.on_readable()
    readiness.on_timer()
    assert readiness.log == ["close"]
    readiness.arm(Ticket(), 3)
    assert readiness.log[1:] == [("watch", 5), "arm", ("timer", 3)]


def test_a_host_that_will_not_watch_again(readiness):
    readiness.close()
    readiness.close()
    assert readiness.log == ["close"]
    readiness.host.able = False
    with pytest.raises(RuntimeError, match="returned None"):
        readiness.arm(Ticket(), None)


def test_the_hosts_end_abandons(readiness):
    readiness.on_host_end()
    assert readiness.log == ["abandon"]


# Steppers


def test_a_devpoll_descriptor_cannot_be_watched(monkeypatch):
    loop = asyncio.new_event_loop()
    try:
        stepper = new_stepper(loop, False)
        assert stepper.fileno() == loop._selector.fileno()
        monkeypatch.setattr(selectors, "DevpollSelector", type(loop._selector), raising=False)
        assert stepper.fileno() is None
    finally:
        loop.close()


def test_a_timeout_is_never_longer_than_asyncios_own():
    loop = asyncio.new_event_loop()
    try:
        stepper = new_stepper(loop, False)
        assert stepper.timeout() is None
        loop.call_later(10**7, int)
        assert stepper.timeout() == 24 * 3600
        loop.call_at(0, int)
        assert stepper.timeout() == 0
    finally:
        loop.close()


def test_check_can_run_refuses_what_run_forever_refuses():
    loop = asyncio.new_event_loop()
    check_can_run(loop)

    async def main():
        with pytest.raises(RuntimeError, match="running"):
            check_can_run(loop)

    loop.run_until_complete(main())
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        check_can_run(loop)


def test_a_descriptor_that_epoll_refuses_leaves_nothing_open():
    before = os.listdir("/proc/self/fd")
    with open(__file__) as file, pytest.raises(PermissionError):
        _NestedEpoll(file.fileno())
    assert len(os.listdir("/proc/self/fd")) == len(before)

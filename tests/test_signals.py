"""Contract 8: signals, and the one wake-up descriptor that guests borrow."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import threading

import pytest

from aioguest.loops._wakeup import Borrowed


def wakeup_fd():
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    return fd


@contextlib.contextmanager
def host_wakeup():
    """A host with a wake-up descriptor. Yields the end where its bytes arrive."""
    receive, send = socket.socketpair()
    receive.setblocking(False)
    send.setblocking(False)
    previous = signal.set_wakeup_fd(send.fileno())
    try:
        yield receive, send.fileno()
        assert wakeup_fd() == send.fileno()
    finally:
        signal.set_wakeup_fd(previous)
        receive.close()
        send.close()


@pytest.fixture
def quiet_usr2():
    previous = signal.signal(signal.SIGUSR2, lambda *args: None)
    yield
    signal.signal(signal.SIGUSR2, previous)


def test_a_signal_handler_is_called_and_the_wakeup_descriptor_is_back_after(kind):
    async def main():
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        seen = [wakeup_fd()]
        for _ in range(3):
            event.clear()
            loop.add_signal_handler(signal.SIGUSR1, event.set)
            seen.append(wakeup_fd())
            kind.in_host(os.kill, os.getpid(), signal.SIGUSR1)
            await event.wait()
            event.clear()
            os.kill(os.getpid(), signal.SIGUSR1)
            await event.wait()
            assert loop.remove_signal_handler(signal.SIGUSR1)
            seen.append(wakeup_fd())
        assert not loop.remove_signal_handler(signal.SIGUSR1)
        return seen

    seen = kind.run(main)
    assert {seen[0]} == set(seen[::2])  # before and after: the host's
    assert not set(seen[1::2]) & {-1, seen[0]}


def test_a_handler_that_is_left_behind_is_removed_with_the_run(kind):
    fds = []

    async def main():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, print)
        loop.add_signal_handler(signal.SIGUSR2, print)

    def setup(api):
        fds.append(wakeup_fd())
        api.start(main, done_callback=lambda _: (fds.append(wakeup_fd()), api.finish()))

    kind.loop(setup)
    assert fds[0] == fds[1]
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_the_descriptor_stays_until_the_last_handler_goes(queue_kind):
    async def main():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, print)
        loop.add_signal_handler(signal.SIGUSR2, print)
        fds = [wakeup_fd()]
        loop.remove_signal_handler(signal.SIGUSR1)
        fds.append(wakeup_fd())
        loop.remove_signal_handler(signal.SIGUSR2)
        fds.append(wakeup_fd())
        return fds

    with host_wakeup() as (_, fd):
        both, one, none = queue_kind.run(main)
    assert both == one != fd
    assert none == fd


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((9999, print), ValueError),
        ((signal.SIGKILL, print), RuntimeError),
        (("SIGUSR1", print), TypeError),
    ],
)
def test_a_handler_that_asyncio_refuses_leaves_the_descriptor(kind, arguments, error):
    async def main():
        before = wakeup_fd()
        with pytest.raises(error):
            asyncio.get_running_loop().add_signal_handler(*arguments)
        return before == wakeup_fd()

    assert kind.run(main)


def test_a_signal_that_is_not_the_guests_is_passed_on_to_the_host(queue_kind, quiet_usr2):
    async def main():
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, event.set)
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR1)
        await event.wait()
        await asyncio.sleep(0.001)

    with host_wakeup() as (receive, _):
        queue_kind.run(main)
        assert receive.recv(10) == bytes([signal.SIGUSR2])


def test_a_signal_with_nobody_to_pass_it_on_to_is_dropped(queue_kind, quiet_usr2):
    async def main():
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, event.set)
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR1)
        await event.wait()

    queue_kind.run(main)


def test_a_host_whose_wakeup_descriptor_is_broken_is_no_error(queue_kind, quiet_usr2):
    async def main():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, print)
        os.kill(os.getpid(), signal.SIGUSR2)
        await asyncio.sleep(0.005)
        loop.remove_signal_handler(signal.SIGUSR1)
        return wakeup_fd()

    read, write = os.pipe()
    os.close(read)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    try:
        assert queue_kind.run(main) == write
    finally:
        signal.set_wakeup_fd(-1)
        os.close(write)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_guests_give_the_descriptor_back_in_any_order(queue_kind, order):
    fds = []

    def setup(api):
        guests = []

        async def guest(number):
            loop = asyncio.get_running_loop()
            loop.add_signal_handler((signal.SIGUSR1, signal.SIGUSR2)[number % 2], print)
            event = asyncio.Event()
            guests.append((number, event))
            if len(guests) == 3:
                api.post(next_one)
            await event.wait()

        remaining = list(order)

        def next_one():
            dict(guests)[remaining.pop(0)].set()

        def done(result):
            result.unwrap()
            fds.append(wakeup_fd())
            if remaining:
                next_one()
            else:
                api.finish()

        for number in range(3):
            api.start(guest, number, done_callback=done)

    with host_wakeup() as (_, fd):
        queue_kind.loop(setup)
    assert fds[-1] == fd
    assert Borrowed._chain == []


def test_a_stranger_that_took_the_descriptor_keeps_it(queue_kind):
    receive, send = socket.socketpair()
    send.setblocking(False)

    async def main():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, print)
        signal.set_wakeup_fd(send.fileno())  # a library, in between
        loop.remove_signal_handler(signal.SIGUSR1)
        return wakeup_fd()

    try:
        assert queue_kind.run(main) == send.fileno()
    finally:
        signal.set_wakeup_fd(-1)
        receive.close()
        send.close()


def test_two_guests_get_their_own_signals(kind):
    async def guest(number, sent, received):
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        loop.add_signal_handler(number, event.set)
        sent.append(number)
        await event.wait()
        received.append(number)

    received = []

    def setup(api):
        ready = []
        ended = []

        def send():
            if len(ready) < 2:
                api.post(send)
            else:
                os.kill(os.getpid(), signal.SIGUSR1)
                os.kill(os.getpid(), signal.SIGUSR2)

        def done(result):
            result.unwrap()
            ended.append(1)
            if len(ended) == 2:
                api.finish()

        for number in (signal.SIGUSR1, signal.SIGUSR2):
            api.start(guest, number, ready, received, done_callback=done)
        send()

    kind.loop(setup)
    assert sorted(received) == [signal.SIGUSR1, signal.SIGUSR2]


def test_outside_the_main_thread_asyncio_refuses_as_ever(queue_kind):
    async def main():
        with pytest.raises((ValueError, RuntimeError)):
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)
        return "refused"

    results = []
    thread = threading.Thread(target=lambda: results.append(queue_kind.run(main)))
    thread.start()
    thread.join()
    assert results == ["refused"]

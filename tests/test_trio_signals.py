"""Signals and the wake-up descriptor, under Trio."""

import asyncio
import os
import signal
import sys

import pytest
import trio

from aioguest.hosts.trio import open_guest, run_asyncio

pytestmark = [
    pytest.mark.trio,
    pytest.mark.skipif(sys.platform == "win32", reason="asyncio has signal handlers on Unix only"),
]


def wakeup_fd():
    """Who has the wake-up descriptor now. (Python can tell only by changing it.)"""
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    return fd


def kill(sig=signal.SIGUSR1):
    os.kill(os.getpid(), sig)


async def wait_for_signal(sig=signal.SIGUSR1, kill_it=True):
    loop = asyncio.get_running_loop()
    got = asyncio.Event()
    loop.add_signal_handler(sig, got.set)
    try:
        if kill_it:
            loop.call_later(0.005, kill, sig)
        await asyncio.wait_for(got.wait(), 20)
    finally:
        assert loop.remove_signal_handler(sig)


async def test_a_guests_signal_handler_works():
    await run_asyncio(wait_for_signal)


async def test_trios_wakeup_descriptor_is_back_after_the_removal():
    trios = wakeup_fd()
    assert trios != -1

    async def program():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, print)
        guests = wakeup_fd()
        assert guests not in (-1, trios)
        loop.add_signal_handler(signal.SIGUSR2, print)
        assert wakeup_fd() == guests
        assert loop.remove_signal_handler(signal.SIGUSR1)
        assert wakeup_fd() == guests
        assert loop.remove_signal_handler(signal.SIGUSR2)
        assert wakeup_fd() == trios
        assert not loop.remove_signal_handler(signal.SIGUSR2)
        assert wakeup_fd() == trios

    await run_asyncio(program)
    assert wakeup_fd() == trios


async def test_trios_wakeup_descriptor_is_back_after_a_run_that_left_its_handler():
    trios = wakeup_fd()
    handler = signal.getsignal(signal.SIGUSR1)

    async def program():
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)

    await run_asyncio(program)
    assert wakeup_fd() == trios
    assert signal.getsignal(signal.SIGUSR1) is handler


async def test_a_handler_that_cannot_be_added_leaves_the_descriptor_alone():
    trios = wakeup_fd()

    async def program():
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGKILL, print)
        with pytest.raises(ValueError):
            asyncio.get_running_loop().add_signal_handler(9999, print)
        return wakeup_fd()

    assert await run_asyncio(program) == trios


async def test_trio_wakes_up_for_a_signal_while_the_guest_has_the_descriptor():
    async with open_guest() as guest:
        guest.loop.add_signal_handler(signal.SIGUSR2, print)
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            guest.loop.call_later(0.005, kill)
            with trio.fail_after(20):
                async for sig in signals:
                    assert sig == signal.SIGUSR1
                    break
        guest.loop.remove_signal_handler(signal.SIGUSR2)


async def test_trios_receiver_and_the_guests_handlers_side_by_side():
    guests = []

    async def receive(task_status):
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            task_status.started()
            async for sig in signals:
                assert sig == signal.SIGUSR1
                return

    async def both():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR2, guests.append, 2)
        kill(signal.SIGUSR1)
        kill(signal.SIGUSR2)
        while not guests:
            await asyncio.sleep(0.001)

    trios = wakeup_fd()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: receive(task_status))
            nursery.start_soon(run_asyncio, both)
    assert guests == [2]
    assert wakeup_fd() == trios


async def test_a_receiver_opened_while_the_guest_has_the_descriptor():
    async with open_guest() as guest:
        await guest.run(wait_for_signal, signal.SIGUSR2)
        got = []
        guest.loop.add_signal_handler(signal.SIGUSR2, got.append, True)
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            kill(signal.SIGUSR2)
            kill(signal.SIGUSR1)
            with trio.fail_after(20):
                assert await signals.__anext__() == signal.SIGUSR1
                while not got:
                    await trio.sleep(0.001)


async def test_two_guests_have_handlers_and_give_the_descriptor_back_in_any_order():
    trios = wakeup_fd()
    for first_to_go in (0, 1):
        got = []
        async with open_guest() as one, open_guest() as two:
            one.loop.add_signal_handler(signal.SIGUSR1, got.append, 1)
            two.loop.add_signal_handler(signal.SIGUSR2, got.append, 2)
            kill(signal.SIGUSR1)
            kill(signal.SIGUSR2)
            with trio.fail_after(20):
                while len(got) < 2:
                    await trio.sleep(0.001)
            loops = [(one.loop, signal.SIGUSR1), (two.loop, signal.SIGUSR2)]
            loop, sig = loops.pop(first_to_go)
            loop.remove_signal_handler(sig)
            got.clear()
            loop, sig = loops.pop()
            kill(sig)
            with trio.fail_after(20):
                while not got:
                    await trio.sleep(0.001)
            loop.remove_signal_handler(sig)
            assert wakeup_fd() == trios
    assert wakeup_fd() == trios


async def test_a_guest_may_handle_sigint_itself():
    await run_asyncio(wait_for_signal, signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_DFL


async def test_a_subprocess_of_the_guest_ends():
    async def program():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print('hello')", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        return out.strip(), process.returncode

    watcher = None
    if sys.version_info < (3, 12):  # The default watcher needs a thread or a main loop.
        watcher = asyncio.get_child_watcher()
    try:
        assert await run_asyncio(program) == (b"hello", 0)
    finally:
        if watcher is not None:
            watcher.close()

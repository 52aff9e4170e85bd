"""Ctrl+C: one KeyboardInterrupt, in the host, after the guest was shut down in order.

Each program runs in a subprocess, and gets a real SIGINT when it says "ready".
"""

import signal
import subprocess
import sys
import textwrap

import pytest

PROLOGUE = """
import asyncio, sys, time, threading
import trio
from aioguest.hosts.trio import TrioHost, current_guest, open_guest, run_asyncio

def say(*words):
    print(*words, flush=True)

def ready():
    say("ready")

def run(main):
    try:
        trio.run(main)
    except KeyboardInterrupt:
        say("KeyboardInterrupt")
    else:
        say("no exception")
    say("threads", threading.active_count())
"""


def interrupted(program):
    """The lines that `program` prints after "ready", when it gets a SIGINT there."""
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", PROLOGUE + textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        for line in process.stdout:
            if line == b"ready\n":
                break
            pytest.fail(f"not ready: {line!r}")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    err = b"".join(line for line in err.splitlines(True) if b"Executing <" not in line)
    assert err.decode() == ""
    assert process.returncode == 0
    return out.decode().splitlines()


ORDERLY = ["guest cleaned up", "KeyboardInterrupt", "threads 1"]


def test_while_trio_sleeps_in_run_asyncio():
    lines = interrupted(
        """
        async def program():
            try:
                asyncio.get_running_loop().call_later(0.01, ready)
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                say("guest cleaned up")

        run(lambda: run_asyncio(program))
        """
    )
    assert lines == ORDERLY


def test_while_the_guest_computes_in_run_asyncio():
    lines = interrupted(
        """
        async def program():
            try:
                ready()
                end = time.monotonic() + 0.3
                while time.monotonic() < end:
                    pass
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                say("guest cleaned up")

        run(lambda: run_asyncio(program))
        """
    )
    assert lines == ORDERLY


def test_while_the_guest_is_busy_with_many_iterations():
    lines = interrupted(
        """
        async def program():
            try:
                ready()
                while True:
                    await asyncio.sleep(0)
            finally:
                await asyncio.sleep(0.01)
                say("guest cleaned up")

        run(lambda: run_asyncio(program))
        """
    )
    assert lines == ORDERLY


def test_while_the_guests_main_task_is_in_a_call_of_open_guest():
    lines = interrupted(
        """
        async def program():
            try:
                asyncio.get_running_loop().call_later(0.01, ready)
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                say("guest cleaned up")

        async def main():
            async with open_guest() as guest:
                await guest.run(program)

        run(main)
        """
    )
    assert lines == ORDERLY


def test_while_the_body_of_open_guest_sleeps_and_a_task_runs():
    lines = interrupted(
        """
        async def program():
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                say("guest cleaned up")

        async def main():
            async with open_guest() as guest:
                guest.loop.create_task(program())
                await trio.sleep(0.01)
                ready()
                await trio.sleep_forever()

        run(main)
        """
    )
    assert lines == ORDERLY


def test_while_the_guest_computes_in_open_guest():
    lines = interrupted(
        """
        async def program():
            try:
                ready()
                end = time.monotonic() + 0.3
                while time.monotonic() < end:
                    pass
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                say("guest cleaned up")

        async def main():
            async with open_guest() as guest:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(guest.run, program)

        try:
            run(main)
        except BaseException as exc:  # A nursery's group: Trio's own way with it.
            assert [type(exc) for exc in exc.exceptions] == [KeyboardInterrupt]
            say("KeyboardInterrupt")
            say("threads", threading.active_count())
        """
    )
    assert lines == ORDERLY


def test_while_trio_computes_in_the_body_of_open_guest():
    lines = interrupted(
        """
        async def program():
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                say("guest cleaned up")

        async def main():
            async with open_guest() as guest:
                guest.loop.create_task(program())
                await trio.sleep(0.01)
                ready()
                while True:
                    pass

        run(main)
        """
    )
    assert lines == ORDERLY


def test_while_asyncio_waits_for_a_call_of_trios():
    lines = interrupted(
        """
        async def forever():
            ready()
            try:
                await trio.sleep_forever()
            finally:
                say("Trio call cleaned up")

        async def program():
            try:
                await current_guest().run_trio(forever)
            finally:
                await current_guest().run_trio(trio.sleep, 0.01)
                say("guest cleaned up")

        run(lambda: run_asyncio(program))
        """
    )
    assert lines == ["Trio call cleaned up", *ORDERLY]


def test_a_guest_that_ends_in_spite_of_it_cannot_swallow_it():
    lines = interrupted(
        """
        async def program():
            try:
                asyncio.get_running_loop().call_later(0.01, ready)
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                say("guest cleaned up")

        async def main():
            await run_asyncio(program)
            say("the caller goes on")
            await trio.sleep(0)

        run(main)
        """
    )
    assert lines[0] == "guest cleaned up"
    assert lines[-2:] == ["KeyboardInterrupt", "threads 1"]


def test_a_guest_inside_trio_inside_asyncio():
    lines = interrupted(
        """
        from aioguest.hosts.asyncio import AsyncioHost

        async def program():
            try:
                asyncio.get_running_loop().call_later(0.01, ready)
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                say("guest cleaned up")

        async def main():
            done = asyncio.get_running_loop().create_future()
            trio.lowlevel.start_guest_run(
                run_asyncio, program,
                run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
                done_callback=done.set_result,
                restrict_keyboard_interrupt_to_checkpoints=True,
            )
            return (await done).unwrap()

        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(main())
        except KeyboardInterrupt:
            say("KeyboardInterrupt")
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        say("threads", 1)
        """
    )
    assert lines == ORDERLY

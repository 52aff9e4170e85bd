"""A raw guest that still runs when trio.run()'s main task ends."""

import asyncio
import contextlib
import gc
import logging
import socket
import subprocess
import sys
import time
import warnings

import pytest
import trio

import aioguest
from aioguest.hosts.trio import TrioHost, current_guest, open_guest, run_asyncio

WAITS = ["readiness", "thread"]


def options(wait):
    if wait == "readiness":
        return {"host": TrioHost()}
    return {"run_sync_soon_threadsafe": trio.lowlevel.current_trio_token().run_sync_soon}


def wake(task):
    """With the thread wait nobody hears of Trio's end until the guest has work to do."""
    if not task.done():
        with contextlib.suppress(RuntimeError):  # By now the loop may have been closed for it.
            task.get_loop().call_soon(lambda: None)
    gc.collect()
    until(task.get_loop().is_closed)


def until(condition):
    """Another thread may be ending the run."""
    for _ in range(20000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("not in 20 seconds")


async def waits_for_io(record):
    reader, writer = await asyncio.open_connection(*record["address"])
    try:
        record["event"].set()
        await reader.readline()
    finally:
        writer.close()


async def waits_for_a_timer(record):
    record["event"].set()
    await asyncio.sleep(3600)


async def waits_for_nothing(record):
    record["event"].set()
    await asyncio.get_running_loop().create_future()


async def is_busy(record):
    record["event"].set()
    while True:
        await asyncio.sleep(0)


async def is_at_its_end(record):
    record["event"].set()
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0.01)


STAGES = [waits_for_io, waits_for_a_timer, waits_for_nothing, is_busy, is_at_its_end]


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("stage", STAGES)
def test_an_abandoned_guest_warns_cleans_up_and_closes_its_loop(stage, wait, caplog):
    record = {"cleaned": []}

    async def program():
        record["loop"] = asyncio.get_running_loop()
        record["leftover"] = asyncio.ensure_future(leftover())
        try:
            await stage(record)
        finally:
            await asyncio.sleep(0.001)
            record["cleaned"].append("main")

    async def leftover():
        try:
            await asyncio.sleep(3600)
        finally:
            record["cleaned"].append("leftover")

    async def main():
        record["event"] = trio.Event()
        task = record["task"] = aioguest.start_guest_run(
            program, done_callback=record.setdefault, tick_budget=0, **options(wait)
        )
        await record["event"].wait()
        if stage is not is_busy:
            await trio.sleep(0.01)
        if stage is is_at_its_end:
            task.cancel()

    caplog.set_level(logging.WARNING, "aioguest")
    with pytest.warns(RuntimeWarning, match="asyncio guest run got abandoned"):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            record["address"] = silent.getsockname()
            trio.run(main)
            wake(record["task"])
    assert record["cleaned"] == ["main", "leftover"]
    assert record["task"].cancelled()
    assert record["leftover"].cancelled()
    assert record["loop"].is_closed()
    until(lambda: "couldn't deliver the guest exception: CancelledError(" in caplog.text)


@pytest.mark.parametrize("wait", WAITS)
def test_a_guest_started_in_the_very_last_moment_is_abandoned_too(wait):
    ran = []

    async def program():
        ran.append("began")
        try:
            await asyncio.sleep(3600)
        finally:
            ran.append("ended")

    async def main():
        return aioguest.start_guest_run(program, done_callback=ran.append, **options(wait))

    with pytest.warns(RuntimeWarning, match="asyncio guest run got abandoned"):
        task = trio.run(main)
        wake(task)
    assert task.cancelled()
    assert ran in ([], ["began", "ended"])


@pytest.mark.parametrize("wait", WAITS)
def test_an_abandoned_guests_value_is_logged(wait, caplog):
    async def program():
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "kept"

    async def main():
        task = aioguest.start_guest_run(program, done_callback=print, **options(wait))
        await trio.sleep(0.01)
        return task

    with pytest.warns(RuntimeWarning, match="asyncio guest run got abandoned"):
        wake(trio.run(main))
    until(lambda: "couldn't deliver the guest result: 'kept'" in caplog.text)


def test_several_guests_are_abandoned_together():
    ended = []

    async def program(name):
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(name)

    async def main():
        tasks = [
            aioguest.start_guest_run(program, name, done_callback=print, **options(wait))
            for name, wait in enumerate(WAITS * 2)
        ]
        await trio.sleep(0.01)
        return tasks

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for task in trio.run(main):
            wake(task)
    assert sorted(ended) == [0, 1, 2, 3]
    assert len([w for w in caught if "got abandoned" in str(w.message)]) == 4


def test_a_guest_that_is_not_abandoned_does_not_warn():
    async def main():
        async with open_guest() as guest:
            await guest.run(asyncio.sleep, 0)
        await run_asyncio(asyncio.sleep, 0)

    trio.run(main)
    gc.collect()


def test_an_abandoned_raw_guest_with_a_failing_main_of_trio():
    async def main():
        aioguest.start_guest_run(asyncio.sleep, 3600, done_callback=print, host=TrioHost())
        await trio.sleep(0.01)
        raise ValueError("Trio's own")

    with pytest.warns(RuntimeWarning, match="got abandoned"):
        with pytest.raises(ValueError, match="Trio's own"):
            trio.run(main)
        gc.collect()


CRASHED = """
import asyncio, trio
from trio._core._run import GLOBAL_RUN_CONTEXT
from aioguest.hosts.trio import current_guest, run_asyncio

async def program():
    try:
        await current_guest().run_trio(trio.sleep_forever)
    finally:
        print("asyncio cleaned up")

async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_asyncio, program)
        await trio.sleep(0.01)
        # As Trio's own tests crash it.
        type(GLOBAL_RUN_CONTEXT.runner.io_manager).process_events = None
        await trio.sleep(0.01)

try:
    trio.run(main)
except trio.TrioInternalError:
    print("crashed")
"""


def test_a_call_into_a_trio_that_crashed_is_cancelled_at_exit_at_the_latest():
    """The waiting guest refers to the crashed Trio, and so keeps what it waits for alive."""
    process = subprocess.run(
        [sys.executable, "-c", CRASHED], timeout=30, capture_output=True, text=True
    )
    assert process.stdout.split("\n") == ["crashed", "asyncio cleaned up", ""]
    assert "got abandoned" in process.stderr
    assert process.returncode == 0


async def trio_forever(record):
    try:
        await trio.sleep_forever()
    finally:
        record.append("trio")


async def trio_values(record):
    try:
        yield 1
        await trio.sleep_forever()
    finally:
        record.append("trio")


async def just_waits(record):
    await asyncio.sleep(3600)


async def calls_trio(record):
    await current_guest().run_trio(trio_forever, record)


async def calls_trio_nursery(record):
    async def in_a_nursery():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_forever, record)

    await current_guest().run_trio(in_a_nursery)


async def iterates_trio(record):
    async for _ in current_guest().iterate_trio(trio_values(record)):
        pass


@pytest.mark.parametrize("door", ["run_asyncio", "open_guest"])
@pytest.mark.parametrize("does", [just_waits, calls_trio, calls_trio_nursery, iterates_trio])
def test_a_guest_in_a_system_task_ends_in_order_with_trio(does, door):
    """It is not abandoned: its caller is there and waits for it."""
    record = []

    async def program():
        try:
            await does(record)
        finally:
            await asyncio.sleep(0.001)
            record.append("asyncio")

    async def call():
        async with open_guest() as guest:
            await guest.run(program)

    async def main():
        if door == "run_asyncio":
            trio.lowlevel.spawn_system_task(run_asyncio, program)
        else:
            trio.lowlevel.spawn_system_task(call)
        await trio.sleep(0.01)

    trio.run(main)
    assert record == ([] if does is just_waits else ["trio"]) + ["asyncio"]


@pytest.mark.parametrize("door", ["run_asyncio", "open_guest"])
def test_a_finally_of_a_guest_in_a_system_task_can_still_await_asyncio(door):
    record = []

    async def program():
        try:
            await asyncio.sleep(3600)
        finally:
            for _ in range(5):
                await asyncio.sleep(0.001)
            record.append("cleaned up")

    async def call():
        async with open_guest() as guest:
            guest.loop.create_task(program())
            await trio.sleep_forever()

    async def main():
        if door == "run_asyncio":
            trio.lowlevel.spawn_system_task(run_asyncio, program)
        else:
            trio.lowlevel.spawn_system_task(call)
        await trio.sleep(0.01)

    trio.run(main)
    assert record == ["cleaned up"]


@pytest.mark.parametrize("does", [calls_trio, iterates_trio])
def test_a_shielded_guest_in_a_system_task_hears_that_trio_has_ended(does):
    record = []

    async def program():
        with pytest.raises(asyncio.CancelledError, match="Trio has ended"):
            await does(record)
        await asyncio.sleep(0.001)
        record.append("asyncio")

    async def shielded():
        with trio.CancelScope(shield=True):
            await run_asyncio(program)

    async def main():
        trio.lowlevel.spawn_system_task(shielded)
        await trio.sleep(0.01)

    trio.run(main)
    assert record == ["trio", "asyncio"]

"""The rows: what is run in each candidate, and what is measured of it.

Every row is a function of a candidate and a time scale. It returns its metrics; their
names, units and directions are in the table of run.py.
"""

from __future__ import annotations

import asyncio
import gc
import glob
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from typing import Any, Awaitable, Callable, Dict, List

from candidates import CANDIDATES, Candidate, PlainAsyncio, versions

# What may be missing in an environment. Any other import error is a bug.
REQUIREMENTS = ("trio", "outcome", "sniffio", "greenlet", "attrs", "trio_asyncio")

Metrics = Dict[str, Any]
clock = time.perf_counter


def emit(result: Metrics) -> None:
    """Print the sample and exit at once: how the guests that are left end is not measured."""
    print(json.dumps(result), flush=True)
    os._exit(0)


async def _rate(step: Callable[[], Awaitable[Any]], seconds: float, batch: int) -> float:
    """How often a second `step` can be awaited, after a warm-up."""
    for _ in range(batch):
        await step()
    count, begin = 0, clock()
    end = begin + seconds
    while True:
        for _ in range(batch):
            await step()
        count += batch
        now = clock()
        if now >= end:
            return count / (now - begin)


async def _echo_rate(port: int, seconds: float) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def round_trip() -> None:
        writer.write(b"x")
        if await reader.read(100) != b"x":
            raise AssertionError("that is not what was sent")

    rate = await _rate(round_trip, seconds, 100)
    writer.close()
    return rate


def echo(candidate: Candidate, scale: float) -> Metrics:
    """One-byte round trips over streams, with the server in the same loop."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            data = await reader.read(100)
            if not data:
                writer.close()
                return
            writer.write(data)

    async def program() -> float:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        rate = await _echo_rate(server.sockets[0].getsockname()[1], 0.4 * scale)
        await asyncio.sleep(0.01)
        server.close()
        return rate

    return {"echo": candidate.run(program)}


def remote_echo(candidate: Candidate, scale: float) -> Metrics:
    """One-byte round trips over streams, with the server in another process."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "echo_server.py")
    with subprocess.Popen([sys.executable, "-S", path], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        try:
            return {"remote_echo": candidate.run(_echo_rate, port, 0.5 * scale)}
        except BaseException:
            server.kill()
            raise


def sleep0(candidate: Candidate, scale: float) -> Metrics:
    """One task that yields again and again."""

    async def step() -> None:
        await asyncio.sleep(0)

    return {"sleep0": candidate.run(_rate, step, 0.4 * scale, 500)}


async def _late(delay: float) -> float:
    """By how many milliseconds a sleep is late."""
    begin = clock()
    await asyncio.sleep(delay)
    return (clock() - begin - delay) * 1e3


def timers(candidate: Candidate, scale: float) -> Metrics:
    """1000 tasks that sleep 10 ms at once, in bursts."""

    async def program() -> float:
        late: List[float] = []
        for _ in range(max(2, round(10 * scale))):
            late += await asyncio.gather(*[_late(0.01) for _ in range(1000)])
        return sum(late) / len(late)

    return {"timers": candidate.run(program)}


def lone_timer(candidate: Candidate, scale: float) -> Metrics:
    """One task that sleeps 10 ms again and again, in an idle loop."""

    async def program() -> float:
        late = [await _late(0.01) for _ in range(max(5, round(40 * scale)))]
        return sum(late) / len(late)

    return {"lone_timer": candidate.run(program)}


def _switches(without_thread: int) -> int:
    """The voluntary context switches so far of all threads but one."""
    total = 0
    for path in glob.glob("/proc/self/task/*/status"):
        if path.split("/")[4] == str(without_thread):
            continue
        with open(path) as lines:
            for line in lines:
                if line.startswith("voluntary_ctxt_switches:"):
                    total += int(line.split()[1])
    return total


def idle(candidate: Candidate, scale: float) -> Metrics:
    """A guest that awaits one hour's sleep, seen from a thread that is not counted."""
    result: Metrics = {}

    def observe(loop: asyncio.AbstractEventLoop, task: Any) -> None:
        me = threading.get_native_id()
        linux = os.path.isdir("/proc/self/task")
        time.sleep(0.3)  # until the start has settled
        switches = _switches(me) if linux else 0
        cpu, own, begin = time.process_time(), time.thread_time(), clock()
        time.sleep(2)  # of whatever scale: this is the unit of idle_wakeups
        cpu = (time.process_time() - cpu) - (time.thread_time() - own)
        result["idle_cpu"] = max(0.0, cpu) / (clock() - begin) * 100
        if linux:
            result["idle_wakeups"] = _switches(me) - switches
        loop.call_soon_threadsafe(task.cancel)

    async def program() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        observer = threading.Thread(target=observe, args=(loop, task))
        observer.start()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            observer.join()

    candidate.run(program)
    return result


def fairness(candidate: Candidate, scale: float) -> Metrics:
    """A host's task that sleeps 5 ms again and again while ten tasks of the guest spin."""
    late: List[float] = []
    spins = 0
    over = False

    async def spin() -> None:
        nonlocal spins
        while not over:
            spins += 1
            await asyncio.sleep(0)

    async def program() -> None:
        await asyncio.gather(*[spin() for _ in range(10)])

    async def beat() -> None:
        nonlocal over
        await candidate.sleep(0.05)
        end = clock() + 0.8 * scale
        while clock() < end:
            begin = clock()
            await candidate.sleep(0.005)
            late.append((clock() - begin - 0.005) * 1e3)
        over = True

    async def guest() -> None:
        await candidate.guest(program)

    begin = clock()
    candidate.run_host(candidate.together, guest, beat)
    rate = spins / (clock() - begin)
    late.sort()
    return {
        "fairness_p50": late[len(late) // 2],
        "fairness_p99": late[int(len(late) * 0.99)],
        "fairness_rate": rate,
    }


def startup(candidate: Candidate, scale: float) -> Metrics:
    """Empty runs, one after the other, in one host. Plain asyncio: ``asyncio.run()``."""
    runs = max(20, round(300 * scale))

    async def empty() -> None:
        pass

    if type(candidate) is PlainAsyncio:
        for _ in range(5):
            asyncio.run(empty())
        begin = clock()
        for _ in range(runs):
            asyncio.run(empty())
        return {"startup": (clock() - begin) / runs * 1e6}

    async def program() -> float:
        for _ in range(5):
            await candidate.guest(empty)
        begin = clock()
        for _ in range(runs):
            await candidate.guest(empty)
        return (clock() - begin) / runs * 1e6

    return {"startup": candidate.run_host(program)}


def _resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory(candidate: Candidate, scale: float) -> Metrics:
    """Resident memory of 100 idle guests in one host. Plain asyncio: of 100 loops."""
    if not os.path.exists("/proc/self/statm"):
        return {}
    count, warm_up = 100, 10

    async def idle_guest() -> None:
        await asyncio.sleep(3600)

    if type(candidate) is PlainAsyncio:
        kept: List[Any] = []
        for number in range(warm_up + count):
            if number == warm_up:
                before = _resident_bytes()
            loop = asyncio.new_event_loop()
            kept.append((loop, loop.create_task(idle_guest())))
            loop.run_until_complete(asyncio.sleep(0))
        emit({"memory": (_resident_bytes() - before) / count / 1024})

    async def guest() -> None:
        try:
            await candidate.guest(idle_guest)
        except BaseException as exc:  # The other guests would outlive it for an hour.
            if "when an asyncio event loop is already running" in str(exc):
                emit({"unsupported": f"several guests in one thread: {exc}"})  # 0.1.0
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    async def measure() -> None:
        await candidate.sleep(0.2)
        before = _resident_bytes()

        async def read() -> None:
            await candidate.sleep(0.2 + count * 0.005)
            emit({"memory": (_resident_bytes() - before) / count / 1024})

        await candidate.together(*[guest] * count, read)

    candidate.run_host(candidate.together, *[guest] * warm_up, measure)
    raise AssertionError("the guests ended")


def info(candidate: Candidate, scale: float) -> Metrics:
    """Whether it works at all, and the versions."""
    candidate.run(asyncio.sleep, 0.001)
    return {"versions": versions()}


ROWS: Dict[str, Callable[[Candidate, float], Metrics]] = {
    function.__name__: function
    for function in (
        echo,
        remote_echo,
        sleep0,
        timers,
        lone_timer,
        idle,
        fairness,
        startup,
        memory,
        info,
    )
}


def measure(row: str, candidate: str, scale: float) -> Metrics:
    return ROWS[row](CANDIDATES[candidate.partition("@")[0]](), scale)

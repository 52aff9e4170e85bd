"""``python -m aioguest demo``: aiohttp, client and server, as a guest in a Trio program.

What runs, all of it in one thread unless the summary says otherwise:

    Trio (the host)                      asyncio (the guest)
    -----------------------------------  ----------------------------------------------
    _beat: every 20 ms, how late?        an aiohttp server
    _ask: every 20 ms, a guest.run()     an aiohttp client: many requests to it at once
    _report: the progress
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import threading
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Optional, Sequence, Set

import aiohttp
import trio
from aiohttp import web

import aioguest
from aioguest.hosts.trio import Guest, open_guest

_BEAT = 0.020  # seconds between two beats
_ANSWER = (0.1, 0.3)  # seconds that the server takes to answer, at least and at most


class _Tally:
    """What happened so far. Both sides write to it: they are in one thread."""

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.answered = 0
        self.beats = 0
        self.latest = 0.0  # seconds
        self.calls = 0
        self.slowest = 0.0  # seconds
        self.threads: Set[str] = set()


# asyncio's side


async def _answer(request: web.Request) -> web.Response:
    await asyncio.sleep(random.uniform(*_ANSWER))
    return web.Response(text=str(int(request.query["number"]) ** 2))


async def _start_server() -> web.AppRunner:
    app = web.Application()
    app.router.add_get("/square", _answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    return runner


async def _make_requests(url: str, concurrency: int, tally: _Tally) -> None:
    numbers = iter(range(tally.requests))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def client(delay: float) -> None:
            await asyncio.sleep(delay)
            for number in numbers:
                async with session.get(url, params={"number": str(number)}) as response:
                    answer = await response.text()
                if answer != str(number**2):
                    raise RuntimeError(f"asked for {number} squared, got {answer!r}")
                tally.answered += 1

        # Not all in one iteration of the loop: nobody can interrupt one, neither Trio.
        longest = _ANSWER[1]
        await asyncio.gather(*(client(longest * i / concurrency) for i in range(concurrency)))


async def _count_tasks() -> int:
    return len(asyncio.all_tasks())


# Trio's side


async def _beat(tally: _Tally) -> None:
    due = trio.current_time()
    while True:
        due += _BEAT
        await trio.sleep_until(due)
        now = trio.current_time()
        tally.beats += 1
        tally.latest = max(tally.latest, now - due)
        tally.threads.update(thread.name for thread in threading.enumerate())
        due = max(due, now - _BEAT)  # After a long delay: no burst of late beats.


async def _ask(guest: Guest, tally: _Tally) -> None:
    while True:
        await trio.sleep(_BEAT)
        start = trio.current_time()
        await guest.run(_count_tasks)
        tally.calls += 1
        tally.slowest = max(tally.slowest, trio.current_time() - start)


async def _report(tally: _Tally) -> None:
    live = sys.stdout.isatty()
    while True:
        await trio.sleep(0.1 if live else 0.5)
        line = (
            f"{tally.answered:6} of {tally.requests} requests answered, {tally.beats:4} beats, "
            f"the latest {tally.latest * 1000:.1f} ms late"
        )
        print(f"\r{line}" if live else line, end="" if live else "\n", flush=True)


@asynccontextmanager
async def _server(guest: Guest) -> AsyncIterator[str]:
    runner = await guest.run(_start_server)
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/square"
    finally:
        with trio.CancelScope(shield=True):
            await guest.run(runner.cleanup)


async def _demo(tally: _Tally, concurrency: int) -> None:
    async with open_guest() as guest, _server(guest) as url:
        print(
            f"Trio {trio.__version__}, Python {sys.version.split()[0]}; its guest is a "
            f"{type(guest.loop).__name__} with an aiohttp {aiohttp.__version__} server at {url}"
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_beat, tally)
            nursery.start_soon(_ask, guest, tally)
            nursery.start_soon(_report, tally)
            start = trio.current_time()
            await guest.run(_make_requests, url, concurrency, tally)
            seconds = trio.current_time() - start
            nursery.cancel_scope.cancel()
        statistics = aioguest.statistics(guest.loop)
    if sys.stdout.isatty():
        print(end="\r\033[K")  # the progress
    names = ", ".join(sorted(tally.threads))
    print(
        f"requests     {tally.answered} in {seconds:.2f} s, "
        f"{tally.answered / seconds:.0f} a second, {concurrency} at a time\n"
        f"heartbeat    {tally.beats} beats, one every {_BEAT * 1000:.0f} ms; "
        f"the latest came {tally.latest * 1000:.1f} ms late\n"
        f"guest.run()  {tally.calls} calls from Trio into asyncio; "
        f"the slowest took {tally.slowest * 1000:.1f} ms\n"
        f"threads      {len(tally.threads)} ({names})\n"
        f"ticks        {statistics.ticks}, with {statistics.iterations} iterations of "
        "asyncio's loop"
    )


def _allow_files(count: int) -> None:
    """Every request takes two descriptors, and some systems allow no more than 256."""
    try:
        import resource
    except ImportError:  # pragma: no cover  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        limit = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _is_interrupt(exc: BaseException) -> bool:
    """Whether it is a KeyboardInterrupt, or a group around one (a nursery makes it)."""
    return isinstance(exc, KeyboardInterrupt) or any(
        _is_interrupt(inner) for inner in getattr(exc, "exceptions", ())
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "number (1 or more)"  # argparse's words for a wrong one


def main(argv: Optional[Sequence[str]] = None, prog: Optional[str] = None) -> int:
    """Run the demo. Returns the exit status: 130 after Ctrl+C."""
    parser = argparse.ArgumentParser(prog=prog, description=_DESCRIPTION)
    parser.add_argument(
        "--requests", type=_positive, default=4000, metavar="N", help="in all (default: 4000)"
    )
    parser.add_argument(
        "--concurrency", type=_positive, default=300, metavar="N", help="at a time (default: 300)"
    )
    options: Any = parser.parse_args(argv)
    concurrency = min(options.concurrency, options.requests)
    _allow_files(2 * concurrency + 100)
    try:
        trio.run(_demo, _Tally(options.requests), concurrency)
    except BaseException as exc:
        if not _is_interrupt(exc):
            raise
        if sys.stdout.isatty():
            print()
        print("Interrupted: the server, the requests and the guest are closed.")
        return 130
    return 0


_DESCRIPTION = (
    "Run a Trio program with an asyncio guest: an aiohttp server, and many requests to it at "
    "once, while Trio's tasks beat every 20 ms and call into the guest."
)

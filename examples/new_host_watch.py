"""A new host that watches descriptors: its guests need no worker thread.

The host is a small event loop on the `selectors` module, as a game, a terminal program or
an embedded interpreter might have. Its own work here is a clock that ticks meanwhile.

    python examples/new_host_watch.py
"""

import asyncio
import collections
import heapq
import itertools
import selectors
import socket
import sys
import threading
import time

import aioguest


class SelectorHost(aioguest.Host):
    def __init__(self):
        self.selector = selectors.DefaultSelector()
        self.calls = collections.deque()
        self.timers = []
        self.numbers = itertools.count()
        self.bell, self.rope = socket.socketpair()
        self.bell.setblocking(False)
        self.rope.setblocking(False)
        self.selector.register(self.bell, selectors.EVENT_READ, lambda: self.bell.recv(4096))

    def call_later(self, delay, fn):
        timer = [time.monotonic() + delay, next(self.numbers), fn]
        heapq.heappush(self.timers, timer)
        return timer

    def run_sync_soon_not_threadsafe(self, fn):
        self.calls.append(fn)

    def run_sync_soon_threadsafe(self, fn):
        self.calls.append(fn)
        try:
            self.rope.send(b"!")
        except BlockingIOError:
            pass  # It is ringing already.

    def watch(self, fd, waiter):
        if sys.platform == "win32":
            return None  # Only sockets can be watched there.
        return SelectorWatch(self, fd, waiter)

    def run(self):
        self.running = True
        while self.running:
            timeout = None
            if self.calls:
                timeout = 0
            elif self.timers:
                timeout = max(0, self.timers[0][0] - time.monotonic())
            for key, _ in self.selector.select(timeout):
                key.data()
            while self.timers and self.timers[0][0] <= time.monotonic():
                heapq.heappop(self.timers)[2]()
            for _ in range(len(self.calls)):
                self.calls.popleft()()

    def quit(self):
        self.running = False

    def close(self):
        self.selector.close()
        self.bell.close()
        self.rope.close()


class SelectorWatch(aioguest.Watch):
    def __init__(self, host, fd, waiter):
        self.host = host
        self.fd = fd
        self.waiter = waiter
        self.timer = None
        # Level-triggered and for ever: so arm() has nothing to do here.
        host.selector.register(fd, selectors.EVENT_READ, waiter.on_readable)

    def set_timer(self, delay):
        self.cancel_timer()
        self.timer = self.host.call_later(delay, self.waiter.on_timer)

    def cancel_timer(self):
        if self.timer is not None:
            self.timer[2] = lambda: None

    def close(self):
        self.cancel_timer()
        self.host.selector.unregister(self.fd)


async def echo(reader, writer):
    while True:
        data = await reader.read(1000)
        if not data:
            break
        writer.write(data)
        await writer.drain()
    writer.close()


async def main():
    """An ordinary asyncio program: 20 clients of a server, and a timer each."""

    async def client(number):
        reader, writer = await asyncio.open_connection(*address)
        for count in range(50):
            await asyncio.sleep(0.001)
            message = b"%d-%d\n" % (number, count)
            writer.write(message)
            assert await reader.readline() == message
        writer.write_eof()
        assert await reader.read() == b""  # The server has closed, too.
        writer.close()
        return count + 1

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    trips = sum(await asyncio.gather(*(client(number) for number in range(20))))
    server.close()
    return f"{trips} round trips, threads: {threading.active_count()}"


host = SelectorHost()
clock = itertools.count()


def tick():
    next(clock)
    host.call_later(0.01, tick)


tick()
print(aioguest.run(main, host=host))
print(f"meanwhile the host's clock ticked {next(clock)} times")
host.close()

"""A new host in about ten lines: a loop that takes functions from a queue and calls them.

A host that cannot watch descriptors is enough: the guest then waits in a worker thread.

    python examples/new_host.py
"""

import asyncio
import queue
import sys
import threading

import aioguest


class QueueHost(aioguest.Host):
    def __init__(self):
        self.calls = queue.SimpleQueue()

    def run_sync_soon_threadsafe(self, fn):  # all that a guest needs
        self.calls.put(fn)

    def run(self):  # for aioguest.run(), which starts the host's loop itself
        self.running = True
        while self.running:
            self.calls.get()()

    def quit(self):
        self.running = False


async def shout(reader, writer):
    line = await reader.readline()
    writer.write(line.upper())
    writer.close()


async def main():
    """An ordinary asyncio program: a server, a client and a subprocess."""
    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "print('hello from a subprocess')"),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    writer.write(output)
    answer = await reader.read()
    writer.close()
    server.close()
    threads = ", ".join(sorted(thread.name for thread in threading.enumerate()))
    return f"{answer.decode().strip()} (threads: {threads})"


print(aioguest.run(main, host=QueueHost()))

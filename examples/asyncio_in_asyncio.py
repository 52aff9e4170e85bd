"""An asyncio loop as the host of another one.

A server runs on the host's loop. Two guests with loops of their own, one of them in debug
mode, are its clients, in the same thread and at the same time. Each loop has its own
tasks, exception handler and executor, and one guest's end is not the others'.

    python examples/asyncio_in_asyncio.py
"""

import asyncio
import threading

from aioguest.hosts.asyncio import run_asyncio


async def answer(reader, writer):
    name = await reader.readline()
    await asyncio.sleep(0.1)
    writer.write(b"hello, " + name)
    await writer.drain()
    writer.close()


async def client(address, name):
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(*address)
    writer.write(name.encode() + b"\n")
    reply = (await reader.readline()).decode().strip()
    writer.close()
    return loop, reply


async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    guests = await asyncio.gather(
        run_asyncio(client, address, "first guest"),
        run_asyncio(client, address, "second guest", debug=True),
    )
    for loop, reply in guests:
        print(f"{reply!r}, debug: {loop.get_debug()}, closed: {loop.is_closed()}")
    loops = {asyncio.get_running_loop(), *(loop for loop, _ in guests)}
    print(f"{len(loops)} loops, {threading.active_count()} thread")
    server.close()


asyncio.run(main())

"""A Trio program that uses aiohttp, a library that only asyncio can run.

Two Trio tasks follow two endless streams of a price server until one of them has seen
enough: then Trio cancels both, the other one in the middle of its wait in asyncio.

    python examples/trio_aiohttp.py
"""

import asyncio
import itertools
from contextlib import asynccontextmanager

import aiohttp
import trio
from aiohttp import web

from aioguest.hosts.trio import open_guest

# Asyncio code: nothing in it knows of Trio.


async def send_prices(request):
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        for price in itertools.count(100):
            await response.write(f"{request.match_info['name']} {price}\n".encode())
            await asyncio.sleep(float(request.query["pause"]))
    except ConnectionResetError:
        pass  # The client left.
    return response


async def start_server():
    app = web.Application()
    app.router.add_get("/{name}", send_prices)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner


async def prices(url):
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as response:
            async for line in response.content:
                yield line.decode().strip()


# Trio code: calls the guest, and is in charge.


@asynccontextmanager
async def price_server(guest):
    runner = await guest.run(start_server)
    try:
        host, port = runner.addresses[0]
        yield f"http://{host}:{port}"
    finally:
        with trio.CancelScope(shield=True):
            await guest.run(runner.cleanup)


async def follow(guest, url, limit, scope):
    seen = []
    try:
        async for price in guest.iterate(prices(url)):
            seen.append(price)
            if len(seen) == limit:
                scope.cancel()
    finally:
        print(f"saw {len(seen)} prices, the last was {seen[-1]!r}")


async def main():
    with trio.fail_after(20):
        async with open_guest() as guest, price_server(guest) as server:
            async with trio.open_nursery() as nursery:
                scope = nursery.cancel_scope
                nursery.start_soon(follow, guest, f"{server}/tea?pause=0.01", 20, scope)
                nursery.start_soon(follow, guest, f"{server}/gin?pause=0.05", 20, scope)


trio.run(main)

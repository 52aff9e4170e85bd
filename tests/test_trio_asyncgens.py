"""Async generators: whoever iterated one first finalizes it."""

import asyncio
import gc
import sys

import pytest
import sniffio
import trio

from aioguest.hosts.trio import current_guest, open_guest, run_asyncio

pytestmark = pytest.mark.trio


def make(record, sleep):
    async def generator():
        try:
            yield 1
            yield 2
        finally:
            try:
                await sleep(0)
            finally:
                record.append(sniffio.current_async_library())

    return generator()


async def until(record):
    with trio.fail_after(20):
        while not record:
            gc.collect()
            await trio.sleep(0.001)


@pytest.mark.filterwarnings("ignore:.*was garbage collected before it had been exhausted")
async def test_trio_finalizes_at_gc_what_trio_iterated():
    record = []
    async with open_guest() as guest:
        generator = make(record, trio.sleep)
        assert await generator.__anext__() == 1
        guest.loop.call_soon(lambda: None)
        del generator
        await until(record)
    assert record == ["trio"]


@pytest.mark.filterwarnings("ignore:.*was garbage collected before it had been exhausted")
async def test_trio_finalizes_even_what_asyncio_code_drops():
    record, box = [], []
    box.append(make(record, trio.sleep))
    assert await box[0].__anext__() == 1

    async def drop():
        box.clear()
        gc.collect()
        await asyncio.sleep(0.001)

    async with open_guest() as guest:
        await guest.run(drop)
        await until(record)
    assert record == ["trio"]


async def test_asyncio_finalizes_at_gc_what_asyncio_iterated():
    record = []

    async def iterate():
        generator = make(record, asyncio.sleep)
        assert await generator.__anext__() == 1

    async with open_guest() as guest:
        await guest.run(iterate)
        await until(record)
    assert record == ["asyncio"]


async def test_asyncio_finalizes_even_what_trio_code_drops():
    record, box = [], []

    async def iterate():
        box.append(make(record, asyncio.sleep))
        await box[0].__anext__()

    async with open_guest() as guest:
        await guest.run(iterate)
        box.clear()
        await until(record)
    assert record == ["asyncio"]


async def test_the_guest_closes_at_its_end_what_is_left():
    record, box = [], []

    async def iterate():
        box.append(make(record, asyncio.sleep))
        await box[0].__anext__()

    await run_asyncio(iterate)
    assert record == ["asyncio"]


async def test_a_call_into_trio_has_trios_hooks():
    async def look():
        return sys.get_asyncgen_hooks()

    async def program():
        return await current_guest().run_trio(look), sys.get_asyncgen_hooks()

    trios, asyncios = await run_asyncio(program)
    assert trios == sys.get_asyncgen_hooks()
    assert asyncios != trios

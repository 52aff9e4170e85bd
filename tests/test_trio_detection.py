"""Which library runs now? sniffio, anyio, httpx and aiologic see the right one at any moment."""

import asyncio
import threading

import pytest
import sniffio
import trio
import trio.lowlevel

from aioguest.hosts.trio import current_guest, open_guest, run_asyncio

anyio = pytest.importorskip("anyio")
httpx = pytest.importorskip("httpx")
aiologic = pytest.importorskip("aiologic")

current = sniffio.current_async_library
trio_test = pytest.mark.trio


@trio_test
async def test_sniffio_names_the_library_of_every_step():
    seen = []

    async def in_asyncio():
        seen.append(("asyncio", current()))
        await asyncio.sleep(0)
        seen.append(("asyncio", current()))
        await current_guest().run_trio(in_trio)
        seen.append(("asyncio", current()))

    async def in_trio():
        seen.append(("trio", current()))
        await trio.lowlevel.checkpoint()
        seen.append(("trio", current()))

    async with open_guest() as guest:
        for _ in range(3):
            await in_trio()
            await guest.run(in_asyncio)
            seen.append(("trio", current()))
    assert {expected == got for expected, got in seen} == {True}
    assert len(seen) == 3 * 8


@trio_test
async def test_callbacks_of_the_loop_are_in_asyncio():
    seen = []

    async def program():
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        loop.call_soon(lambda: seen.append(current()))
        loop.call_later(0.001, lambda: seen.append(current()))
        threading.Thread(
            target=loop.call_soon_threadsafe, args=(lambda: seen.append(current()),)
        ).start()
        loop.call_later(0.02, done.set_result, None)
        done.add_done_callback(lambda _: seen.append(current()))
        await done
        while len(seen) < 4:
            await asyncio.sleep(0.001)

    await run_asyncio(program)
    assert seen == ["asyncio"] * 4
    assert current() == "trio"


@trio_test
async def test_callbacks_from_the_hosts_time_are_in_asyncio():
    seen = []
    async with open_guest() as guest:
        await trio.sleep(0.005)
        guest.loop.call_soon(lambda: seen.append(current()))
        assert current() == "trio"
        while not seen:
            await trio.sleep(0.001)
    assert seen == ["asyncio"]


@trio_test
async def test_the_running_loop_is_the_guests_only_in_its_ticks():
    async def look():
        return asyncio.get_running_loop()

    async with open_guest() as guest:
        assert asyncio._get_running_loop() is None
        assert await guest.run(look) is guest.loop
        assert asyncio._get_running_loop() is None


async def anyio_program(record, name, rounds=20):
    """Everything here works in the right library only."""
    async with anyio.create_task_group() as group:
        for number in range(rounds):
            group.start_soon(anyio.sleep, 0.0001 * number)
            record.append((name, current()))
            await anyio.sleep(0)
    with anyio.move_on_after(0.001) as scope:
        await anyio.sleep(3600)
    assert scope.cancel_called
    record.append((name, await anyio.to_thread.run_sync(lambda: name)))
    send, receive = anyio.create_memory_object_stream(1)
    async with anyio.create_task_group() as group:
        group.start_soon(send.send, 1)
        assert await receive.receive() == 1
    send.close()
    receive.close()
    lock = anyio.Lock()
    async with lock:
        await anyio.lowlevel.checkpoint()
    record.append((name, current()))
    return name


def both_at_once():
    async def main():
        record = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anyio_program, record, "trio")
            nursery.start_soon(run_asyncio, anyio_program, record, "asyncio")
            nursery.start_soon(anyio_program, record, "trio")
            nursery.start_soon(run_asyncio, anyio_program, record, "asyncio")
        return record

    return main


def check(record):
    assert {name for name, _ in record} == {"trio", "asyncio"}
    assert [(name, got) for name, got in record if name != got] == []


def test_anyio_works_in_both_worlds_at_once_under_trio_run():
    check(trio.run(both_at_once()))


def test_anyio_works_in_both_worlds_at_once_under_anyio_run():
    """anyio.run() sets sniffio's context variable, which a guest's tasks inherit."""
    check(anyio.run(both_at_once(), backend="trio"))


def test_anyio_in_callbacks_under_anyio_run():
    async def main():
        seen, tasks = [], []

        async def program():
            done = asyncio.Event()
            loop = asyncio.get_running_loop()

            def callback():
                seen.append(current())
                tasks.append(loop.create_task(in_a_task()))

            async def in_a_task():
                await anyio.sleep(0)
                seen.append(current())
                done.set()

            loop.call_soon(callback)
            await done.wait()

        await run_asyncio(program)
        seen.append(current())
        await anyio.sleep(0)
        return seen

    assert anyio.run(main, backend="trio") == ["asyncio", "asyncio", "trio"]


def test_calls_both_ways_under_anyio_run():
    async def main():
        async def in_asyncio():
            await anyio.sleep(0)
            return current(), await current_guest().run_trio(in_trio), current()

        async def in_trio():
            await anyio.sleep(0)
            return current()

        async with open_guest() as guest:
            result = await guest.run(in_asyncio)
            await anyio.sleep(0)
            return result

    assert anyio.run(main, backend="trio") == ("asyncio", "trio", "asyncio")


@trio_test
async def test_an_anyio_cancel_scope_around_run_asyncio():
    ended = []

    async def program():
        try:
            await anyio.sleep(3600)
        finally:
            ended.append(current())

    with anyio.move_on_after(0.01):
        await run_asyncio(program)
    assert ended == ["asyncio"]


@trio_test
async def test_anyio_to_thread_comes_back_to_its_own_world():
    def work():
        return anyio.from_thread.run_sync(current)

    async def program():
        return await anyio.to_thread.run_sync(work)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(program)
        assert await run_asyncio(program) == "asyncio"
        assert await program() == "trio"


class Server:
    """A small HTTP server of asyncio's that holds its answers until two clients ask."""

    def __init__(self, together):
        self.together = together
        self.waiting = 0

    async def __call__(self, reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        self.waiting += 1
        while self.waiting < self.together:
            await asyncio.sleep(0.001)
        body = request.split()[1]
        writer.write(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        await writer.drain()
        writer.close()


@pytest.mark.parametrize("run", [trio.run, lambda main: anyio.run(main, backend="trio")])
def test_httpx_works_in_both_worlds_at_the_same_moment(run):
    async def get(port, name, answers):
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            response = await client.get(f"http://127.0.0.1:{port}/{name}")
            answers.append((name, response.text, current()))

    async def main():
        answers = []
        async with open_guest() as guest:
            server = await guest.run(asyncio.start_server, Server(4), "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            async with trio.open_nursery() as nursery:
                for number in range(2):
                    nursery.start_soon(get, port, f"trio-{number}", answers)
                    nursery.start_soon(guest.run, get, port, f"asyncio-{number}", answers)
            server.close()
            await guest.run(server.wait_closed)
        return answers

    assert sorted(run(main)) == [
        (f"{library}-{number}", f"/{library}-{number}", library)
        for library in ("asyncio", "trio")
        for number in range(2)
    ]


@trio_test
async def test_an_aiologic_queue_between_the_two_worlds():
    to_asyncio, to_trio = aiologic.SimpleQueue(), aiologic.SimpleQueue()

    async def program():
        got = []
        for number in range(20):
            got.append(await to_asyncio.async_get())
            await to_trio.async_put(number)
        return got

    async def play():
        return [await exchange(number) for number in range(20)]

    async def exchange(number):
        await to_asyncio.async_put(number)
        return await to_trio.async_get()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            results = []

            async def guest():
                results.append(await run_asyncio(program))

            nursery.start_soon(guest)
            assert await play() == list(range(20))
    assert results == [list(range(20))]


@trio_test
async def test_an_aiologic_lock_is_held_by_one_task_of_either_world():
    lock = aiologic.Lock()
    holders = []

    async def hold(sleep):
        for _ in range(10):
            async with lock:
                holders.append(current())
                assert len(holders) == 1
                await sleep(0.0005)
                holders.pop()
            await sleep(0)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(hold, trio.sleep)
                nursery.start_soon(run_asyncio, hold, asyncio.sleep)


@trio_test
async def test_aiologic_names_the_library_in_callbacks_too():
    from aiologic.lowlevel import current_async_library

    seen = []
    async with open_guest() as guest:
        guest.loop.call_soon(lambda: seen.append(current_async_library()))
        while not seen:
            await trio.sleep(0.001)
        assert current_async_library() == "trio"
    assert seen == ["asyncio"]

"""What asyncio programs do, in a guest of every host kind."""

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import threading
import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # cryptography's, on old Pythons
    import trustme


async def closed(writer):
    writer.close()
    try:
        await writer.wait_closed()
    except ConnectionError:
        pass


async def answer(reader, writer):
    while True:
        line = await reader.readline()
        if not line:
            break
        writer.write(line.upper())
        await writer.drain()
    await closed(writer)


async def ask(reader, writer, count=20):
    for number in range(count):
        writer.write(b"line %d\n" % number)
        await writer.drain()
        assert await reader.readline() == b"LINE %d\n" % number
    await closed(writer)
    return count


async def end(server):
    server.close()
    await asyncio.sleep(0.001)  # Let the server's side see the end.
    await server.wait_closed()


def test_tcp_streams(kind):
    async def main():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        connections = [await asyncio.open_connection(*address) for _ in range(3)]
        counts = await asyncio.gather(*[ask(*connection) for connection in connections])
        await end(server)
        return counts

    assert kind.run(main) == [20, 20, 20]


def test_a_large_transfer(kind):
    size = 1_000_000

    async def send(reader, writer):
        writer.write(b"x" * size)
        await writer.drain()
        await closed(writer)

    async def main():
        server = await asyncio.start_server(send, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        data = await reader.read()
        await closed(writer)
        await end(server)
        return len(data)

    assert kind.run(main) == size


def test_unix_sockets(kind, tmp_path):
    async def main():
        path = str(tmp_path / "socket")
        server = await asyncio.start_unix_server(answer, path)
        count = await ask(*(await asyncio.open_unix_connection(path)))
        await end(server)
        return count

    assert kind.run(main) == 20


@pytest.fixture(scope="module")
def contexts():
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


def test_tls(kind, contexts):
    server_context, client_context = contexts

    async def main():
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_context)
        reader, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(), ssl=client_context, server_hostname="localhost"
        )
        count = await ask(reader, writer)
        await end(server)
        return count

    assert kind.run(main) == 20


def test_udp(kind):
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, address):
            self.transport.sendto(data.upper(), address)

    class Client(asyncio.DatagramProtocol):
        def __init__(self):
            self.received = asyncio.Queue()

        def datagram_received(self, data, address):
            self.received.put_nowait(data)

    async def main():
        loop = asyncio.get_running_loop()
        server, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
        address = server.get_extra_info("sockname")
        client, protocol = await loop.create_datagram_endpoint(Client, remote_addr=address)
        try:
            for number in range(10):
                client.sendto(b"packet %d" % number)
                assert await protocol.received.get() == b"PACKET %d" % number
        finally:
            client.close()
            server.close()
            await asyncio.sleep(0)
        return "ok"

    assert kind.run(main) == "ok"


def test_sockets(kind):
    async def main():
        loop = asyncio.get_running_loop()
        a, b = socket.socketpair()
        a.setblocking(False)
        b.setblocking(False)
        with a, b:
            for _ in range(50):
                receiving = loop.create_task(loop.sock_recv(b, 10))
                await loop.sock_sendall(a, b"payload")
                assert await receiving == b"payload"
        return "ok"

    assert kind.run(main) == "ok"


def test_subprocesses(kind):
    async def main():
        process = await asyncio.create_subprocess_exec(
            "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        output, _ = await process.communicate(b"through a pipe")
        failing = await asyncio.create_subprocess_shell("exit 3")
        return output, process.returncode, await failing.wait()

    assert kind.run(main) == (b"through a pipe", 0, 3)


def test_a_subprocess_is_killed(kind):
    async def main():
        process = await asyncio.create_subprocess_exec("sleep", "3600")
        process.kill()
        return await process.wait()

    assert kind.run(main) == -9


def test_run_in_executor(kind):
    async def main():
        loop = asyncio.get_running_loop()
        idents = await asyncio.gather(
            *[loop.run_in_executor(None, threading.get_ident) for _ in range(10)]
        )
        return threading.get_ident() not in idents

    assert kind.run(main)
    assert not [t for t in threading.enumerate() if t.name.startswith("asyncio_")]


@pytest.mark.skipif(sys.version_info < (3, 9), reason="asyncio.to_thread is new in Python 3.9")
def test_to_thread(kind):
    async def main():
        return await asyncio.to_thread(lambda: threading.current_thread().name)

    assert kind.run(main).startswith("asyncio_")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="task groups are new in Python 3.11")
def test_task_groups_and_timeouts(kind):
    async def fails():
        await asyncio.sleep(0.001)
        raise LookupError("one of them")

    async def main():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(0.001, n)) for n in range(5)]
        assert [task.result() for task in tasks] == list(range(5))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.002):
                await asyncio.sleep(3600)
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            group.create_task(asyncio.sleep(3600))

    with pytest.raises(BaseException, match="TaskGroup") as info:
        kind.run(main)
    assert [type(error) for error in info.value.exceptions] == [LookupError]


def test_wait_for_times_out(kind):
    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.sleep(3600), 0.002)
        return await asyncio.wait_for(asyncio.sleep(0.001, "in time"), 20)

    assert kind.run(main) == "in time"


def test_getaddrinfo(kind):
    async def main():
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
        named = await loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
        return found[0][4], bool(named)

    assert kind.run(main) == (("127.0.0.1", 80), True)


def test_pipes(kind):
    async def main():
        loop = asyncio.get_running_loop()
        read, write = os.pipe()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb")
        )
        os.write(write, b"hello")
        assert await reader.readexactly(5) == b"hello"
        os.close(write)
        assert await reader.read() == b""
        transport.close()
        await asyncio.sleep(0)
        return "ok"

    assert kind.run(main) == "ok"


def test_locks_queues_and_conditions(kind):
    async def main():
        queue, lock = asyncio.Queue(2), asyncio.Lock()
        got = []

        async def produce():
            for number in range(20):
                async with lock:
                    await asyncio.sleep(0)
                await queue.put(number)
            await queue.put(None)

        async def consume():
            while True:
                number = await queue.get()
                if number is None:
                    return
                got.append(number)

        await asyncio.gather(produce(), consume())
        return got

    assert kind.run(main) == list(range(20))

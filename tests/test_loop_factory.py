"""Loops that own their host: ``aioguest.loop_factory()`` under asyncio's own runners."""

import asyncio
import os
import selectors
import signal
import sys
import threading

import pytest
from harness import QueueHost

import aioguest
from aioguest._owner import loop_factory


@pytest.fixture(params=[False, True], ids=["thread", "readiness"])
def hosts(request):
    """Makes strict hosts, and checks them at the end."""

    class Hosts(list):
        def __call__(self):
            host = QueueHost(watches=request.param)
            self.append(host)
            return host

    hosts = Hosts()
    yield hosts
    for host in hosts:
        with host:
            pass


async def answer():
    await asyncio.sleep(0.001)
    return 42


def test_a_loop_runs_inside_a_host_of_its_own(hosts):
    loop = loop_factory(hosts)()
    try:
        assert loop.run_until_complete(answer()) == 42
        assert not loop.is_running()
        assert loop.run_until_complete(answer()) == 42  # another host, the same loop
        assert len(hosts) == 2
        assert hosts[0].turns > 0
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.run(loop_factory=) is new in 3.12")
def test_asyncio_run_takes_the_factory(hosts):
    assert asyncio.run(answer(), loop_factory=loop_factory(hosts)) == 42


def test_the_host_lives_while_the_loop_runs(hosts):
    async def main():
        future = asyncio.get_running_loop().create_future()
        hosts[0].todo.append(lambda: future.set_result("from the host"))
        return await future

    loop = loop_factory(hosts, tick_budget=0)()
    try:
        assert loop.run_until_complete(main()) == "from the host"
    finally:
        loop.close()


def test_errors_come_out_of_run_until_complete(hosts):
    async def fails():
        raise LookupError("guest")

    async def interrupts():
        raise KeyboardInterrupt

    loop = loop_factory(hosts)()
    try:
        with pytest.raises(LookupError, match="guest"):
            loop.run_until_complete(fails())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(interrupts())
        assert loop.run_until_complete(answer()) == 42
    finally:
        loop.close()


def test_a_host_that_is_interrupted_leaves_a_loop_that_can_run_again(hosts):
    def interrupt():
        raise KeyboardInterrupt

    async def main():
        hosts[-1].todo.append(interrupt)
        await asyncio.sleep(3600)

    loop = loop_factory(hosts)()
    try:
        task = loop.create_task(main())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        assert not loop.is_running()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
    finally:
        loop.close()


def test_a_host_loop_that_ends_too_early_says_so(hosts):
    async def main():
        hosts[-1].quit()
        await asyncio.sleep(3600)

    loop = loop_factory(hosts)()
    try:
        task = loop.create_task(main())
        with pytest.raises(RuntimeError, match="returned before the loop was stopped"):
            loop.run_until_complete(task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
    finally:
        loop.close()


def test_a_wait_that_cannot_be_closed_is_an_error_of_the_run(hosts):
    async def main():
        await asyncio.sleep(0.001)
        (run,) = aioguest._run._runs.values()
        close = run._wait.close

        def broken():
            close()
            raise LookupError("close")

        run._wait.close = broken

    loop = loop_factory(hosts)()
    try:
        with pytest.raises(LookupError, match="close"):
            loop.run_until_complete(main())
    finally:
        loop.close()


def test_a_loop_that_cannot_run_says_what_asyncio_says(hosts):
    loop = loop_factory(hosts)()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_forever()
    assert hosts == []


def test_a_loop_that_cannot_be_stepped_is_refused_and_closed(hosts):

    loops = []

    def new_loop():
        loops.append(asyncio.SelectorEventLoop(selectors.SelectSelector()))
        return loops[0]

    with pytest.raises(ValueError, match="DefaultSelector"):
        loop_factory(hosts, new_loop=new_loop)()
    assert loops[0].is_closed()
    with pytest.raises(ValueError, match="tick_budget"):
        loop_factory(hosts, tick_budget=-1)


def test_signal_handlers_live_from_run_to_run(hosts):
    async def main(first):
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        if first:
            loop.add_signal_handler(signal.SIGUSR1, lambda: events[-1].set())
        events.append(event)
        os.kill(os.getpid(), signal.SIGUSR1)
        await event.wait()

    events = []
    loop = loop_factory(hosts)()
    try:
        loop.run_until_complete(main(True))
        loop.run_until_complete(main(False))
        loop.run_until_complete(answer())
        assert loop.remove_signal_handler(signal.SIGUSR1)
    finally:
        loop.close()
    assert len(events) == 2


def test_a_signal_handler_removed_in_a_later_run_gives_everything_back(hosts):
    async def add():
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)

    async def remove():
        assert asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)

    loop = loop_factory(hosts)()
    try:
        loop.run_until_complete(add())
        loop.run_until_complete(remove())
    finally:
        loop.close()


def test_an_owning_loop_whose_host_drops_it_is_stopped(hosts):
    class Host(QueueHost):
        def run(self):
            self.turn()
            self.todo.clear()

    async def main():
        while True:
            await asyncio.sleep(0)

    def new_host():
        hosts.append(Host())
        return hosts[-1]

    loop = loop_factory(new_host, tick_budget=0)()
    try:
        task = loop.create_task(main())
        with pytest.warns(RuntimeWarning, match="got abandoned"), pytest.raises(
            RuntimeError, match="returned before the loop was stopped"
        ):
            loop.run_until_complete(task)
        task.cancel()
        loop._run_once()
    finally:
        loop.close()


class GreedyHost(QueueHost):
    """Takes the wake-up descriptor for as long as it runs, and lets signals arrive around it."""

    def run(self):
        receive, send = os.pipe()
        os.set_blocking(send, False)
        assert signal.set_wakeup_fd(send) == -1
        os.kill(os.getpid(), signal.SIGUSR1)  # before the guest's first tick
        try:
            super().run()
            os.kill(os.getpid(), signal.SIGUSR1)  # after its last one
        finally:
            assert signal.set_wakeup_fd(-1) == send
            os.close(receive)
            os.close(send)


def test_handlers_outlive_a_run_and_miss_no_signal_between_runs():
    heard = []

    def new_host():
        hosts.append(GreedyHost(watches=True))
        return hosts[-1]

    async def until(number):
        while len(heard) < number:
            await asyncio.sleep(0.001)

    hosts = []
    loop = loop_factory(new_host)()
    try:
        loop.add_signal_handler(signal.SIGUSR1, heard.append, None)
        loop.run_until_complete(until(1))  # from the host's start
        os.kill(os.getpid(), signal.SIGUSR1)  # between the runs
        loop.run_until_complete(until(4))  # and those of the end, and of the next start
        assert loop.remove_signal_handler(signal.SIGUSR1)
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        loop.close()
    for host in hosts:
        with host:
            pass


def test_a_signal_that_finds_the_loops_socket_full_or_closed_is_no_error():
    class Closed:
        def send(self, data):
            raise OSError("closed")

    class ClosingHost(QueueHost):
        def run(self):
            csock, loop._csock = loop._csock, Closed()
            os.kill(os.getpid(), signal.SIGUSR1)
            loop._csock = csock
            super().run()

    host = ClosingHost()
    loop = loop_factory(lambda: host)()
    try:
        loop.add_signal_handler(signal.SIGUSR1, print)
        assert loop.run_until_complete(answer()) == 42
    finally:
        loop.close()
        signal.set_wakeup_fd(-1)
    with host:
        pass


def test_a_loop_may_be_run_in_another_thread():
    results = []

    def work():
        with QueueHost() as host:
            loop = loop_factory(lambda: host)()
            try:
                results.append(loop.run_until_complete(answer()))
            finally:
                loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [42]

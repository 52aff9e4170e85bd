"""Contract 5, the outcome; contract 6, no code before; contract 7, fairness; aioguest.run()."""

import asyncio
import math

import outcome
import pytest
from harness import QueueHost

import aioguest


def test_the_outcome_comes_once_and_never_inside_start_guest_run(kind):
    events = []

    async def main():
        events.append("ran")

    def setup(api):
        def done(result):
            events.append(result)
            api.post(api.post, api.post, api.finish)  # A second one would have time to come.

        task = api.start(main, done_callback=done)
        events.append("returned")
        assert isinstance(task, asyncio.Task)
        assert not task.done()

    kind.loop(setup)
    assert events == ["returned", "ran", outcome.Value(None)]


def test_an_error_is_an_outcome_too(kind):
    got = []
    error = ValueError("mine")

    async def main():
        raise error

    def setup(api):
        api.start(main, done_callback=lambda result: (got.append(result), api.finish()))

    kind.loop(setup)
    assert got == [outcome.Error(error)]
    with pytest.raises(ValueError, match="mine"):
        got[0].unwrap()


def test_start_returns_the_main_task_of_the_guests_loop(kind):
    tasks = []

    async def main():
        tasks.append(asyncio.current_task())

    def setup(api):
        task = api.start(main, done_callback=lambda _: api.finish())
        tasks.append(task)
        assert task.get_loop().is_running()

    kind.loop(setup)
    assert tasks[0] is tasks[1]


def test_cancelling_the_main_task_from_the_host_stops_the_run(kind):
    log = []

    async def main():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.001)
            log.append("cleaned up")

    def setup(api):
        def done(result):
            with pytest.raises(asyncio.CancelledError):
                result.unwrap()
            log.append("done")
            api.finish()

        task = api.start(main, done_callback=done)
        api.post(api.post, api.post, task.cancel)

    kind.loop(setup)
    assert log == ["cleaned up", "done"]


def test_a_coroutine_is_as_good_as_a_function_with_arguments(kind):
    async def main(a, b):
        await asyncio.sleep(0)
        return a + b

    assert kind.run(main, 1, 2) == 3
    assert kind.run(main(1, 2)) == 3


def test_an_object_with_an_async_call_is_an_async_function(kind):
    class Program:
        async def __call__(self, value):
            return value

    assert kind.run(Program(), "value") == "value"


def test_a_coroutine_that_is_not_the_builtin_kind_may_be_run(kind):
    import collections.abc

    class Compiled(collections.abc.Coroutine):
        __slots__ = ()  # as Cython's: no weak references

        def __init__(self):
            pass

        def send(self, value):
            raise StopIteration("compiled")

        def throw(self, *args):
            raise args[0]

        def close(self):
            pass

        def __await__(self):
            return self

    assert kind.run(Compiled()) == "compiled"


# Contract 7


def test_a_tick_budget_of_zero_is_one_iteration_a_tick(kind):
    async def main():
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        before = aioguest.statistics(loop)
        for _ in range(20):
            await asyncio.sleep(0)
        after = aioguest.statistics(loop)
        return after.ticks - before.ticks, after.iterations - before.iterations

    assert kind.run(main, tick_budget=0) == (20, 20)


@pytest.mark.parametrize("budget", [math.inf, 10**6])
def test_within_its_budget_a_busy_guest_stays_in_one_tick(kind, budget):
    async def main():
        loop = asyncio.get_running_loop()
        before = aioguest.statistics(loop)
        for _ in range(500):
            await asyncio.sleep(0)
        return aioguest.statistics(loop).ticks - before.ticks

    assert kind.run(main, tick_budget=budget) == 0


@pytest.mark.parametrize("options", [{}, {"tick_budget": 0}, {"tick_budget": 0.0001}])
def test_a_busy_guest_does_not_starve_the_host(kind, options):
    async def main():
        turns = []

        def in_host():
            turns.append(1)
            if len(turns) < 10:
                kind.in_host(in_host)

        kind.in_host(in_host)
        while len(turns) < 10:
            await asyncio.sleep(0)
        return len(turns)

    assert kind.run(main, **options) == 10


def test_a_busy_host_does_not_starve_the_guest(kind):
    async def main():
        running = [True]

        def in_host():
            if running:
                kind.in_host(in_host)

        kind.in_host(in_host)
        for _ in range(20):
            await asyncio.sleep(0.0001)
        running.clear()
        return "ok"

    assert kind.run(main) == "ok"


# aioguest.run()


async def answer(value=42):
    await asyncio.sleep(0.001)
    return value


@pytest.mark.parametrize("watches", [False, True])
def test_run_starts_the_hosts_loop_and_quits_it(watches):
    with QueueHost(watches) as host:
        assert aioguest.run(answer, host=host) == 42
        assert aioguest.run(answer(43), host=host, debug=True) == 43


def test_run_raises_what_the_guest_raises():
    async def main():
        raise LookupError("from the guest")

    with QueueHost() as host, pytest.raises(LookupError, match="from the guest"):
        aioguest.run(main, host=host)


def test_run_cancels_the_guest_on_an_error_out_of_the_hosts_loop():
    log = []

    def interrupt():
        raise KeyboardInterrupt

    async def main():
        try:
            host.todo.append(interrupt)
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.001)
            log.append("ended in order")

    with QueueHost() as host:
        with pytest.raises(KeyboardInterrupt):
            aioguest.run(main, host=host)
        host.check()
    assert log == ["ended in order"]


def test_run_raises_an_error_of_the_host_that_comes_with_the_outcome():
    class Host(QueueHost):
        def quit(self):
            raise LookupError("quit failed")

    with Host() as host:
        with pytest.raises(LookupError, match="quit failed"):
            aioguest.run(answer, host=host)


@pytest.mark.parametrize("watches", [False, True])
def test_run_abandons_the_guest_when_the_hosts_loop_ends_too_early(watches):
    with QueueHost(watches) as host:
        host.todo.append(host.quit)
        with pytest.warns(RuntimeWarning, match="got abandoned"), pytest.raises(
            RuntimeError, match="returned before the guest was done"
        ):
            aioguest.run(asyncio.sleep, 3600, host=host)


def test_run_of_a_host_that_drops_its_queue():
    class Host(QueueHost):
        def run(self):
            self.todo.clear()

    with Host() as host:
        with pytest.warns(RuntimeWarning, match="got abandoned"), pytest.raises(
            RuntimeError, match="returned before the guest was done"
        ):
            aioguest.run(asyncio.sleep, 3600, host=host)


def test_a_host_without_run_and_quit_says_what_to_do():
    class Host(aioguest.Host):
        def run_sync_soon_threadsafe(self, fn):
            todo.append(fn)

    todo = []
    host = Host()
    with pytest.raises(NotImplementedError, match="start its loop yourself"):
        host.run()
    with pytest.raises(NotImplementedError, match=r"implements run\(\) but not quit\(\)"):
        host.quit()
    assert host.watch(0, None) is None
    aioguest.start_guest_run(asyncio.sleep, 0, host=host, done_callback=todo.append)
    while isinstance(todo[0], outcome.Value) is False:
        todo.pop(0)()
    assert todo == [outcome.Value(None)]


def test_a_host_of_ten_lines_is_enough():
    import queue

    class TenLines(aioguest.Host):
        def __init__(self):
            self.todo = queue.SimpleQueue()

        def run_sync_soon_threadsafe(self, fn):
            self.todo.put(fn)

        def run(self):
            self.running = True
            while self.running:
                self.todo.get()()

        def quit(self):
            self.running = False

    assert aioguest.run(answer, host=TenLines()) == 42

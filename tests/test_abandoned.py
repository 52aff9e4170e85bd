# a guest is abandoned in steps
"""Contract 12: a host that stops early abandons its guest, which ends all the same."""

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time

import pytest
from harness import QueueHost, run_script, take_finalizer_back

import aioguest
import aioguest._run
from aioguest.loops._wakeup import Borrowed

WARNING = "asyncio guest run got abandoned"


class Abandoned:
    """A guest whose host is going to stop, and what becomes of it."""

    def __init__(self, caplog):
        self.caplog = caplog
        self.log = []
        self.loop = None
        self.outcomes = []

    async def main(self):
        self.loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError as exc:
            self.log.append(exc)
            await asyncio.sleep(0.001)  # It can still wait.
            raise
        finally:
            self.log.append("finally")

    def messages(self):
        return [r.getMessage() for r in self.caplog.records if r.name == "aioguest"]

    def check(self, result="exception"):
        assert self.outcomes == []
        assert self.loop is None or self.loop.is_closed()
        (message,) = self.messages()
        assert f"couldn't deliver the guest {result}" in message
        if sys.version_info >= (3, 9) and self.log and isinstance(self.log[0], Exception):
            assert "aioguest" in str(self.log[0])
        return message

    def check_cancelled(self):
        assert [type(each) for each in self.log] == [asyncio.CancelledError, str]
        if sys.version_info >= (3, 9):
            assert "aioguest: the host loop abandoned this guest run" in str(self.log[0])
        return self.check()


@pytest.fixture
def guest(caplog):
    with caplog.at_level(logging.INFO, "aioguest"):
        yield Abandoned(caplog)


def until_idle(host, run):
    host.run_until(lambda: run.state is aioguest._run.State.WAITING)


def wait_until(condition):
    """For another thread."""
    stop_at = time.monotonic() + 15
    while not condition() and time.monotonic() < stop_at:
        time.sleep(0.001)


def the_run():
    (run,) = aioguest._run._runs.values()
    return run


@pytest.mark.parametrize("watches", [False, True])
def test_a_first_tick_that_is_dropped_abandons_a_guest_that_never_ran(guest, watches):
    with QueueHost(watches) as host:
        task = aioguest.start_guest_run(guest.main, host=host, done_callback=guest.outcomes.append)
        with pytest.warns(RuntimeWarning, match=WARNING):
            host.todo.clear()
    assert task.cancelled()
    guest.loop = task.get_loop()
    assert guest.log == []
    guest.check()


@pytest.mark.parametrize("watches", [False, True])
def test_a_later_tick_that_is_dropped_abandons_the_guest(guest, watches):
    with QueueHost(watches) as host:
        aioguest.start_guest_run(
            guest.main, host=host, done_callback=guest.outcomes.append, tick_budget=0
        )
        host.turn()
        assert len(host.todo) == 1  # POSTED: its budget was spent
        with pytest.warns(RuntimeWarning, match=WARNING):
            host.todo.clear()
    guest.check_cancelled()


def test_a_host_that_tells_its_watches_of_its_end_abandons_the_waiting_guest(guest):
    with QueueHost(watches=True) as host:
        aioguest.start_guest_run(guest.main, host=host, done_callback=guest.outcomes.append)
        until_idle(host, the_run())
        with pytest.warns(RuntimeWarning, match=WARNING):
            host.end()
        assert host.open_watches == []
        host.end()
    guest.check_cancelled()


def test_a_host_that_is_collected_abandons_the_guest_that_it_watched(guest):
    host = QueueHost(watches=True)
    with host:
        aioguest.start_guest_run(guest.main, host=host, done_callback=guest.outcomes.append)
        until_idle(host, the_run())
        guest.loop = None
    with pytest.warns(RuntimeWarning, match=WARNING):
        del host
        gc.collect()
    guest.check_cancelled()


def test_a_host_that_is_collected_abandons_the_guest_in_its_queue(guest):
    host = QueueHost()
    with host:
        aioguest.start_guest_run(
            guest.main, host=host, done_callback=guest.outcomes.append, tick_budget=0
        )
        host.turn()
        assert len(host.todo) == 1
        guest.loop = None
    with pytest.warns(RuntimeWarning, match=WARNING):
        del host
        gc.collect()
    guest.check_cancelled()


class Refusal(Exception):
    pass


@pytest.mark.parametrize("error", [Refusal, KeyboardInterrupt])
@pytest.mark.parametrize("watches", [False, True])
def test_a_host_thread_post_that_raises_abandons_the_guest(guest, watches, error):
    with QueueHost(watches) as host:
        aioguest.start_guest_run(
            guest.main, host=host, done_callback=guest.outcomes.append, tick_budget=0
        )

        def refuse(fn):
            raise error("the queue is closed")

        host.run_sync_soon_not_threadsafe = refuse
        with pytest.warns(RuntimeWarning, match=rf"{WARNING}.*\({error.__name__}: the queue is"):
            if error is KeyboardInterrupt:  # not to be swallowed
                with pytest.raises(KeyboardInterrupt):
                    host.turn()
            else:
                host.turn()
    guest.check_cancelled()


@pytest.mark.parametrize("drop", [False, True])
def test_a_post_from_the_worker_that_fails_abandons_the_guest_there(guest, drop):
    """Raises, as Trio does when it has ended, or drops it."""
    threads = []

    async def main():
        guest.loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(0.05)  # The worker posts then.
            await asyncio.sleep(3600)
        except asyncio.CancelledError as exc:
            threads.append(threading.current_thread().name)
            guest.log.append(exc)
            raise
        finally:
            guest.log.append("finally")

    with QueueHost() as host:
        aioguest.start_guest_run(main, host=host, done_callback=guest.outcomes.append)

        def refuse(fn):
            if not drop:
                raise Refusal("the host has ended")

        host.run_sync_soon_threadsafe = refuse
        run = the_run()
        with pytest.warns(RuntimeWarning, match=WARNING):
            host.run_until(lambda: run.state is not aioguest._run.State.POSTED)
            wait_until(guest.messages)
    assert run.state is aioguest._run.State.OVER
    assert threads[0].startswith("aioguest-wait-")
    guest.check_cancelled()
    take_finalizer_back()


def test_a_result_in_spite_of_it_is_logged(guest):
    async def main():
        guest.loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "in spite of it"

    with QueueHost(watches=True) as host:
        aioguest.start_guest_run(main, host=host, done_callback=guest.outcomes.append)
        until_idle(host, the_run())
        with pytest.warns(RuntimeWarning, match=WARNING):
            host.end()
    assert "couldn't deliver the guest result: 'in spite of it'" in guest.check("result")


def test_an_error_in_spite_of_it_is_logged_with_its_traceback(guest):
    async def main():
        try:
            await asyncio.sleep(3600)
        finally:
            raise LookupError("while cancelled")

    with QueueHost(watches=True) as host:
        aioguest.start_guest_run(main, host=host, done_callback=guest.outcomes.append)
        until_idle(host, the_run())
        with pytest.warns(RuntimeWarning, match=WARNING):
            host.end()
    assert "LookupError('while cancelled')" in guest.check()
    assert guest.caplog.records[-1].exc_info[0] is LookupError


def test_the_other_tasks_and_generators_follow_asyncio_run(guest):
    async def leftover():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.001)
            guest.log.append("leftover")

    async def generator():
        try:
            yield
        finally:
            await asyncio.sleep(0.001)
            guest.log.append("generator")

    async def main():
        guest.loop = asyncio.get_running_loop()
        main.keep = (guest.loop.create_task(leftover()), generator())
        await main.keep[1].__anext__()
        await guest.loop.run_in_executor(None, int)  # a default executor, too
        idle.append(1)
        await asyncio.sleep(3600)

    idle = []
    with QueueHost(watches=True) as host:
        aioguest.start_guest_run(main, host=host, done_callback=guest.outcomes.append)
        host.run_until(lambda: idle)
        until_idle(host, the_run())
        with pytest.warns(RuntimeWarning, match=WARNING):
            host.end()
    guest.check()
    assert guest.log == ["leftover", "generator"]
    assert not [t for t in threading.enumerate() if t.name.startswith("asyncio_")]


async def slow_generator(reached, log):
    try:
        yield
    finally:
        reached.append("generator")
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            log.append("cancelled")
            raise
        log.append("closed")


async def slow_leftover(reached, log):
    try:
        await asyncio.sleep(3600)
    finally:
        reached.append("leftover")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            log.append("cancelled again")


@pytest.mark.parametrize("watches", [False, True])
@pytest.mark.parametrize("phase", ["leftover", "generator", "executor"])
def test_a_guest_may_be_abandoned_while_it_shuts_down(guest, watches, phase):
    reached = []
    release = threading.Event()

    async def main():
        guest.loop = asyncio.get_running_loop()
        if phase == "leftover":
            main.keep = guest.loop.create_task(slow_leftover(reached, guest.log))
            await asyncio.sleep(0)
        elif phase == "generator":
            main.keep = slow_generator(reached, guest.log)
            await main.keep.__anext__()
        else:
            guest.loop.run_in_executor(None, lambda: (reached.append(1), release.wait(0.1)))
        return "main's result"

    with QueueHost(watches) as host:
        aioguest.start_guest_run(
            main, host=host, done_callback=guest.outcomes.append, tick_budget=0
        )
        run = the_run()
        with pytest.warns(RuntimeWarning, match=WARNING):
            host.run_until(
                lambda: (reached and run._life.phase.name != "MAIN") or guest.caplog.records
            )
            release.set()
            run.abandon()
            host.todo.clear()
        run.abandon()  # once only
    for thread in threading.enumerate():
        if thread.name.startswith("asyncio_"):
            thread.join()
    assert guest.loop.is_closed()
    if phase == "leftover":
        assert guest.log == ["cancelled again"]
        guest.check("result")


def test_a_guest_in_a_thread_that_ends_is_abandoned_by_whoever_drops_it(guest):
    def thread():
        with QueueHost(watches=True) as host:
            aioguest.start_guest_run(guest.main, host=host, done_callback=guest.outcomes.append)
            until_idle(host, the_run())
            host.end()

    with pytest.warns(RuntimeWarning, match=WARNING):
        other = threading.Thread(target=thread)
        other.start()
        other.join()
    guest.check_cancelled()


def test_a_guest_dropped_inside_a_task_of_an_asyncio_host_ends_there(guest):
    """The collector may run anywhere, also inside a host task. (3.14 minds.)"""

    async def host_main():
        inner = []
        task = aioguest.start_guest_run(
            guest.main,
            run_sync_soon_threadsafe=inner.append,
            done_callback=guest.outcomes.append,
            tick_budget=0,
        )
        inner.pop()()  # directly
        current = asyncio.current_task()
        del task
        with pytest.warns(RuntimeWarning, match=WARNING):
            inner.clear()
        assert asyncio.current_task() is current
        assert asyncio.get_running_loop() is not guest.loop
        await asyncio.sleep(0)
        return "the host goes on"

    assert asyncio.run(host_main()) == "the host goes on"
    guest.check_cancelled()


def test_an_abandoned_guest_whose_selector_fails_still_ends(guest):
    async def main():
        guest.loop = loop = asyncio.get_running_loop()
        select = loop._selector.select
        failures = iter([OSError("broken"), OSError("broken")])

        def broken(timeout):
            for error in failures:
                raise error
            return select(timeout)

        try:
            await asyncio.sleep(3600)
        finally:
            loop._selector.select = broken
            await asyncio.sleep(0.001)

    with QueueHost(watches=True) as host:
        task = aioguest.start_guest_run(main, host=host, done_callback=guest.outcomes.append)
        task._log_destroy_pending = False  # It cannot end any more.
        until_idle(host, the_run())
        with pytest.warns(RuntimeWarning, match=WARNING):
            host.end()
    assert "OSError" in guest.check()


def test_the_warning_as_an_error_does_not_stop_the_clean_up(guest):
    with QueueHost(watches=True) as host:
        aioguest.start_guest_run(guest.main, host=host, done_callback=guest.outcomes.append)
        until_idle(host, the_run())
        with pytest.raises(RuntimeWarning, match=WARNING):  # as pytest is configured here
            host.end()
    guest.check_cancelled()


def test_signal_handlers_of_a_run_that_another_thread_ends_are_only_forgotten(guest):
    async def main():
        guest.loop = asyncio.get_running_loop()
        guest.loop.add_signal_handler(signal.SIGUSR1, print)
        await asyncio.sleep(0.05)
        await asyncio.sleep(3600)

    with QueueHost() as host:
        aioguest.start_guest_run(main, host=host, done_callback=guest.outcomes.append)
        host.run_sync_soon_threadsafe = lambda fn: None
        run = the_run()
        with pytest.warns(RuntimeWarning, match=WARNING):
            host.run_until(lambda: run.state is not aioguest._run.State.POSTED)
            wait_until(lambda: len(guest.messages()) == 2)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    Borrowed._chain.clear()
    take_finalizer_back()
    first, second = guest.messages()
    assert f"cannot restore the handler of signal {int(signal.SIGUSR1)}" in first
    assert "couldn't deliver the guest exception: CancelledError" in second
    assert guest.loop.is_closed()
    assert "stop" not in vars(guest.loop)


def test_a_ticket_that_the_host_calls_after_all_does_nothing(guest):
    with QueueHost() as host:
        aioguest.start_guest_run(
            guest.main, host=host, done_callback=guest.outcomes.append, tick_budget=0
        )
        host.turn()
        run = the_run()
        with pytest.warns(RuntimeWarning, match=WARNING):
            run.abandon()
        tickets = [host.todo[0], aioguest._run._Ticket(run)]
        host.turn()
        thread = threading.Thread(target=tickets[1])  # from the wrong thread, too
        thread.start()
        thread.join()
    guest.check_cancelled()


def test_a_ticket_that_the_host_calls_while_another_thread_ends_the_run_does_nothing(guest):
    reached, release = threading.Event(), threading.Event()

    async def main():
        guest.loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError as exc:
            guest.log.append(exc)
            reached.set()
            release.wait(20)
            raise
        finally:
            guest.log.append("finally")

    with QueueHost() as host, pytest.warns(RuntimeWarning, match=WARNING):
        aioguest.start_guest_run(
            main, host=host, done_callback=guest.outcomes.append, tick_budget=0
        )
        host.turn()
        run = the_run()
        thread = threading.Thread(target=run.abandon)
        thread.start()
        assert reached.wait(20)
        host.turn()
        run.abandon()
        release.set()
        thread.join()
    take_finalizer_back()
    guest.check_cancelled()


class DeafHost(QueueHost):
    """Takes no post from its own thread any more, once it is deaf."""

    deaf = None

    def run_sync_soon_not_threadsafe(self, fn):
        if self.deaf is not None:
            raise self.deaf("the queue is closed")
        super().run_sync_soon_not_threadsafe(fn)


@pytest.mark.parametrize("watches", [False, True])
@pytest.mark.parametrize("error", [Refusal, KeyboardInterrupt])
def test_a_post_that_fails_for_work_from_the_host_is_made_by_a_worker(watches, error):
    """call_soon() must not run the guest to its end: its caller has not returned."""

    async def main():
        future = asyncio.get_running_loop().create_future()
        futures.append(future)
        return await future

    futures = []
    outcomes = []
    with DeafHost(watches) as host:
        aioguest.start_guest_run(main, host=host, done_callback=outcomes.append)
        until_idle(host, the_run())
        host.deaf = error
        if error is Refusal:
            futures[0].set_result("woken by the worker")
        else:
            with pytest.raises(KeyboardInterrupt):
                futures[0].get_loop().call_soon(int)
        host.deaf = None
        if error is KeyboardInterrupt:
            futures[0].set_result("woken by the worker")
        host.run_until(lambda: outcomes)
    assert outcomes[0].unwrap() == "woken by the worker"


@pytest.mark.parametrize("watches", [False, True])
def test_a_host_that_is_gone_altogether_when_it_gives_work_abandons_the_guest(guest, watches):
    with DeafHost(watches) as host:
        aioguest.start_guest_run(guest.main, host=host, done_callback=guest.outcomes.append)
        until_idle(host, the_run())
        host.deaf = Refusal

        def refuse(fn):
            raise Refusal("and from a thread, too")

        host.run_sync_soon_threadsafe = refuse
        with pytest.warns(RuntimeWarning, match=WARNING):
            guest.loop.call_soon(int)
            wait_until(guest.messages)
    guest.check_cancelled()
    take_finalizer_back()


def test_a_gone_host_without_threads_is_abandoned_at_exit(guest, monkeypatch):
    def no_threads(self):
        raise RuntimeError("can't start new thread")

    with DeafHost(watches=True) as host:
        aioguest.start_guest_run(guest.main, host=host, done_callback=guest.outcomes.append)
        until_idle(host, the_run())
        host.deaf = Refusal
        monkeypatch.setattr(threading.Thread, "start", no_threads)
        guest.loop.call_soon(int)
        monkeypatch.undo()
        with pytest.warns(RuntimeWarning, match=WARNING):
            aioguest._run._at_exit()
    guest.check_cancelled()


# At the interpreter's exit, in a process of its own.

EXIT = """
import asyncio, logging, sys, threading, time
import aioguest
from harness import QueueHost

logging.basicConfig(format="%(name)s: %(message)s")
host = QueueHost(watches={watches})

async def main():
    try:
        {before}
        print("started", flush=True)
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0.001)
        print("finally", flush=True)

def program():
    aioguest.start_guest_run(main, host=host, done_callback=print)
    run = list(aioguest._run._runs.values())[0]
    host.run_until(lambda: run.state is aioguest._run.State.WAITING and {until})

{call}
print("end of the program", flush=True)
{after}
"""


def exit_script(watches=False, before="pass", until="True", call="program()", after=""):
    source = EXIT.format(watches=watches, before=before, until=until, call=call, after=after)
    tests = os.path.dirname(os.path.abspath(__file__))
    return run_script(f"import sys; sys.path.insert(0, {tests!r})\n" + source)


@pytest.mark.parametrize("watches", [False, True])
@pytest.mark.parametrize(
    ("after", "code"), [("", 0), ("sys.exit(3)", 3), ("raise ValueError('host')", 1)]
)
def test_at_the_interpreters_exit_the_waiting_guest_ends(watches, after, code):
    result = exit_script(watches, after=after)
    assert result.stdout.split("\n")[:3] == ["started", "end of the program", "finally"]
    assert WARNING in result.stderr
    assert "aioguest: abandoned by its host: couldn't deliver the guest exception" in result.stderr
    assert "Fatal" not in result.stderr
    assert result.returncode == code


def test_at_the_interpreters_exit_the_default_executor_is_no_obstacle():
    before = "await asyncio.get_running_loop().run_in_executor(None, int)"
    result = exit_script(before=before)
    assert result.stdout.split() == ["started", "end", "of", "the", "program", "finally"]
    assert WARNING in result.stderr
    assert result.returncode == 0


def test_at_the_interpreters_exit_a_guest_of_a_thread_that_ended_ends_too():
    call = "t = threading.Thread(target=program); t.start(); t.join()"
    result = exit_script(call=call)
    assert "finally" in result.stdout
    assert WARNING in result.stderr
    assert result.returncode == 0


def test_at_the_interpreters_exit_a_guest_of_a_daemon_thread_dies_with_it():
    call = (
        "host_up = threading.Event()\n"
        "def daemon():\n"
        "    program()\n"
        "    host_up.set()\n"
        "    host.run()\n"
        "host.thread = None\n"
        "t = threading.Thread(target=daemon, daemon=True); t.start(); host_up.wait()"
    )
    result = exit_script(call=call)
    assert "finally" not in result.stdout
    assert result.returncode == 0
    assert "Fatal" not in result.stderr


def test_anyios_threads_do_not_hang_the_exit():
    """Contract 11: its worker threads stop in a done-callback of the main task."""
    result = run_script(
        """
        import queue, anyio.to_thread, aioguest

        todo = queue.Queue()
        running = True

        async def main():
            print(await anyio.to_thread.run_sync(lambda: "in a thread"))

        def done(outcome):
            global running
            running = False
            outcome.unwrap()

        aioguest.start_guest_run(
            main, run_sync_soon_threadsafe=todo.put, done_callback=done
        )
        while running:
            todo.get()()
        """
    )
    assert (result.stdout, result.stderr, result.returncode) == ("in a thread\n", "", 0)

"""Contract 16: a forked child leaves its parent's guest alone, and exit is clean."""

import os
import sys

import pytest
from harness import run_script

TESTS = os.path.dirname(os.path.abspath(__file__))

FORK = """
import sys
sys.path.insert(0, {tests!r})
import asyncio, os, threading
import aioguest
from harness import QueueHost

host = QueueHost(watches={watches})
outcomes = []

def fork():
    child = os.fork()
    if child == 0:
        print("child", flush=True)
        {child}
    pid, status = os.waitpid(child, 0)
    print("child's exit code", os.WEXITSTATUS(status), flush=True)

async def main():
    await asyncio.sleep(0.002)
    loop = asyncio.get_running_loop()
    if {in_task}:
        fork()
    else:
        future = loop.create_future()
        host.todo.append(lambda: (fork(), future.set_result(None)))
        await future
    a, b = await asyncio.gather(asyncio.sleep(0.002, 1), asyncio.sleep(0, 2))
    await loop.run_in_executor(None, int)
    loop.call_soon_threadsafe(int)
    await asyncio.sleep(0.002)
    return "parent's result"

def done(outcome):
    outcomes.append(outcome)
    host.quit()

aioguest.start_guest_run(main, host=host, done_callback=done, tick_budget=0)
host.run()
print(outcomes[0].unwrap())
"""

CHILDREN = {
    "sys.exit": "sys.exit(5)",
    "os._exit": "os._exit(5)",
    "goes on": "host.todo.append(lambda: sys.exit(5)); return",
    "falls off": "raise SystemExit(5)",
    "drops everything": "import gc; host.todo.clear(); host.open_watches.clear(); gc.collect(); "
    "assert not aioguest._run._runs; sys.exit(5)",
    "runs a guest": "print(aioguest.run(asyncio.sleep, 0.001, 'new guest', host=QueueHost())); "
    "sys.exit(5)",
}


# A warning of 3.12's about fork() and threads is what this tests; it goes to stderr.
@pytest.mark.parametrize("watches", [False, True], ids=["thread", "readiness"])
@pytest.mark.parametrize("in_task", [True, False], ids=["in a task", "in host time"])
@pytest.mark.parametrize("child", CHILDREN)
def test_a_forked_child_leaves_its_parents_guest_alone(watches, in_task, child):
    if child == "runs a guest" and in_task:
        child = "sys.exit"  # In a task the loop is running, as under asyncio.
    code = CHILDREN[child]
    if in_task and child != "goes on" and sys.version_info >= (3, 14):
        # There asyncio itself forgets the running loop in a child, and fails to leave the
        # task: plain asyncio.run() hangs on sys.exit() too.
        code = code.replace("sys.exit(5)", "os._exit(5)").replace(
            "raise SystemExit(5)", "os._exit(5)"
        )
    result = run_script(FORK.format(tests=TESTS, watches=watches, in_task=in_task, child=code))
    expected = ["child", "child's exit code 5", "parent's result"]
    if "new guest" in code:
        expected.insert(1, "new guest")
    assert result.stdout.splitlines() == expected, result.stderr
    if not (in_task and sys.version_info >= (3, 14)):  # the same: asyncio logs that
        assert "Traceback" not in result.stderr
    assert "abandoned" not in result.stderr
    assert result.returncode == 0


@pytest.mark.parametrize("watches", [False, True], ids=["thread", "readiness"])
def test_sys_exit_in_a_task_is_an_outcome_and_the_interpreter_exits(watches):
    result = run_script(
        f"""
        import sys
        sys.path.insert(0, {TESTS!r})
        import asyncio, aioguest
        from harness import QueueHost

        async def main():
            await asyncio.sleep(0.001)
            sys.exit(7)

        aioguest.run(main, host=QueueHost(watches={watches}))
        """
    )
    assert (result.returncode, result.stdout, result.stderr) == (7, "", "")


def test_a_guest_of_a_daemon_thread_that_works_at_exit_does_not_crash():
    result = run_script(
        f"""
        import sys
        sys.path.insert(0, {TESTS!r})
        import asyncio, threading, aioguest
        from harness import QueueHost

        up = threading.Event()

        async def main():
            while True:
                up.set()
                await asyncio.sleep(0.0001)

        def thread():
            aioguest.run(main, host=QueueHost())

        threading.Thread(target=thread, daemon=True).start()
        up.wait()
        """
    )
    assert result.returncode == 0
    assert "Fatal" not in result.stderr


def test_importing_while_the_interpreter_exits_works():
    result = run_script(
        """
        import atexit, asyncio, concurrent.futures.thread

        @atexit.register
        def late():
            import aioguest
            todo = []
            aioguest.start_guest_run(
                asyncio.sleep, 0, "late",
                run_sync_soon_threadsafe=todo.append, done_callback=print,
            )
            while todo:
                todo.pop(0)()
        """
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "Value('late')\n", "")

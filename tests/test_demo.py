"""``python -m aioguest demo``, as its users run it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import pytest

from aioguest.__main__ import main

ROOT = Path(__file__).parent.parent
ENVIRONMENT = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1")
DEMO = [sys.executable, "-W", "error", "-m", "aioguest", "demo"]
pytest.importorskip("aiohttp")
pytest.importorskip("trio")


def run(*arguments: str, code: Optional[str] = None) -> subprocess.CompletedProcess[str]:
    start = [*DEMO[:-3], "-c", code] if code is not None else DEMO[:-1]
    return subprocess.run(
        [*start, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_the_demo_answers_every_request_and_sums_up() -> None:
    result = run("demo", "--requests", "150", "--concurrency", "50")
    assert result.stderr == ""
    assert result.returncode == 0
    assert re.search(r"^requests +150 in .* a second, 50 at a time$", result.stdout, re.M)
    assert re.search(r"^heartbeat +[1-9]\d* beats, .* ms late$", result.stdout, re.M)
    assert re.search(r"^guest\.run\(\) +[1-9]\d* calls", result.stdout, re.M)
    assert re.search(r"^ticks +[1-9]\d*, with [1-9]\d* iterations", result.stdout, re.M)
    assert " of 150 requests answered" in result.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Trio cannot watch the loop there")
def test_the_demo_runs_in_one_thread() -> None:
    result = run("demo", "--requests", "20", "--concurrency", "20")
    assert re.search(r"^threads +1 \(MainThread\)$", result.stdout, re.M)


def interrupt(process: subprocess.Popen[Any]) -> int:
    process.send_signal(signal.SIGINT)
    return process.wait(timeout=20)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one subprocess there")
def test_ctrl_c_ends_the_demo_with_one_line_and_status_130() -> None:
    with subprocess.Popen(
        [*DEMO, "--requests", "1000000"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            for line in process.stdout:
                if "requests answered" in line:
                    break
            assert interrupt(process) == 130
            rest = process.stdout.read().splitlines()
            assert rest[-1] == "Interrupted: the server, the requests and the guest are closed."
            assert all("requests answered" in line for line in rest[:-1])
            assert process.stderr.read() == ""
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_on_a_terminal_the_progress_is_one_line_that_is_rewritten() -> None:
    import pty

    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [*DEMO, "--requests", "100", "--concurrency", "10"],
        env=ENVIRONMENT,
        stdout=terminal,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(terminal)
        output = b""
        try:
            while True:
                data = os.read(controller, 4096)
                if not data:
                    break
                output += data
        except OSError:
            pass  # Linux's way to say that the other side is closed
        finally:
            os.close(controller)
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(timeout=20) == 0
    text = output.decode()
    assert text.count("requests answered") > 3
    assert not re.search(r"requests answered[^\r]*\n", text)
    assert "\r\033[Krequests     100 in" in text


@pytest.mark.parametrize("package", ["aiohttp", "trio"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(package: str) -> None:
    code = (
        "import sys, runpy; from importlib.abc import MetaPathFinder\n"
        "class Missing(MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {package!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "sys.argv = ['aioguest', 'demo']\n"
        "runpy.run_module('aioguest', run_name='__main__')\n"
    )
    result = run(code=code)
    assert result.returncode == 1
    assert result.stdout == ""
    assert f"needs the package {package!r}" in result.stderr
    assert 'pip install ".[demo]"' in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("option", ["--requests", "--concurrency"])
def test_a_number_that_makes_no_sense_is_refused(option: str) -> None:
    result = run("demo", option, "0")
    assert result.returncode == 2
    assert f"argument {option}: invalid number (1 or more) value: '0'" in result.stderr


def test_help_names_the_commands_and_their_options() -> None:
    assert "demo" in run("--help").stdout
    demo = run("demo", "--help").stdout
    assert "python -m aioguest demo" in demo
    assert "--requests" in demo
    assert "--concurrency" in demo


def test_without_a_command_it_says_what_is_missing() -> None:
    result = run()
    assert result.returncode == 2
    assert "COMMAND" in result.stderr


# In this process: quicker, and what breaks can be broken.


def test_main_returns_0(capsys: Any) -> None:
    assert main(["demo", "--requests", "30", "--concurrency", "40"]) == 0
    assert "30 at a time" in capsys.readouterr().out


def test_main_clears_the_progress_on_a_terminal(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["demo", "--requests", "30", "--concurrency", "40"]) == 0
    assert "\r\033[Krequests     30 in" in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [False, True])
def test_an_interrupt_out_of_the_guests_tick_is_trios(
    capsys: Any, monkeypatch: Any, terminal: bool
) -> None:
    from aioguest.tools import demo

    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)

    async def interrupt_us() -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(demo, "_count_tasks", interrupt_us)
    assert main(["demo", "--requests", "100000"]) == 130
    assert capsys.readouterr().out.endswith("the guest are closed.\n")


def test_an_error_in_the_guest_comes_out(monkeypatch: Any) -> None:
    from aioguest.tools import demo

    def find(exc: Any, kind: Any) -> bool:
        return isinstance(exc, kind) or any(find(e, kind) for e in getattr(exc, "exceptions", ()))

    async def answer(request: Any) -> Any:
        return demo.web.Response(text="no square")

    monkeypatch.setattr(demo, "_answer", answer)
    with pytest.raises(Exception) as caught:  # a group, mostly
        main(["demo", "--requests", "5"])
    assert find(caught.value, RuntimeError)


def test_zero_requests_are_refused(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--requests", "0"])
    assert "invalid number (1 or more)" in capsys.readouterr().err


def test_main_returns_1_if_a_package_is_missing(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.delitem(sys.modules, "aioguest.tools.demo", raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert main(["demo"]) == 1
    assert "'aiohttp'" in capsys.readouterr().err


def test_a_broken_installation_is_not_mistaken_for_a_missing_package(monkeypatch: Any) -> None:
    from aioguest import __main__

    monkeypatch.setitem(__main__._COMMANDS, "lost", ("not there", "demo"))
    with pytest.raises(ModuleNotFoundError):
        main(["lost"])


def test_more_files_are_allowed_if_needed() -> None:
    resource = pytest.importorskip("resource")
    from aioguest.tools import demo

    soft, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 200), hard))
        demo._allow_files(220)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 220
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

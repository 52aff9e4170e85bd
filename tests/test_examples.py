"""The examples and the pages run, and say what is there."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)

# What each of them must print, among other things.
PRINTS = {
    "asyncio_in_asyncio.py": "3 loops, 1 thread\n",
    "new_host.py": "HELLO FROM A SUBPROCESS",
    "new_host_watch.py": "1000 round trips",
    "trio_aiohttp.py": "saw 20 prices, the last was 'tea 119'\n",
}


def blocks() -> Iterator[Tuple[str, str]]:
    for page in PAGES:
        for number, code in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1):
            yield f"{page.name}-{number}", code


def run(code: str, *arguments: str) -> str:
    """Run `code` by ``python *arguments``. Returns what it prints."""
    for package in re.findall(r"^(?:import|from) (aiohttp|anyio|trio)\b", code, re.M):
        pytest.importorskip(package)
    result = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert result.stderr == ""
    assert result.returncode == 0
    return result.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_example_runs_without_a_warning(example: Path) -> None:
    assert PRINTS[example.name] in run(example.read_text(encoding="utf-8"), str(example))


RUNNABLE = [(name, code) for name, code in blocks() if code.startswith("# runnable\n")]


@pytest.mark.parametrize("code", [code for _, code in RUNNABLE], ids=[name for name, _ in RUNNABLE])
def test_a_complete_program_in_a_page_runs_without_a_warning(code: str) -> None:
    printed = run(code, "-c", code)
    # A comment behind a print() says what it prints.
    expected = re.findall(r"print\(.*\)  # prints: (.*)$", code, re.M)
    assert [line for line in printed.splitlines() if line in expected] == expected


def test_every_program_in_the_pages_is_python() -> None:
    flags = ast.PyCF_ONLY_AST | getattr(ast, "PyCF_ALLOW_TOP_LEVEL_AWAIT", 0)
    for name, code in blocks():
        compile(code, name, "exec", flags)


def test_what_is_imported_in_the_pages_is_there() -> None:
    found = 0
    for _, code in blocks():
        for module, names in re.findall(r"^from (aioguest[\w.]*) import ([\w, ]+)$", code, re.M):
            if module.endswith(".trio"):
                pytest.importorskip("trio")
            for name in names.split(","):
                assert hasattr(importlib.import_module(module), name.strip())
                found += 1
    assert found


def headings(page: Path) -> List[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if heading:
            assert heading in headings(linked), target


def test_the_reference_names_every_public_name_and_no_other() -> None:
    pytest.importorskip("trio")
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    sections = re.split(r"^## (.*)$", text, flags=re.M)[1:]
    documented = {
        title.strip("`"): section
        for title, section in zip(sections[::2], sections[1::2])
        if title.startswith("`aioguest")
    }
    assert list(documented) == ["aioguest", "aioguest.hosts.trio", "aioguest.hosts.asyncio"]
    for module, section in documented.items():
        names = re.findall(r"^### `(?:await |async with )?(\w+)", section, re.M)
        assert sorted(names) == sorted(importlib.import_module(module).__all__)


def test_the_contracts_name_test_files_that_are_there() -> None:
    text = (ROOT / "docs" / "contracts.md").read_text(encoding="utf-8")
    files = re.findall(r"`(tests/\w+\.py)`", text)
    assert files
    for file in files:
        assert (ROOT / file).exists(), file

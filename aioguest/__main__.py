"""``python -m aioguest``: the commands in :mod:`aioguest.tools`."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Optional, Sequence

# command: (what it does, the extra of pyproject.toml that names what it needs)
_COMMANDS = {
    "demo": ("a Trio program whose asyncio guest serves and makes aiohttp requests", "demo"),
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command that `argv` names. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m aioguest",
        description="Run asyncio as a guest inside another event loop.",
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    commands.required = True
    for name, (purpose, _) in _COMMANDS.items():
        # The command parses its own options: listing them must not need its imports.
        commands.add_parser(name, help=purpose, add_help=False)
    options, rest = parser.parse_known_args(argv)
    try:
        command = importlib.import_module(f"aioguest.tools.{options.command}")
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "aioguest":
            raise
        print(
            f"{parser.prog} {options.command} needs the package {exc.name!r}. In a checkout of "
            f'aioguest, this installs it: pip install ".[{_COMMANDS[options.command][1]}]"',
            file=sys.stderr,
        )
        return 1
    status: int = command.main(rest, prog=f"{parser.prog} {options.command}")
    return status


if __name__ == "__main__":  # pragma: no cover  # tested in a process of its own
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while it imports
        sys.exit(130)

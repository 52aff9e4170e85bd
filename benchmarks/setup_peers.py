"""Makes the environments of the peers: one each, outside the tree, kept for the next time.

``python benchmarks/setup_peers.py`` makes them all for the Python that runs it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List, NamedTuple

PEERS = {
    "aioguest-0.1.0": ["aioguest==0.1.0", "greenlet", "trio", "attrs"],
    "trio-asyncio": ["trio-asyncio"],
}


class Environment(NamedTuple):
    """A peer's interpreter; or, with an empty path, the reason why there is none."""

    python: str
    reason: str = ""


def cache_folder() -> Path:
    given = os.environ.get("AIOGUEST_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "aioguest" / "bench"


def _pin() -> List[str]:
    """The Trio of this Python, so that every candidate has the same host."""
    try:
        import trio
    except ImportError:
        return []
    return [f"trio=={trio.__version__}"]


def environment(peer: str) -> Environment:
    """The environment of `peer`, made now if it does not exist yet."""
    requirements = PEERS[peer] + _pin()
    tag = f"{platform.python_implementation().lower()}-{platform.python_version()}"
    folder = cache_folder() / f"{tag}-{'-'.join(_pin()) or 'any'}" / peer
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / "ready.json"
    if ready.exists() and python.exists():
        return Environment(str(python))
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "-q", *requirements],
    ):
        try:
            subprocess.run(
                command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
            )
        except subprocess.CalledProcessError as exc:
            lines = exc.stdout.decode(errors="replace").strip().splitlines()
            errors = [line for line in lines if "ERROR" in line] or lines[-1:] or [str(exc)]
            return Environment("", f"{' '.join(command[1:])}: {errors[0]}")
        except (OSError, subprocess.TimeoutExpired) as exc:
            return Environment("", f"{type(exc).__name__}: {exc}")
    ready.write_text(json.dumps(requirements))
    return Environment(str(python))


def main() -> None:
    for peer in PEERS:
        made = environment(peer)
        print(f"{peer}: {made.python or 'absent: ' + made.reason}")


if __name__ == "__main__":
    main()

"""Runs asyncio's own tests with every loop driven as a guest, and compares with plain asyncio.

    python run.py [--hosts queue/thread trio/readiness ...] [MODULE ...]

Each module of ``test.test_asyncio`` runs in a process of its own, plain and under each host
and wait. What differs from plain, test by test, is printed, and the exit status is 1 unless
``differences.txt`` lists it. The loops that the tests make with ``select()`` and ``poll()``
stay plain: no guest can have them.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
HOSTS = [
    f"{host}/{wait}" for host in ("queue", "trio", "asyncio") for wait in ("thread", "readiness")
]
SECONDS = 300  # for one module; a hang is reported, with the test that hung


def all_modules():
    import test.test_asyncio

    folder = pathlib.Path(test.test_asyncio.__file__).parent
    return sorted(path.stem for path in folder.glob("test_*.py") if "windows" not in path.name)


def run(module, host):
    """{test id: outcome} and {test id: details} of one module under one host."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "out.json")
        log = pathlib.Path(folder, "log")
        name, _, wait = host.partition("/")
        path = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
        with log.open("w") as file:
            try:
                subprocess.run(
                    [sys.executable, str(HERE / "guests.py"), name, wait or "-", module],
                    env={**os.environ, "AIOGUEST_STDLIB_OUT": str(out), "PYTHONPATH": path},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                pass
        if out.exists():
            result = json.loads(out.read_text())
            return result["outcomes"], result["details"]
        started = [line for line in log.read_text().splitlines() if line.startswith("test.")]
        last = started[-1] if started else f"{module} (import)"
        return {last: "hung or crashed"}, {}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", nargs="+", default=HOSTS, choices=HOSTS, metavar="HOST/WAIT")
    parser.add_argument("modules", nargs="*")
    options = parser.parse_args()
    listed = {
        line.split()[0]
        for line in (HERE / "differences.txt").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    }
    counts = {host: [0, 0, 0] for host in options.hosts}  # same, listed, different
    for module in options.modules or all_modules():
        plain, _ = run(module, "plain")
        for host in options.hosts:
            guest, details = run(module, host)
            for test in sorted({*plain, *guest}):
                if plain.get(test) == guest.get(test):
                    counts[host][0] += 1
                elif test in listed:
                    counts[host][1] += 1
                else:
                    counts[host][2] += 1
                    print(f"{host}: {test}: {plain.get(test)} -> {guest.get(test)}")
                    print("\n".join(details.get(test, "").splitlines()[-4:]), flush=True)
    print(f"test.test_asyncio on Python {sys.version.split()[0]}, as guests against plain:")
    for host, (same, listed_count, different) in counts.items():
        print(
            f"  {host}: {same} the same, {listed_count} different as listed, {different} different"
        )
    sys.exit(any(different for _, _, different in counts.values()))


if __name__ == "__main__":
    main()

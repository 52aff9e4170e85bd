"""Measures aioguest against plain asyncio and the peers. How, and how to read it: README.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from setup_peers import PEERS, environment

HERE = Path(__file__).resolve().parent
BASE = "asyncio"
CANDIDATES = [
    BASE,
    "trio-readiness",
    "trio-thread",
    "asyncio-host",
    "aioguest-0.1.0",
    "trio-asyncio",
]
ROWS = [
    "echo",
    "remote_echo",
    "sleep0",
    "timers",
    "lone_timer",
    "idle",
    "fairness",
    "startup",
    "import",
    "memory",
]
SAMPLE_TIMEOUT = 30.0

# asyncio receives into a block of 256 KiB, and glibc maps and unmaps one that size for every
# recv(), until some unrelated free() of a large block has raised its threshold. Which side a
# process is on is chance, and worth a factor of two in the echo rows: so it is set, for all.
# The memory row keeps the allocator's own ways.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(8 << 20)}


class Metric(NamedTuple):
    label: str
    more_is_better: bool
    digits: int
    slack: float  # a difference of the medians up to this is a tie


METRICS = {
    "echo": Metric("in-process echo, round trips/s", True, 0, 0),
    "remote_echo": Metric("echo to a second process, round trips/s", True, 0, 0),
    "sleep0": Metric("sleep(0), per second", True, 0, 0),
    "timers": Metric("1000 timers of 10 ms, mean late, ms", False, 2, 0.05),
    "lone_timer": Metric("lone timer of 10 ms, mean late, ms", False, 3, 0.05),
    "idle_cpu": Metric("idle, CPU, %", False, 3, 0.01),
    "idle_wakeups": Metric("idle, wake-ups in 2 s", False, 0, 0),
    "fairness_p50": Metric("host late under a spinning guest, p50, ms", False, 2, 0.05),
    "fairness_p99": Metric("the same, p99, ms", False, 2, 0.05),
    "fairness_rate": Metric("the guest's sleep(0) meanwhile, per second", True, 0, 0),
    "startup": Metric("an empty run, us", False, 0, 0),
    "import": Metric("import (on top of asyncio), ms", False, 1, 0),
    "memory": Metric("an idle guest, KiB", False, 1, 0),
}


class Floor(NamedTuple):
    """What issue 2 asks of a candidate's median, of the ratio or of the difference to BASE."""

    metric: str
    candidate: str
    of: str  # "ratio", "value" or "difference"
    at_least: Optional[float] = None
    at_most: Optional[float] = None


FLOORS = [
    Floor("echo", "trio-readiness", "ratio", at_least=0.85),
    Floor("echo", "trio-thread", "ratio", at_least=0.80),
    Floor("sleep0", "trio-readiness", "ratio", at_least=0.80),
    Floor("sleep0", "trio-thread", "ratio", at_least=0.80),
    Floor("remote_echo", "trio-readiness", "ratio", at_least=0.80),
    Floor("remote_echo", "trio-thread", "ratio", at_least=0.55),
    Floor("idle_wakeups", "trio-readiness", "value", at_most=0),
    Floor("idle_wakeups", "trio-thread", "value", at_most=0),
    Floor("idle_cpu", "trio-readiness", "difference", at_most=METRICS["idle_cpu"].slack),
    Floor("idle_cpu", "trio-thread", "difference", at_most=METRICS["idle_cpu"].slack),
    Floor("import", "trio-readiness", "ratio", at_most=1 / 3),
]
AHEAD = ("trio-readiness", "trio-thread")  # of every peer, in every metric

# A sample is what the worker printed, or {"error": text}. By candidate, then row: one a round.
Samples = Dict[str, Dict[str, List[Dict[str, Any]]]]


class Sampler:
    """Knows how each candidate's process is started."""

    def __init__(self, variants: Dict[str, str], scale: float) -> None:
        self._variants = variants
        self._scale = scale
        self._pythons: Dict[str, str] = {}
        self._environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def prepare(self, candidate: str) -> Dict[str, Any]:
        """Its versions, or {"absent": reason}, or {"error": text}. Compiles its modules, too."""
        self._pythons[candidate] = sys.executable
        if candidate in PEERS:
            made = environment(candidate)
            if not made.python:
                return {"absent": made.reason}
            self._pythons[candidate] = made.python
        answer = self.sample(candidate, "info")
        path = answer.get("versions", {}).get("path")
        source = self._source(candidate)
        if path and source and Path(source).resolve() not in Path(path).resolve().parents:
            return {"error": f"it imported {path}, not the package in {source}"}
        return answer

    def _source(self, candidate: str) -> Optional[str]:
        if candidate == BASE or candidate in PEERS:
            return None
        variant = candidate.partition("@")[2]
        return self._variants[variant] if variant else str(HERE.parent)

    def sample(self, candidate: str, row: str) -> Dict[str, Any]:
        environ, source = dict(self._environ), self._source(candidate)
        if source:
            environ["PYTHONPATH"] = source
        if row != "memory":
            environ.update(ALLOCATOR)
        try:
            done = subprocess.run(
                [
                    self._pythons[candidate],
                    str(HERE / "worker.py"),
                    row,
                    candidate,
                    str(self._scale),
                ],
                env=environ,
                capture_output=True,
                text=True,
                timeout=SAMPLE_TIMEOUT,
            )
            if done.returncode != 0:
                return {"error": f"exit status {done.returncode}: ...{done.stderr[-800:]}"}
            answer = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired) as exc:
            return {"error": f"{type(exc).__name__}: {exc}"}
        if not isinstance(answer, dict):
            return {"error": f"not an object: {answer!r}"}
        return answer


class Results:
    def __init__(self, candidates: List[str], rows: List[str]) -> None:
        self.candidates = candidates
        self.samples: Samples = {c: {row: [] for row in rows} for c in candidates}

    def row_of(self, metric: str, candidate: str) -> List[Dict[str, Any]]:
        """The samples of the metric's row, one a round."""
        rows = self.samples.get(candidate, {})
        return next((rows[row] for row in rows if _is_of(metric, row)), [])

    def values(self, metric: str, candidate: str) -> List[Optional[float]]:
        """One a round, None where there is none."""
        return [sample.get(metric) for sample in self.row_of(metric, candidate)]

    def median(self, metric: str, candidate: str) -> Optional[float]:
        values = [v for v in self.values(metric, candidate) if v is not None]
        return median(values) if values else None

    def ratio(self, metric: str, candidate: str, base: str = BASE) -> Optional[float]:
        """The median of the ratios to `base` in the same round."""
        pairs = zip(self.values(metric, candidate), self.values(metric, base))
        ratios = [a / b for a, b in pairs if a is not None and b]
        return median(ratios) if ratios else None

    def unsupported(self) -> Iterator[Tuple[str, str, str]]:
        for candidate, rows in self.samples.items():
            for row, samples in rows.items():
                for reason in {s["unsupported"] for s in samples if "unsupported" in s}:
                    yield candidate, row, reason

    def errors(self) -> Iterator[Tuple[str, str, int, str]]:
        for candidate, rows in self.samples.items():
            for row, samples in rows.items():
                for number, sample in enumerate(samples, 1):
                    if "error" in sample:
                        yield candidate, row, number, sample["error"]

    def table(self) -> str:
        """Markdown: the median and, in brackets, the ratio to plain asyncio."""
        lines = [["", *self.candidates]]
        for metric, (label, more_is_better, digits, _) in METRICS.items():
            cells = []
            for candidate in self.candidates:
                value, ratio = self.median(metric, candidate), self.ratio(metric, candidate)
                cell = "-" if value is None else f"{value:.{digits}f}"
                if ratio is not None and candidate != BASE and metric != "idle_cpu":
                    cell += f" ({ratio:.2f})"
                failed = sum("error" in sample for sample in self.row_of(metric, candidate))
                cells.append(cell + (f" [{failed} failed]" if failed else ""))
            if set(cells) != {"-"}:
                lines.append([f"{label} {'↑' if more_is_better else '↓'}", *cells])
        widths = [max(map(len, column)) for column in zip(*lines)]
        lines.insert(1, ["-" * width for width in widths])
        return "\n".join(
            "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths)) + " |" for line in lines
        )

    def check_floors(self) -> List[Tuple[str, str]]:
        """Every floor: PASS, FAIL or SKIP (something was not measured), and the floor."""
        verdicts = []
        for floor in FLOORS:
            metric, candidate = floor.metric, floor.candidate
            value, base = self.median(metric, candidate), self.median(metric, BASE)
            if floor.of == "ratio":
                value = self.ratio(metric, candidate)
            elif floor.of == "difference":
                value = None if value is None or base is None else value - base
            limit = floor.at_most if floor.at_least is None else floor.at_least
            assert limit is not None
            sign = "<=" if floor.at_least is None else ">="
            text = f"{candidate}: {METRICS[metric].label}: {floor.of} {sign} {limit:.2f}"
            if value is None:
                verdicts.append(("SKIP", text))
            else:
                passed = value <= limit if floor.at_least is None else value >= limit
                verdicts.append(("PASS" if passed else "FAIL", f"{text}: {value:.3f}"))
        return verdicts + [
            self._check_ahead(metric, candidate, peer)
            for candidate in AHEAD
            for peer in PEERS
            for metric in METRICS
        ]

    def _check_ahead(self, metric: str, candidate: str, peer: str) -> Tuple[str, str]:
        label, more_is_better, digits, slack = METRICS[metric]
        text = f"{candidate}: {label}: ahead of {peer}"
        ours, theirs = self.median(metric, candidate), self.median(metric, peer)
        if ours is None or theirs is None:
            return "SKIP", text
        text = f"{text}: {ours:.{digits}f} and {theirs:.{digits}f}"
        lead = ours - theirs if more_is_better else theirs - ours
        if abs(lead) <= slack:
            return "PASS", f"{text} (a tie)"
        return ("PASS" if lead > 0 else "FAIL"), text


def _is_of(metric: str, row: str) -> bool:
    return metric == row or metric.startswith(row + "_")


def _variant(text: str) -> Tuple[str, str]:
    name, _, folder = text.partition("=")
    if not name or not (Path(folder) / "aioguest").is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER with FOLDER/aioguest in it")
    return name, str(Path(folder).resolve())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, help="default: 7, or 3 with --quick")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=ROWS, default=ROWS)
    parser.add_argument("--candidates", nargs="+", metavar="CANDIDATE", default=CANDIDATES)
    parser.add_argument(
        "--variant",
        type=_variant,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="another copy of the package: the candidates trio-readiness@NAME and so on",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument("--quick", action="store_true", help="short samples, few rounds")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a floor fails")
    arguments = parser.parse_args()
    for candidate in arguments.candidates:
        name, at, variant = candidate.partition("@")
        if name not in CANDIDATES or (at and variant not in dict(arguments.variant)):
            parser.error(f"no such candidate: {candidate} (of {', '.join(CANDIDATES)})")
    return arguments


def _load() -> Optional[List[float]]:
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None


def main() -> int:
    arguments = _arguments()
    sampler = Sampler(dict(arguments.variant), 0.4 if arguments.quick else 1.0)
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    versions, absent, broken = {}, {}, {}
    for candidate in arguments.candidates:
        answer = sampler.prepare(candidate)
        if "absent" in answer:
            absent[candidate] = answer["absent"]
        elif "error" in answer:
            broken[candidate] = answer["error"]
        else:
            versions[candidate] = answer["versions"]
    results = Results(list(versions), arguments.only)
    loads, begin = [_load()], time.time()
    for number in range(rounds):
        turn = number % max(1, len(results.candidates))
        order = results.candidates[turn:] + results.candidates[:turn]
        print(f"round {number + 1} of {rounds}, load {loads[-1]}", file=sys.stderr, flush=True)
        for row in arguments.only:
            for candidate in order:
                results.samples[candidate][row].append(sampler.sample(candidate, row))
        loads.append(_load())
    verdicts = results.check_floors()

    print(
        f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()}, "
        f"{os.cpu_count()} CPUs, {rounds} rounds, {time.time() - begin:.0f} s, "
        f"load {loads[0]} before and {loads[-1]} after\n"
    )
    print(results.table() + "\n")
    for candidate, found in versions.items():
        print(f"- {candidate}: {', '.join(f'{k} {v}' for k, v in found.items()) or 'plain'}")
    for candidate, reason in absent.items():
        print(f"- {candidate}: absent: {reason}")
    for candidate, reason in broken.items():
        print(f"- {candidate}: BROKEN: {reason}")
    for candidate, row, reason in results.unsupported():
        print(f"- {candidate}: {row}: unsupported: {reason}")
    print("\nFloors:")
    for verdict, text in verdicts:
        if verdict != "SKIP":
            print(f"{verdict} {text}")
    skipped = [text for verdict, text in verdicts if verdict == "SKIP"]
    if skipped:
        print(f"SKIP {len(skipped)} more: not measured in this run")
    errors = list(results.errors())
    if errors:
        print(f"\n{len(errors)} samples failed:")
        alike: Dict[Tuple[str, str, str], List[str]] = {}
        for candidate, row, number, text in errors:
            alike.setdefault((row, candidate, text.strip()), []).append(str(number))
        for (row, candidate, text), numbers in alike.items():
            print(f"- {row}, {candidate}, round {', '.join(numbers)}: {text}")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        report = {
            "python": sys.version,
            "implementation": platform.python_implementation(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "began": begin,
            "rounds": rounds,
            "quick": arguments.quick,
            "load": loads,
            "allocator": ALLOCATOR,
            "versions": versions,
            "absent": absent,
            "broken": broken,
            "floors": verdicts,
            "samples": results.samples,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    failed_floor = any(verdict == "FAIL" for verdict, _ in verdicts)
    return 1 if errors or broken or (arguments.strict and failed_floor) else 0


if __name__ == "__main__":
    sys.exit(main())

"""One sample in one process: ``worker.py ROW CANDIDATE [SCALE]`` prints one JSON line.

The line is ``{"metric": number, ...}``, or ``{"absent": reason}`` if the candidate is not
installed, or ``{"unsupported": reason}`` if it cannot do this row. The row ``info`` gives
versions instead. SCALE (default 1) stretches the time that a sample takes, about 0.5 s.
"""

# Whatever is imported up here is imported before the import row can measure it.
import sys
import time


def measure_import(candidate):
    """Milliseconds of ``import asyncio``, or what the candidate's package adds to that."""
    begin = time.perf_counter()
    import asyncio  # noqa: F401

    middle = time.perf_counter()
    if candidate == "asyncio":
        return {"import": (middle - begin) * 1e3}
    if candidate == "trio-asyncio":
        import trio_asyncio  # type: ignore[import-not-found]  # noqa: F401
    else:
        import aioguest  # noqa: F401
    return {"import": (time.perf_counter() - middle) * 1e3}


def main(row, candidate, scale="1"):
    if row == "import":
        result = measure_import(candidate)
    else:
        import workloads

        try:
            result = workloads.measure(row, candidate, float(scale))
        except ImportError as exc:
            if exc.name not in workloads.REQUIREMENTS:
                raise
            result = {"absent": f"{type(exc).__name__}: {exc}"}

    import json

    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Async generators that nobody looks after: those of a host without hooks.

A guest's own generators are finalized by its loop. One that the host iterates, in a host
that has no hooks of its own (a GUI loop, a queue), would get Python's "async generator
ignored GeneratorExit" if it awaits while it is finalized, which tells its author nothing.
While a guest runs on such a thread, this finalizer does what Python does and says more.
"""

from __future__ import annotations

import sys
import threading
from typing import Any


class _Installed(threading.local):
    count = 0


_installed = _Installed()


def _finalize(generator: Any) -> None:
    closer = generator.aclose()
    try:
        closer.send(None)
    except StopIteration:
        return
    closer.close()
    raise RuntimeError(
        f"the async generator {generator.__qualname__!r} was iterated outside of any async "
        "library and awaited something during finalization: close it with `await "
        "generator.aclose()`, or use it in `async with contextlib.aclosing(...)`, inside a "
        "task of the library that should finalize it"
    )


def install() -> None:
    """Look after this thread's generators if nobody else does. Call :func:`remove` after."""
    _installed.count += 1
    if sys.get_asyncgen_hooks() == (None, None):
        sys.set_asyncgen_hooks(finalizer=_finalize)


def remove() -> None:
    """On the same thread. (A run that another thread had to end stays counted.)"""
    _installed.count -= 1
    if _installed.count == 0 and sys.get_asyncgen_hooks() == (None, _finalize):
        sys.set_asyncgen_hooks(finalizer=None)

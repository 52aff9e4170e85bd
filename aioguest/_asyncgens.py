"""Async generators that nobody looks after: those of a host without hooks.

A guest's own generators are finalized by its loop. One that the host iterates, in a host
that has no hooks of its own (a GUI loop, a queue), would get Python's "async generator
ignored GeneratorExit" if it awaits while it is finalized, which tells its author nothing.
While a guest runs on such a thread, this finalizer does what Python does and says more.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, List


class _Installed(threading.local):
    """How many runs on this thread count on the finalizer."""

    def __init__(self) -> None:
        self.users: List[None] = []


_here = _Installed()


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


def install() -> List[None]:
    """Look after this thread's generators if nobody else does. :func:`remove` takes the result."""
    users = _here.users
    users.append(None)
    if sys.get_asyncgen_hooks() == (None, None):
        sys.set_asyncgen_hooks(finalizer=_finalize)
    return users


def remove(users: List[None]) -> None:
    """From any thread. (On another one the hook stays until the next run's end there.)"""
    users.pop()
    if users is _here.users and not users and sys.get_asyncgen_hooks() == (None, _finalize):
        sys.set_asyncgen_hooks(finalizer=None)

"""Contract 9: async generators are finalized by the loop that iterated them first."""

import asyncio
import gc
import sys

import pytest
from harness import KINDS, QueueHost

import aioguest
from aioguest import _asyncgens


async def generator(log, wait):
    try:
        yield 1
    finally:
        log.append("finalizing")
        if wait:
            await asyncio.sleep(0)
        log.append("finalized")


def step(agen):
    """Iterate `agen` outside of any library."""
    with pytest.raises(StopIteration):
        agen.__anext__().send(None)


def catch_unraisable(monkeypatch):
    caught = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: caught.append(args.exc_value))
    return caught


def test_the_guests_generators_are_finalized_in_the_guest(kind):
    log = []

    async def main():
        agen = generator(log, wait=True)
        await agen.__anext__()
        del agen
        gc.collect(0)
        while "finalized" not in log:
            await asyncio.sleep(0)
        log.append("main")

    kind.run(main)
    assert log == ["finalizing", "finalized", "main"]


def test_the_guests_generators_dropped_by_the_host_are_finalized_in_the_guest(kind):
    log = []

    async def main():
        keep = [generator(log, wait=True)]
        await keep[0].__anext__()
        kind.in_host(keep.clear)
        while "finalized" not in log:
            await asyncio.sleep(0.001)

    kind.run(main)
    assert log == ["finalizing", "finalized"]


def test_a_generator_of_a_host_without_hooks_gets_pythons_default(queue_kind, monkeypatch):
    log = []
    unraisable = catch_unraisable(monkeypatch)

    async def main():
        event = asyncio.Event()

        def in_host():
            agen = generator(log, wait=False)
            step(agen)
            del agen
            event.set()

        queue_kind.in_host(in_host)
        await event.wait()

    queue_kind.run(main)
    assert log == ["finalizing", "finalized"]
    assert unraisable == []


def test_a_generator_of_a_host_without_hooks_that_awaits_says_what_to_do(queue_kind, monkeypatch):
    log = []
    unraisable = catch_unraisable(monkeypatch)

    async def main():
        event = asyncio.Event()

        def in_host():
            agen = generator(log, wait=True)
            step(agen)
            del agen
            event.set()

        queue_kind.in_host(in_host)
        await event.wait()

    queue_kind.run(main)
    assert log == ["finalizing"]
    (error,) = unraisable
    assert isinstance(error, RuntimeError)
    assert "'generator'" in str(error)
    assert "awaited something during finalization: close it with" in str(error)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.is_async], ids=str)
def test_a_host_with_hooks_keeps_them(kind):

    async def main():
        event = asyncio.Event()

        def in_host():
            hooks.append(sys.get_asyncgen_hooks())
            event.set()

        kind.in_host(in_host)
        await event.wait()

    hooks = []

    def setup(api):
        hooks.append(sys.get_asyncgen_hooks())
        api.start(main, done_callback=lambda outcome: (outcome.unwrap(), api.finish()))

    kind.loop(setup)
    assert hooks[0] == hooks[1] != (None, None)


def test_the_last_of_several_guests_takes_the_hooks_away(queue_kind):
    async def main(delay):
        await asyncio.sleep(delay)

    def setup(api):
        ended = []

        def done(outcome):
            ended.append(sys.get_asyncgen_hooks())
            if len(ended) == 2:
                assert ended[0].finalizer is _asyncgens._finalize
                assert ended[1] == (None, None)
                api.finish()

        api.start(main, 0.001, done_callback=done)
        api.start(main, 0.005, done_callback=done)

    queue_kind.loop(setup)


def test_hooks_that_somebody_set_in_between_stay():
    def finalizer(agen):
        pass

    async def main():
        pass

    with QueueHost() as host:
        outcomes = []
        aioguest.start_guest_run(main, host=host, done_callback=outcomes.append, tick_budget=0)
        host.turn()
        sys.set_asyncgen_hooks(finalizer=finalizer)
        host.run_until(lambda: outcomes)
    try:
        assert sys.get_asyncgen_hooks().finalizer is finalizer
    finally:
        sys.set_asyncgen_hooks(None, None)

"""Hundreds of tasks of both libraries that call each other and get cancelled."""

import asyncio
import random

import pytest
import trio

from aioguest.hosts.trio import current_guest, open_guest

pytestmark = pytest.mark.trio


@pytest.mark.parametrize("seed", range(3))
async def test_every_one_of_400_calling_and_cancelled_tasks_is_accounted_for(seed):
    dice = random.Random(seed)
    began, ended, outcomes = [], [], []

    async def in_trio(guest, depth):
        began.append("trio")
        try:
            await trio.sleep(dice.random() * 0.01)
            if depth:
                with trio.move_on_after(dice.random() * 0.05):
                    await guest.run(in_asyncio, depth - 1)
            if dice.random() < 0.1:
                raise KeyError("trio")
        finally:
            ended.append("trio")

    async def in_asyncio(depth):
        began.append("asyncio")
        try:
            await asyncio.sleep(dice.random() * 0.01)
            if depth:
                guest = current_guest()
                call = asyncio.ensure_future(guest.run_trio(in_trio, guest, depth - 1))
                if dice.random() < 0.3:
                    guest.loop.call_later(dice.random() * 0.02, call.cancel)
                try:
                    await call
                except asyncio.CancelledError:
                    if not call.cancelled():
                        raise
                finally:
                    if not call.done():
                        call.cancel()
                        await asyncio.wait({call})
            if dice.random() < 0.1:
                raise KeyError("asyncio")
        finally:
            ended.append("asyncio")

    async def child(guest, first_in_asyncio, depth, patience):
        outcome = None
        try:
            with trio.move_on_after(patience) as scope:
                if first_in_asyncio:
                    await guest.run(in_asyncio, depth)
                else:
                    await in_trio(guest, depth)
            outcome = "cancelled" if scope.cancelled_caught else "value"
        except (KeyError, asyncio.CancelledError) as exc:
            outcome = type(exc).__name__
        finally:
            outcomes.append(outcome)

    async with open_guest() as guest:
        async with trio.open_nursery() as nursery:
            for number in range(400):
                patience = dice.choice([0, dice.random() * 0.05, 30, 30])
                nursery.start_soon(child, guest, number % 2 == 0, dice.randrange(5), patience)
        loop_tasks = [task for task in asyncio.all_tasks(guest.loop) if not task.done()]
        assert len(loop_tasks) == 1  # The guest's own main task.
        assert not guest._callers
    assert len(outcomes) == 400
    assert None not in outcomes
    assert {"value", "cancelled", "KeyError"} <= set(outcomes)
    assert sorted(began) == sorted(ended)
    # (Whom a task swallowed the cancellation of is its own business.)

"""A pool is refilled several at a time, after those who wait, and never without end."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from tests.world import PATIENCE, until
from tuunel import refill as module
from tuunel.errors import Failure, Reason
from tuunel.refill import AT_ONCE, Refill

pytestmark = pytest.mark.anyio


class Pool:
    """Holds how many things it has, of how many it wants; each is made when the test lets it."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.held = 0
        self.begun = 0
        self.let = anyio.Event()

    def lacking(self) -> int:
        return self.wanted - self.held

    async def make(self) -> None:
        self.begun += 1
        await self.let.wait()
        self.held += 1


@asynccontextmanager
async def refilling(pool: Pool, make: Callable[[], Awaitable[None]] | None = None) -> AsyncIterator[Refill]:
    async with anyio.create_task_group() as tasks:
        yield Refill(tasks, pool.lacking, make or pool.make)
        tasks.cancel_scope.cancel()


async def test_what_is_lacking_is_made_several_at_a_time() -> None:
    pool = Pool(3 * AT_ONCE)
    async with refilling(pool) as refill:
        refill.begin()
        await until(lambda: pool.begun == AT_ONCE)
        await anyio.wait_all_tasks_blocked()
        assert pool.begun == AT_ONCE
        refill.begin()  # it is under way
        pool.let.set()
        await until(lambda: not refill.running)
        assert pool.begun == pool.held == pool.wanted


async def test_what_comes_back_meanwhile_is_not_made() -> None:
    pool = Pool(2 * AT_ONCE)
    async with refilling(pool) as refill:
        refill.begin()
        await until(lambda: pool.begun == AT_ONCE)
        pool.held = AT_ONCE
        pool.let.set()
        await until(lambda: not refill.running)
        assert pool.begun == AT_ONCE


async def test_a_full_pool_is_left_alone() -> None:
    async with refilling(Pool(0)) as refill:
        refill.begin()
        assert not refill.running


async def test_things_that_spoil_at_once_are_not_made_without_end() -> None:
    pool = Pool(AT_ONCE + 1)

    async def spoil() -> None:
        pool.begun += 1
        await anyio.lowlevel.checkpoint()

    async with refilling(pool, spoil) as refill:
        refill.begin()
        await until(lambda: not refill.running)
        assert pool.begun == AT_ONCE + 1


async def test_a_failure_ends_the_refill_and_the_next_one_tries_again() -> None:
    pool = Pool(3 * AT_ONCE)

    async def fail() -> None:
        pool.begun += 1
        raise Failure(Reason.RELAY_UNREACHABLE)

    async with refilling(pool, fail) as refill:
        for round_ in (1, 2):
            refill.begin()
            await until(lambda: not refill.running)
            assert pool.begun == round_


async def test_who_waits_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", PATIENCE)
    pool = Pool(1)
    pool.let.set()
    async with refilling(pool) as refill:
        with refill.rush(), refill.rush():
            refill.begin()
            await anyio.wait_all_tasks_blocked()
            assert not pool.begun
        await until(lambda: pool.held == 1)


async def test_a_rush_without_end_does_not_keep_the_pool_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    pool = Pool(1)
    pool.let.set()
    async with refilling(pool) as refill:
        with refill.rush():
            refill.begin()
            await until(lambda: pool.held == 1)

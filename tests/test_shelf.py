"""Things that wait: nothing put on a shelf is ever lost, given away twice, or looked after by two."""

import time

import anyio
import anyio.lowlevel
import pytest

from tests.world import until
from tuunel.companions import companions
from tuunel.errors import Failure, Reason, RemoteProtocolError
from tuunel.shelf import Shelf

pytestmark = pytest.mark.anyio


class Item:
    def __init__(self) -> None:
        self.spoil = anyio.Event()
        self.error: Exception | None = None
        self.cared_for = False

    async def care(self) -> None:
        self.cared_for = True
        try:
            await self.spoil.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.cared_for = False


async def test_the_item_put_last_is_taken_first_and_none_when_nothing_waits() -> None:
    async with companions() as carers:
        discarded: list[Item] = []
        shelf = Shelf[Item](carers, Item.care, discarded.append)
        first, second = Item(), Item()
        shelf.put(first)
        shelf.put(second)
        assert len(shelf) == 2
        assert [await shelf.take(), await shelf.take(), await shelf.take()] == [second, first, None]
        assert not discarded


async def test_the_items_that_have_waited_longest_are_thinned_out() -> None:
    async with companions() as carers:
        discarded: list[Item] = []
        shelf = Shelf[Item](carers, Item.care, discarded.append)
        items = [Item() for _ in range(4)]
        for item in items[:3]:
            shelf.put(item)
        now = time.monotonic()
        shelf.put(items[3])
        shelf._places[3].since = now + 1
        await until(lambda: items[3].cared_for)
        assert shelf.thin(now - 60, 0) == 0
        assert shelf.thin(now + 0.5, 3) == 1
        assert shelf.thin(now + 0.5, 0) == 2
        assert discarded == items[:3]
        await until(lambda: not any(item.cared_for for item in discarded))
        assert await shelf.take() is items[3]


async def test_a_taken_item_is_no_longer_looked_after() -> None:
    async with companions() as carers:
        shelf = Shelf[Item](carers, Item.care, lambda _: None)
        item = Item()
        shelf.put(item)
        await until(lambda: item.cared_for)
        assert await shelf.take() is item
        assert not item.cared_for


@pytest.mark.parametrize(
    "error",
    [None, Failure(Reason.TUNNEL_LOST), RemoteProtocolError("nonsense"), ConnectionResetError(), anyio.ClosedResourceError()],
    ids=lambda error: type(error).__name__,
)
async def test_an_item_that_spoils_is_discarded_and_nobody_else_suffers(error: Exception | None) -> None:
    async with companions() as carers:
        discarded: list[Item] = []
        shelf = Shelf[Item](carers, Item.care, discarded.append)
        spoilt, good = Item(), Item()
        spoilt.error = error
        shelf.put(good)
        shelf.put(spoilt)
        spoilt.spoil.set()
        await until(lambda: discarded)
        assert discarded == [spoilt]
        assert await shelf.take() is good


async def test_takers_at_the_same_time_never_share_an_item() -> None:
    async with companions() as carers:
        shelf = Shelf[Item](carers, Item.care, lambda _: None)
        taken: list[Item | None] = []

        async def take() -> None:
            taken.append(await shelf.take())

        for _ in range(5):
            shelf.put(Item())
        async with anyio.create_task_group() as takers:
            for _ in range(8):
                takers.start_soon(take)
        items = [item for item in taken if item is not None]
        assert len(items) == len(set(map(id, items))) == 5


async def test_what_a_cancelled_taker_took_is_discarded() -> None:
    async with companions() as carers:
        discarded: list[Item] = []
        shelf = Shelf[Item](carers, Item.care, discarded.append)
        item = Item()
        shelf.put(item)
        await until(lambda: item.cared_for)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await shelf.take()
        assert discarded == [item]
        assert len(shelf) == 0


async def test_care_that_must_finish_is_waited_for() -> None:
    finished: list[bool] = []

    async def care(item: Item) -> None:
        item.cared_for = True
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            finished.append(True)

    async with companions() as carers:
        shelf = Shelf[Item](carers, care, lambda _: None)
        shelf.put(item := Item())
        await until(lambda: item.cared_for)
        await shelf.take()
        assert finished


async def test_an_item_that_is_taken_again_at_once_was_never_looked_after() -> None:
    async with companions() as carers:
        shelf = Shelf[Item](carers, Item.care, lambda _: None, unattended=60)
        shelf.put(item := Item())
        await anyio.wait_all_tasks_blocked()
        assert not item.cared_for
        assert await shelf.take() is item


async def test_an_item_that_waits_for_long_is_looked_after_in_the_end() -> None:
    async with companions() as carers:
        discarded: list[Item] = []
        shelf = Shelf[Item](carers, Item.care, discarded.append, unattended=0.01)
        shelf.put(item := Item())
        await until(lambda: item.cared_for)
        item.spoil.set()
        await until(lambda: discarded)
        assert len(shelf) == 0


@pytest.mark.parametrize("how", ["clear", "clear before anybody looks after them", "the end of the tasks"])
async def test_everything_is_discarded_at_the_end(how: str) -> None:
    discarded: list[Item] = []
    async with companions() as carers:
        shelf = Shelf[Item](carers, Item.care, discarded.append, unattended=60 if how == "clear before anybody looks after them" else 0)
        items = [Item(), Item()]
        for item in items:
            shelf.put(item)
        if how != "clear before anybody looks after them":
            await until(lambda: all(item.cared_for for item in items))
        if how == "the end of the tasks":
            carers.cancel()
        else:
            shelf.clear()
            assert len(shelf) == 0
    assert set(map(id, discarded)) == set(map(id, items))
    assert len(discarded) == 2

"""Things that wait for their use, each looked after by a companion of its own until somebody takes it or it spoils."""

import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

from tuunel.companions import Companion, Companions
from tuunel.errors import Failure, RemoteProtocolError

Item = TypeVar("Item")


class _Place(Generic[Item]):
    __slots__ = ("care", "item", "since")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.since = time.monotonic()
        self.care: Companion


class Shelf(Generic[Item]):
    """Keeps items; `care(item)` runs for each in `carers` while it waits. An item whose care ends or fails is given to `discard`.

    With `unattended` it begins after so many seconds: most of what comes and goes is taken again by then, and costs less. `care` may be
    cancelled at any wait. `discard` must not wait. The caller must `clear` what still waits before the context of `carers` is left.
    """

    def __init__(
        self, carers: Companions, care: Callable[[Item], Awaitable[None]], discard: Callable[[Item], None], *, unattended: float = 0.0
    ) -> None:
        self._carers = carers
        self._unattended = unattended
        self._care = care
        self._discard = discard
        self._places: list[_Place[Item]] = []

    def __len__(self) -> int:
        """How many items wait."""
        return len(self._places)

    def put(self, item: Item) -> None:
        """Take over `item`."""
        place = _Place(item)
        self._places.append(place)
        if self._unattended:
            place.care = self._carers.start_later(self._unattended, self._look_after, place)
        else:
            place.care = self._carers.start(self._look_after, place)

    async def take(self) -> Item | None:
        """The item put last, now the caller's; None when nothing waits."""
        if not self._places:
            return None
        place = self._places.pop()
        place.care.cancel()
        try:
            await place.care.ended()
        except BaseException:  # taken, and not handed on
            self._discard(place.item)
            raise
        return place.item

    def clear(self) -> None:
        """Discard everything."""
        while self._places:
            self._drop(self._places.pop())

    def thin(self, before: float, keep: int) -> int:
        """Discard what was put before that time of the monotonic clock, the longest first, while more than `keep` wait: how many."""
        dropped = 0
        while len(self._places) > keep and self._places[0].since < before:
            self._drop(self._places.pop(0))
            dropped += 1
        return dropped

    def _drop(self, place: _Place[Item]) -> None:
        place.care.cancel()
        self._discard(place.item)

    async def _look_after(self, place: _Place[Item]) -> None:
        try:
            await self._care(place.item)
        except (Failure, RemoteProtocolError, OSError, anyio.ClosedResourceError):
            pass  # spoilt
        finally:
            if place in self._places:
                self._places.remove(place)
                self._discard(place.item)

"""The connections of one role: each gets a number, its life is told by events, and how it ended is remembered for a while."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Final

import anyio

from tuunel.errors import Failure
from tuunel.events import ConnectionChanged, ConnectionClosed, ConnectionOpened, Emit, Traffic

REMEMBERED: Final = 1000  #: ended connections whose outcome is kept: whoever asks does so at once


class Entry:
    """One connection. `traffic` is its live counter."""

    def __init__(self, ledger: "Ledger", number: int) -> None:
        self.number = number
        self.traffic = Traffic()
        self._ledger = ledger

    def connected(self, tunnel_id: str = "") -> None:
        """The target is connected; `tunnel_id` is empty for a direct connection."""
        self._ledger.emit(ConnectionChanged(self.number, "open", tunnel_id))

    def end(self, reason: str, detail: str = "") -> None:
        """The connection is over: "done", "reset" or the name of a Reason. The first call counts."""
        self._ledger.close(self.number, reason, detail)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """End the entry when the body raises: with a Failure's reason, or as a reset."""
        try:
            yield
        except Failure as failure:
            self.end(str(failure.reason), f"{failure.speaker}: {failure}")
            raise
        except BaseException:
            self.end("reset")
            raise


class Ledger:
    """Numbers connections and tells of them."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self._numbers = count(1)
        self._open: set[int] = set()
        self._outcomes: OrderedDict[int, str] = OrderedDict()
        self._waiting: dict[int, anyio.Event] = {}

    def __len__(self) -> int:
        """How many connections are not over."""
        return len(self._open)

    def open(self, target: str, *, device: str, door: str, path: str) -> Entry:
        """A connection begins."""
        entry = Entry(self, next(self._numbers))
        self._open.add(entry.number)
        self.emit(ConnectionOpened(entry.number, target, device, door, path, entry.traffic))
        return entry

    def close(self, number: int, reason: str, detail: str) -> None:
        """See `Entry.end`."""
        if number not in self._open:
            return
        self._open.discard(number)
        self._outcomes[number] = reason
        if len(self._outcomes) > REMEMBERED:
            self._outcomes.popitem(last=False)
        self.emit(ConnectionClosed(number, reason, detail))
        if over := self._waiting.pop(number, None):
            over.set()

    def outcome(self, number: int) -> str | None:
        """How a connection ended; None while it lives, or when it is unknown or long over."""
        return self._outcomes.get(number)

    async def until_ended(self, number: int) -> None:
        """Wait for the end of a connection that is open."""
        if number in self._open:
            await self._waiting.setdefault(number, anyio.Event()).wait()

"""The connections of one role: each gets a number, its life is told by events, and how it ended is remembered for a while.

Whoever watches a role asks the ledger what there is, and a person's wish to end a connection comes here.
"""

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import count, islice
from types import TracebackType
from typing import Any, Final, Self

import anyio

from tuunel.errors import Failure, Reason, UsageError
from tuunel.events import ConnectionChanged, ConnectionClosed, ConnectionOpened, Emit, Notice, Totals, Traffic

REMEMBERED: Final = 1000  #: ended connections whose outcome is kept: whoever asks does so at once
ENDED_SHOWN: Final = 100  #: ended connections that `document` still shows, with their close reasons
_RELAY_SAID: Final = "the relay has ended the tunnel, and said why"
MAX_SHOWN: Final = 2000  #: open connections in one `document`, the newest: half a megabyte of JSON, and more than anybody reads


class Entry:
    """One connection. `traffic` is its live counter. As a context manager it ends with the error of the body, if that raises."""

    def __init__(self, ledger: "Ledger", opened: ConnectionOpened, began: float) -> None:
        self.number = opened.id
        self.traffic = opened.traffic
        self.killed = False  #: whether a person has ended it
        self._ledger = ledger
        self._opened = opened
        self._began = began
        self._tunnel = ""
        self._state = "connecting"
        self._closed: ConnectionClosed | None = None
        self._explained: Reason | None = None
        self._ended_at = 0.0
        self._cut: Callable[[], object] | None = None

    @property
    def tunnel(self) -> str:
        """The tunnel id; "" before there is one, and for a direct connection."""
        return self._tunnel

    @property
    def path(self) -> str:
        """What carries it: `relay` or `direct`."""
        return self._opened.path

    def connected(self, tunnel_id: str = "") -> None:
        """The target is connected; `tunnel_id` is empty for a direct connection."""
        self._tunnel, self._state = tunnel_id, "open"
        self._ledger.emit(ConnectionChanged(self.number, "open", tunnel_id))

    def end(self, reason: str, detail: str = "") -> None:
        """The connection is over: "done", "reset" or the name of a Reason. The first call counts."""
        if self._closed is None:
            if reason == "reset" and self._explained is not None:
                reason, detail = str(self._explained), _RELAY_SAID
            self._closed, self._ended_at = ConnectionClosed(self.number, reason, detail), self._ledger.clock()
            if not self.killed:
                self._cut = None  # it may hold on to sockets and buffers
            self._ledger.close(self, self._closed)

    def explain(self, reason: Reason) -> None:
        """Take the relay's word for why the connection was cut, before or after it is seen to have ended."""
        if self._explained is not None or (self._closed is not None and self._closed.reason != "reset"):
            return
        self._explained = reason
        if self._closed is not None:
            self._closed = replace(self._closed, reason=str(reason), detail=_RELAY_SAID)
        if reason is Reason.KILLED:
            self._ledger.emit(Notice(f"#{self.number} {self._opened.target}: a person at the relay has ended it"))

    def cut_by(self, cut: Callable[[], object]) -> None:
        """Say how the connection is cut from now on, in one call that does not wait. One that a person has ended already is cut at once."""
        self._cut = cut
        if self.killed:
            cut()

    def kill(self) -> None:
        """End the connection because a person wants it, and cut it."""
        self.killed = True
        failure = Failure(Reason.KILLED)
        self.end(str(failure.reason), f"{failure.speaker}: {failure}")
        if self._cut is not None:
            self._cut()
            self._cut = None

    @contextmanager
    def killable(self) -> Iterator[None]:
        """While the body runs, a kill cancels it: Failure(KILLED)."""
        with anyio.CancelScope() as scope:
            self.cut_by(scope.cancel)
            yield
        if scope.cancelled_caught:
            raise Failure(Reason.KILLED)

    def __enter__(self) -> Self:
        """Begin what ends the entry when it raises: with a Failure's reason, or as a reset."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Failure):
            self.end(str(error.reason), f"{error.speaker}: {error}")
        elif error is not None:
            self.end("reset")

    def document(self, now: float) -> dict[str, Any]:
        """The connection as the control socket shows it."""
        opened, traffic = self._opened, self.traffic
        shown: dict[str, Any] = {
            "id": self.number,
            "target": opened.target,
            "device": opened.device,
            "door": opened.door,
            "path": opened.path,
            "state": self._state,
            "tunnel": self._tunnel,
            "up": traffic.up,
            "down": traffic.down,
            "lost": traffic.lost,
            "rtt": traffic.rtt,
            "age": round(now - self._began, 3),
        }
        if self._closed is not None:
            ended = round(now - self._ended_at, 3)
            shown |= {"state": "ended", "reason": self._closed.reason, "detail": self._closed.detail, "ended": ended}
        return shown


class Ledger:
    """Numbers connections and tells of them."""

    def __init__(self, emit: Emit, clock: Callable[[], float] = time.monotonic) -> None:
        self.emit = emit
        self.clock = clock
        self.totals = Totals()  #: of the connections that are over
        self._numbers = count(1)
        self._open: dict[int, Entry] = {}
        self._ended: deque[Entry] = deque(maxlen=ENDED_SHOWN)
        self._outcomes: OrderedDict[int, str] = OrderedDict()
        self._waiting: dict[int, anyio.Event] = {}

    def __len__(self) -> int:
        """How many connections are not over."""
        return len(self._open)

    def open(self, target: str, *, device: str, door: str, path: str) -> Entry:
        """A connection begins."""
        opened = ConnectionOpened(next(self._numbers), target, device, door, path, Traffic())
        entry = self._open[opened.id] = Entry(self, opened, self.clock())
        self.emit(opened)
        return entry

    def close(self, entry: Entry, closed: ConnectionClosed) -> None:
        """See `Entry.end`, which calls this once."""
        del self._open[entry.number]
        self._ended.append(entry)
        self.totals.add(entry.traffic, closed.reason)
        self._outcomes[entry.number] = closed.reason
        if len(self._outcomes) > REMEMBERED:
            self._outcomes.popitem(last=False)
        self.emit(closed)
        if over := self._waiting.pop(entry.number, None):
            over.set()

    def kill(self, number: int) -> None:
        """End a connection because a person wants it. UsageError when there is none of this number."""
        entry = self._open.get(number)
        if entry is None:
            raise UsageError(f"no connection {number} is open here", "see 'tuunel top'")
        entry.kill()

    def explain(self, tunnel: str, reason: Reason) -> None:
        """Take the relay's word for why a tunnel was cut. One that is not known here is nothing to tell of."""
        for entry in (*self._open.values(), *self._ended):
            if tunnel and entry.tunnel == tunnel:
                entry.explain(reason)

    def outcome(self, number: int) -> str | None:
        """How a connection ended; None while it lives, or when it is unknown or long over."""
        return self._outcomes.get(number)

    async def until_ended(self, number: int) -> None:
        """Wait for the end of a connection that is open."""
        if number in self._open:
            await self._waiting.setdefault(number, anyio.Event()).wait()

    # for those who watch

    def summary(self) -> dict[str, Any]:
        """How many connections are open, by which paths, and what those that ended come to."""
        paths = Counter(entry.path for entry in self._open.values())
        return {"open": len(self._open), "paths": {"relay": 0, "direct": 0, **paths}, **asdict(self.totals)}

    def document(self) -> list[dict[str, Any]]:
        """The last ENDED_SHOWN connections that have ended, in that order, and the newest MAX_SHOWN that are open."""
        now = self.clock()
        shown = islice(self._open.values(), max(0, len(self._open) - MAX_SHOWN), None)
        return [entry.document(now) for entry in (*self._ended, *shown)]

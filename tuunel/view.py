"""What a person wants to see of the live table, and which row is meant: keys in, commands out. No I/O."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tuunel.events import Command, Kill, Leave
from tuunel.rows import Row

PAGE: Final = 10  #: rows that PageUp and PageDown move by
MAX_FILTER: Final = 60  #: characters of a filter: what fits beside its words

#: Orders by name: what is compared, the first shown having the greatest. `target` and `device` are turned round, so that A comes first.
ORDERS: Final[dict[str, Callable[[Row], Any]]] = {
    "newest": lambda row: row.since,
    "rate": lambda row: row.rate,
    "bytes": lambda row: row.carried,
    "target": lambda row: row.opened.target.lower(),
    "device": lambda row: row.opened.device.lower(),
    "state": lambda row: (row.ended is not None, row.state),
}
_ALPHABETIC: Final = frozenset({"target", "device"})


@dataclass(slots=True)
class View:
    """The choices of the person at the table. `leaves`: there is a key to leave the table without ending the role."""

    leaves: bool = False
    order: str = "newest"
    reverse: bool = False
    filter: str = ""
    frozen: bool = False
    shows_ended: bool = False  #: also those that ended long ago
    selected: int | None = None  #: the number of a connection
    typing: bool = False  #: the filter
    asked: Row | None = None  #: the connection that the person is asked about: shall it end?
    _actions: dict[str, Callable[[Sequence[Row]], None]] = field(init=False)

    def __post_init__(self) -> None:
        self._actions = {
            "up": lambda rows: self._move(rows, -1),
            "k": lambda rows: self._move(rows, -1),
            "down": lambda rows: self._move(rows, 1),
            "j": lambda rows: self._move(rows, 1),
            "pageup": lambda rows: self._move(rows, -PAGE),
            "pagedown": lambda rows: self._move(rows, PAGE),
            "home": lambda rows: self._move(rows, -len(rows)),
            "end": lambda rows: self._move(rows, len(rows)),
            "s": lambda _: self._next_order(),
            "r": lambda _: self._set(reverse=not self.reverse),
            "/": lambda _: self._set(typing=True),
            "f": lambda _: self._set(frozen=not self.frozen),
            "e": lambda _: self._set(shows_ended=not self.shows_ended),
            "x": self._ask,
            "escape": lambda _: self._set(selected=None, filter="", frozen=False),
        }

    def press(self, key: str, rows: Sequence[Row]) -> Command | None:
        """Take a key (`tuunel.keys`) while `rows` are shown, in this order. Returns what it asks of the role."""
        if self.asked is not None:
            asked, self.asked = self.asked, None
            return Kill(asked.opened.id) if key == "y" else None
        if self.typing:
            self._type(key)
            return None
        if key == "q" and self.leaves:
            return Leave()
        if key in self._actions:
            self._actions[key](rows)
        return None

    def arrange(self, rows: Iterable[Row]) -> list[Row]:
        """Those of `rows` that the filter lets through, in the order that is wanted."""
        text = self.filter.lower()
        shown = [row for row in rows if not text or row.holds(text)]
        value = ORDERS[self.order]
        shown.sort(key=lambda row: (value(row), row.opened.id), reverse=(self.order not in _ALPHABETIC) != self.reverse)
        return shown

    def help(self) -> str:
        """The keys that mean something now, on one line."""
        if self.asked is not None:
            return f"end #{self.asked.opened.id} {self.asked.opened.target} for both ends?   y ends it, any other key does not"
        if self.typing:
            return f"filter: {self.filter}_   Enter keeps it, Esc drops it"
        arrow = "\u2191" if self.reverse else "\u2193"
        keys = [
            "\u2191\u2193 select",
            "x end it" if self.selected is not None else "",
            f"s {self.order}{arrow}",
            "r reverse",
            f"/ {self.filter}" if self.filter else "/ filter",
            "f FROZEN" if self.frozen else "f freeze",
            "e all ended" if self.shows_ended else "e ended",
            "q quit" if self.leaves else "",
        ]
        return "  ".join(key for key in keys if key)

    def _set(self, **choices: Any) -> None:
        for name, value in choices.items():
            setattr(self, name, value)

    def _next_order(self) -> None:
        names = list(ORDERS)
        self.order = names[(names.index(self.order) + 1) % len(names)]

    def _move(self, rows: Sequence[Row], by: int) -> None:
        if not rows:
            self.selected = None
            return
        at = next((place for place, row in enumerate(rows) if row.opened.id == self.selected), -1)
        self.selected = rows[min(max(at + by, 0), len(rows) - 1)].opened.id

    def _ask(self, rows: Sequence[Row]) -> None:
        self.asked = next((row for row in rows if row.opened.id == self.selected and row.ended is None), None)

    def _type(self, key: str) -> None:
        if key in {"enter", "escape"}:
            self.typing = False
            self.filter = self.filter if key == "enter" else ""
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif len(key) == 1 and len(self.filter) < MAX_FILTER:
            self.filter += key

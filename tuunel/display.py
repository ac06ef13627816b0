"""The live table on a terminal: what a role carries right now. The only module that knows rich.

It draws only the rows that fit, only when something to be seen has changed; whoever calls `draw()` sets the pace.
Everything that a peer can name (targets, labels, details) is shown through `printable` as plain text, never as markup.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import Final, Self

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.live import Live
from rich.text import Text

from tuunel.events import (
    Alarm,
    ConnectionChanged,
    ConnectionClosed,
    ConnectionOpened,
    DeviceSeen,
    Event,
    Notice,
    Ready,
    RelayStateChanged,
    printable,
)

KEEP_ENDED = 5.0  # seconds that an ended row stays: long enough to read its reason
RATE_WINDOW = 1.0  # seconds over which a rate is taken
MAX_ALARMS_SHOWN = 3  # the newest stand in the header; every one has been printed above the table
MAX_RELAYS_SHOWN = 3
ELLIPSIS: Final = "\u2026"
GOOD_ENDS: Final = frozenset({"done", "reset"})
RELAY_STYLES: Final = {"online": "green", "connecting": "yellow", "offline": "bold red"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, its width in cells, and what it shows of a row. Width 0 shares what the others leave."""

    title: str
    width: int
    cell: Callable[["Row", float], str]
    right: bool = False


@dataclass(slots=True)
class Row:
    """One connection as the table knows it."""

    opened: ConnectionOpened
    since: float
    state: str = "connecting"
    ended: ConnectionClosed | None = None
    ended_at: float = 0.0
    rate: float = 0.0
    sampled: int = 0
    sampled_at: float = 0.0

    def sample(self, now: float) -> None:
        """Take the rate anew, at most once per window."""
        if now - self.sampled_at >= RATE_WINDOW:
            total = self.opened.traffic.up + self.opened.traffic.down
            self.rate = (total - self.sampled) / (now - self.sampled_at)
            self.sampled, self.sampled_at = total, now


@dataclass(slots=True)
class Totals:
    """What the ended connections add to the header."""

    up: int = 0
    down: int = 0
    lost: int = 0
    ended: int = 0
    failed: int = 0

    def add(self, row: Row, end: ConnectionClosed) -> None:
        """Count a connection that has ended."""
        self.up += row.opened.traffic.up
        self.down += row.opened.traffic.down
        self.lost += row.opened.traffic.lost
        self.ended += 1
        self.failed += end.reason not in GOOD_ENDS


STATE: Final = Column("STATE", 7, lambda row, _: condition(row))
FIGURES: Final = (
    Column("UP", 5, lambda row, _: amount(row.opened.traffic.up), right=True),
    Column("DOWN", 5, lambda row, _: amount(row.opened.traffic.down), right=True),
    Column("RATE/S", 6, lambda row, _: amount(row.rate), right=True),
    Column("RTT", 5, lambda row, _: round_trip(row.opened.traffic.rtt), right=True),
    Column("AGE", 4, lambda row, now: age(now - row.since), right=True),
)
DOOR: Final = Column("DOOR", 7, lambda row, _: row.opened.door.removeprefix("http-"))
PATH: Final = Column("PATH", 6, lambda row, _: row.opened.path)


def columns_of(role: str) -> tuple[tuple[Column, ...], tuple[Column, ...]]:
    """The columns that name a connection, and those that say how it is: an ended row shows its reason across the latter."""
    if role == "relay":  # it knows device IDs and byte counts, nothing else
        return (_label("TO DEVICE", "target"), _label("FROM DEVICE", "device")), (STATE, *FIGURES)
    if role == "agent":
        return (_label("TARGET", "target"), _label("CLIENT", "device"), PATH), (STATE, *FIGURES)
    return (_label("TARGET", "target"), _label("DEVICE", "device"), DOOR, PATH), (STATE, *FIGURES)


def _label(title: str, name: str) -> Column:
    return Column(title, 0, lambda row, _: str(getattr(row.opened, name)))


@dataclass(slots=True)
class LiveTable:
    """A listener for events that shows them as a table on `console`; a context manager that owns the screen's last lines.

    `next_steps` gives the lines to print once the role is ready. Events may come before and after the context; nothing waits.
    """

    role: str
    next_steps: Callable[[Ready], Sequence[str]]
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    clock: Callable[[], float] = time.monotonic
    _rows: dict[int, Row] = field(default_factory=dict)
    _relays: dict[str, RelayStateChanged] = field(default_factory=dict)
    _alarms: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_ALARMS_SHOWN))
    _alarm_count: int = 0
    _totals: Totals = field(default_factory=Totals)
    _ready: Ready | None = None
    _live: Live | None = None
    _drawn: list[Text] | None = None

    def __enter__(self) -> Self:
        self._live = Live(console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False, vertical_overflow="crop")
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self.draw()
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take in `event`. Notices and alarms are printed above the table at once; the rest shows at the next `draw()`."""
        match event:
            case ConnectionOpened():
                now = self.clock()
                self._rows[event.id] = Row(event, now, sampled_at=now)
            case ConnectionChanged():
                if (row := self._rows.get(event.id)) and row.ended is None:
                    row.state = event.state
            case ConnectionClosed():
                self._end(event)
            case RelayStateChanged():
                self._relays[event.relay] = event
            case Ready():
                self._ready = event
                self._say(*self.next_steps(event))
            case DeviceSeen():
                self._say(f"{printable(event.name or event.device)}: {event.what}")
            case Notice():
                self._say(printable(event.text, limit=1000))
            case Alarm():
                self._alarms.append(printable(event.text))
                self._alarm_count += 1
                self._say(f"ALARM: {printable(event.text, limit=1000)}", style="bold red")

    def draw(self) -> None:
        """Bring the screen up to date, if anything to be seen has changed."""
        now = self.clock()
        self._forget_ended(now)
        for row in self._rows.values():
            if row.ended is None:
                row.sample(now)
        lines = self.lines(self.console.width, self.console.height)
        if self._live is not None and lines != self._drawn:
            self._drawn = lines
            self._live.update(Text("\n").join(lines), refresh=True)

    def lines(self, width: int, height: int) -> list[Text]:
        """The whole table as it looks now, cut to `width` cells and to less than `height` lines."""
        now = self.clock()
        head = [*self._header(), *self._alarm_lines()]
        fits = max(0, height - len(head) - 3)  # the column titles, the line that counts what is left out, the cursor's own line
        names, figures = columns_of(self.role)
        body: list[Text] = []
        if self._rows:
            body.append(_joined(names + figures, width, lambda column: column.title, style="dim"))
            body += [self._line(row, names, figures, width, now) for row in islice(reversed(self._rows.values()), fits)]
        if len(self._rows) > fits:
            body.append(Text(f"{ELLIPSIS} and {len(self._rows) - fits} more", style="dim"))
        lines = [*head, *body]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return lines

    def _end(self, end: ConnectionClosed) -> None:
        row = self._rows.get(end.id)
        if row is None or row.ended is not None:
            return
        row.ended, row.ended_at = end, self.clock()
        self._totals.add(row, end)

    def _forget_ended(self, now: float) -> None:
        for number in [number for number, row in self._rows.items() if row.ended and now - row.ended_at >= KEEP_ENDED]:
            del self._rows[number]

    def _say(self, *lines: str, style: str = "") -> None:
        for line in lines:  # soft wrap: a link that is copied from the screen must not hold line breaks
            self.console.print(Text.from_ansi(line, style=style), soft_wrap=True)

    def _header(self) -> Iterator[Text]:
        title = Text(f"tuunel {self.role}", style="bold")
        if self._ready and self._ready.listen:
            title.append(f"  {self._ready.listen}", style="not bold")
        if self._ready and self._ready.device_id:
            title.append(f"  device {self._ready.device_id}", style="not bold")
        yield title
        for relay in islice(reversed(self._relays.values()), MAX_RELAYS_SHOWN):
            trip = f"  {round_trip(relay.rtt)}" if relay.rtt is not None else ""
            detail = f"  {printable(relay.detail)}" if relay.detail else ""
            line = Text(f"relay {printable(relay.relay)}  ")
            yield line.append(relay.state, style=RELAY_STYLES[relay.state]).append(trip + detail)
        yield self._totals_line()

    def _totals_line(self) -> Text:
        live = [row for row in self._rows.values() if row.ended is None]
        up = self._totals.up + sum(row.opened.traffic.up for row in live)
        down = self._totals.down + sum(row.opened.traffic.down for row in live)
        lost = self._totals.lost + sum(row.opened.traffic.lost for row in live)
        failed = f" ({self._totals.failed} failed)" if self._totals.failed else ""
        losses = f"  {amount(lost)} datagrams lost" if lost else ""
        rate = amount(sum(row.rate for row in live))
        return Text(f"{len(live)} open, {self._totals.ended} ended{failed}   up {amount(up)}  down {amount(down)}  {rate}/s{losses}")

    def _alarm_lines(self) -> Iterator[Text]:
        for alarm in self._alarms:
            yield Text(f"ALARM: {alarm}", style="bold white on red")
        if self._alarm_count > MAX_ALARMS_SHOWN:
            yield Text(f"{self._alarm_count - MAX_ALARMS_SHOWN} earlier alarms: see above", style="bold red")

    def _line(self, row: Row, names: tuple[Column, ...], figures: tuple[Column, ...], width: int, now: float) -> Text:
        if row.ended is None:
            style = "yellow" if row.state == "connecting" else ""
            return _joined(names + figures, width, lambda column: column.cell(row, now), style=style)
        spread = _widths(names + figures, width)
        named = _fitted(names, spread, lambda column: column.cell(row, now))
        good = row.ended.reason in GOOD_ENDS
        return Text(f"{named} {_ending(row, row.ended)}", style="dim" if good else "red")


def condition(row: Row) -> str:
    """A live connection's state in at most seven characters; a UDP flow that has lost datagrams at this end is `lossy`."""
    if row.state == "connecting":
        return "dialing"
    return "lossy" if row.opened.traffic.lost else row.state


def _ending(row: Row, end: ConnectionClosed) -> str:
    traffic = row.opened.traffic
    carried = f"{amount(traffic.up)} up, {amount(traffic.down)} down" + (f", {amount(traffic.lost)} lost" if traffic.lost else "")
    return f"{printable(end.reason)}: {printable(end.detail) or carried}"


def _joined(columns: Sequence[Column], width: int, cell: Callable[[Column], str], *, style: str) -> Text:
    return Text(_fitted(columns, _widths(columns, width), cell), style=style)


def _fitted(columns: Sequence[Column], widths: Sequence[int], cell: Callable[[Column], str]) -> str:
    cells = zip(columns, widths, strict=False)
    return " ".join(fit(printable(cell(column)), width, right=column.right) for column, width in cells)


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    """The columns' widths on a line of `width` cells: the first open one gets three quarters of what is left, the other one quarter."""
    left = max(16, width - sum(column.width for column in columns) - (len(columns) - 1))
    shares = iter((left - left // 4, left // 4))
    return [column.width or next(shares) for column in columns]


def fit(text: str, width: int, *, right: bool = False) -> str:
    """`text` in exactly `width` cells: padded, or cut in its middle, since both a name's start and its port tell it apart."""
    missing = width - cell_len(text)
    if missing >= 0:
        return " " * missing + text if right else text + " " * missing
    tail_width = (width - 1) // 2
    tail = text
    while cell_len(tail) > tail_width:
        tail = tail[1:]
    return set_cell_size(set_cell_size(text, width - 1 - tail_width) + ELLIPSIS + tail, width)


def amount(count: float) -> str:
    """A number of bytes in at most four characters and a decimal unit: 999, 1.2K, 64M."""
    for unit in ("", "K", "M", "G", "T"):
        if count < 9.95 and unit:
            return f"{count:.1f}{unit}"
        if count < 999.5:
            return f"{count:.0f}{unit}"
        count /= 1000
    return f"{count:.0f}P"


def round_trip(seconds: float | None) -> str:
    """A round-trip time in at most five characters."""
    if seconds is None:
        return "-"
    milliseconds = seconds * 1000
    if milliseconds < 9.95:
        return f"{milliseconds:.1f}ms"
    return f"{milliseconds:.0f}ms" if milliseconds < 999.5 else f"{seconds:.1f}s"


def age(seconds: float) -> str:
    """A duration in at most four characters, in its largest whole unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(max(0, seconds))}s"

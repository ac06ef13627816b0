"""The live table on a terminal: what a role carries right now. The only module that knows rich.

It draws only the rows that fit, only when something to be seen has changed; whoever calls `draw()` sets the pace.
Everything that a peer can name (targets, labels, details) is shown through `printable` as plain text, never as markup.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import Final, Self

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from tuunel.events import (
    Act,
    Alarm,
    ConnectionChanged,
    ConnectionClosed,
    ConnectionOpened,
    DeviceSeen,
    Event,
    Notice,
    Ready,
    RelayStateChanged,
    Totals,
    Use,
    printable,
)
from tuunel.journal import sentence
from tuunel.painter import Painted, Painter
from tuunel.rows import BAD, FIGURES, GOOD, LIVE, RATE_WINDOW, Column, Row, amount, described, ending, names_of, round_trip, used
from tuunel.view import View

KEEP_ENDED = 5.0  # seconds that an ended row stays by itself: long enough to see that it has ended
MAX_ENDED = 100  # ended rows that can be looked at afterwards
MAX_ALARMS_SHOWN = 3  # the newest stand in the header; every one has been printed above the table
MAX_RELAYS_SHOWN = 3
MAX_USES_SHOWN = 3  # devices and prefixes of a relay, those that are nearest to their limits
MAX_DESCRIBED = 4  # lines of the selected row in full: what is known of it, and a reason with its detail
ELLIPSIS: Final = "\u2026"
RELAY_STYLES: Final = {"online": "green", "connecting": "yellow", "offline": "bold red"}
ROW_STYLES: Final = {LIVE: "", GOOD: "dim", BAD: "red"}


@dataclass(slots=True)
class LiveTable:
    """A listener for events that shows them as a table on `console`; a context manager that owns the screen's last lines.

    `next_steps` gives the lines to print once the role is ready. Events may come before and after the context; nothing waits. With
    `whole` it takes the whole screen, and what would be printed above the table stands in its last line instead. With `keys` it shows
    which keys there are; `press` takes them, and `act` is called with what they ask of the role.
    """

    role: str
    next_steps: Callable[[Ready], Sequence[str]]
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    clock: Callable[[], float] = time.monotonic
    whole: bool = False
    keys: bool = False
    act: Act = lambda _: None
    view: View = field(default_factory=View)
    totals: Totals = field(default_factory=Totals)  #: of what has ended
    unseen: int = 0  #: open connections that no event has told of
    _rows: dict[int, Row] = field(default_factory=dict)
    _past: deque[Row] = field(default_factory=lambda: deque(maxlen=MAX_ENDED))
    _still: list[Row] | None = None
    _still_at: float = 0.0
    _relays: dict[str, RelayStateChanged] = field(default_factory=dict)
    _alarms: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_ALARMS_SHOWN))
    _alarm_count: int = 0
    _ready: Ready | None = None
    _uses: Sequence[Use] = ()
    _uses_at: float = -RATE_WINDOW
    _said: list[Text] = field(default_factory=list)  # what is to be printed above the table
    _painter: Painter | None = None
    _drawn: list[tuple[Text, Painted]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.resume()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.draw()
        self.suspend()

    def suspend(self) -> None:
        """Leave the screen as it is, and to others: nothing is drawn until `resume`. Idempotent."""
        if self._painter is not None:
            self._write(self._painter.leave())
            self._painter = None

    def resume(self) -> None:
        """Take the screen, anew. Idempotent."""
        if self._painter is None:
            self._painter = Painter(whole=self.whole)

    def __call__(self, event: Event) -> None:
        """Take in `event`. Notices and alarms are printed above the table at once; the rest shows at the next `draw()`."""
        match event:
            case ConnectionOpened():
                now = self.clock()
                sampled = event.traffic.up + event.traffic.down
                self._rows[event.id] = Row(event, now - (event.age or 0), sampled=sampled, sampled_at=now)
            case ConnectionChanged():
                if (row := self._rows.get(event.id)) and row.ended is None:
                    row.state, row.tunnel = event.state, event.tunnel or row.tunnel
            case ConnectionClosed():
                self._end(event)
            case RelayStateChanged():
                self._relays[event.relay] = event
            case Ready():
                self._ready = event
                if not self.whole:  # else whoever started the role was told
                    self._say(sentence(event), *self.next_steps(event))
            case DeviceSeen():
                self._say(f"{printable(event.name or event.device)}: {event.what}")
            case Notice():
                self._say(printable(event.text, limit=1000))
            case Alarm():
                self._alarms.append(printable(event.text))
                self._alarm_count += 1
                self._say(f"ALARM: {printable(event.text, limit=1000)}", style="bold red")

    def press(self, key: str) -> None:
        """Take a key (`tuunel.keys`): it changes what is shown, or asks something of the role. Draws at once."""
        was_frozen = self.view.frozen
        command = self.view.press(key, self._shown())
        if self.view.frozen and not was_frozen:
            self._still, self._still_at = [row.still() for row in self._all_rows()], self.clock()
        elif not self.view.frozen:
            self._still = None
        if self.whole:
            self._said.clear()
        if command is not None:
            self.act(command)
        self.draw()

    def draw(self) -> None:
        """Bring the screen up to date, if anything to be seen has changed."""
        now = self.clock()
        self._forget_ended(now)
        if self._ready and self._ready.fullest and now - self._uses_at >= RATE_WINDOW:
            self._uses, self._uses_at = self._ready.fullest(MAX_USES_SHOWN), now
        for row in self._rows.values():
            if row.ended is None:
                row.sample(now)
        if self._painter is not None:
            columns, rows = self._size()
            lines = self.lines(columns - 1, rows)
            above, self._said = ([], self._said) if self.whole else (self._said, [])
            self._write(self._painter.paint(self._painted(lines), (columns, rows), [self._coded(line) for line in above]))

    def lines(self, width: int, height: int) -> list[Text]:
        """The whole table as it looks now, cut to `width` cells and to less than `height` lines."""
        now = self._still_at if self._still is not None else self.clock()
        head = [*self._header(), *self._alarm_lines()]
        rows, total = self._shown(), len(self._all_rows())
        foot = self._footer(rows, width, now)
        fits = max(0, height - len(head) - len(foot) - 3)  # the titles, the line that counts what is left out, the cursor's own line
        names = names_of(self.role)
        lines = [*head]
        if total:
            lines.append(Text(_fitted((*names, *FIGURES), _widths(names, width), lambda column: column.title), style="dim"))
            lines += [self._line(row, names, width, now) for row in self._window(rows, fits)]
            lines += self._left_out(len(rows), total, fits)
        lines += foot
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return lines[: max(1, height - 1)]

    # rows

    def _all_rows(self) -> list[Row]:
        if self._still is not None:
            return self._still
        ended = self._past if self.view.shows_ended else [row for row in self._past if row.opened.id == self.view.selected]
        return [*ended, *self._rows.values()]

    def _shown(self) -> list[Row]:
        return self.view.arrange(self._all_rows())

    def _window(self, rows: list[Row], fits: int) -> list[Row]:
        """The rows that fit, the selected one among them."""
        at = next((place for place, row in enumerate(rows) if row.opened.id == self.view.selected), 0)
        first = max(0, at - fits + 1)
        return rows[first : first + fits]

    @staticmethod
    def _left_out(shown: int, total: int, fits: int) -> Iterator[Text]:
        if shown < total:
            hidden = f", of which {shown - fits} do not fit" if shown > fits else ""
            yield Text(f"{ELLIPSIS} {shown} of {total} pass the filter{hidden}", style="dim")
        elif shown > fits:
            yield Text(f"{ELLIPSIS} and {shown - fits} more", style="dim")

    def _end(self, end: ConnectionClosed) -> None:
        row = self._rows.get(end.id)
        if row is None or row.ended is not None:
            return
        row.ended, row.ended_at, row.rate = end, self.clock() - (end.age or 0), 0.0
        self.totals.add(row.opened.traffic, end.reason)

    def _forget_ended(self, now: float) -> None:
        for number in [number for number, row in self._rows.items() if row.ended and now - row.ended_at >= KEEP_ENDED]:
            self._past.append(self._rows.pop(number))

    # the terminal

    def _size(self) -> tuple[int, int]:
        with suppress(OSError, ValueError):  # the window as it is now, whatever the environment says of it
            return os.get_terminal_size(self.console.file.fileno())
        return self.console.width, self.console.height

    def _say(self, *lines: str, style: str = "") -> None:
        self._said += [Text.from_ansi(line, style=style) for line in lines]
        if self.whole:
            del self._said[:-1]  # one line is all the room there is
        elif self._painter is not None:
            self.draw()
        else:  # the screen is not ours now: below whatever stands there
            self._write("".join(f"{self._coded(line)}\n" for line in self._said))
            self._said.clear()

    def _painted(self, lines: Sequence[Text]) -> list[Painted]:
        kept = dict(enumerate(self._drawn))
        self._drawn = []
        for number, line in enumerate(lines):
            old, painted = kept.get(number, (None, None))
            if old is None or painted is None or (old, old.style) != (line, line.style):
                painted = Painted(self._coded(line), line.cell_len)
            self._drawn.append((line, painted))
        return [painted for _, painted in self._drawn]

    def _coded(self, line: Text) -> str:
        """The line with the colours that the terminal has and the person wants (NO_COLOR)."""
        with self.console.capture() as captured:
            self.console.print(line, end="", soft_wrap=True)  # a link that is copied from the screen must not hold line breaks
        return captured.get()

    def _write(self, code: str) -> None:
        if code:
            with suppress(OSError, ValueError):  # the terminal has gone; the role has not
                self.console.file.write(code)
                self.console.file.flush()

    # lines

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
        for use in self._uses:
            yield Text(used(use), style="bold yellow" if use.at_limit else "dim")

    def _totals_line(self) -> Text:
        live = [row for row in self._rows.values() if row.ended is None]
        up = self.totals.up + sum(row.opened.traffic.up for row in live)
        down = self.totals.down + sum(row.opened.traffic.down for row in live)
        lost = self.totals.lost + sum(row.opened.traffic.lost for row in live)
        failed = f" ({self.totals.failed} failed)" if self.totals.failed else ""
        losses = f"  {amount(lost)} datagrams lost" if lost else ""
        rate = amount(sum(row.rate for row in live))
        count = len(live) + self.unseen
        return Text(f"{count} open, {self.totals.ended} ended{failed}   up {amount(up)}  down {amount(down)}  {rate}/s{losses}")

    def _alarm_lines(self) -> Iterator[Text]:
        for alarm in self._alarms:
            yield Text(f"ALARM: {alarm}", style="bold white on red")
        if self._alarm_count > MAX_ALARMS_SHOWN:
            yield Text(f"{self._alarm_count - MAX_ALARMS_SHOWN} earlier alarms: see above", style="bold red")

    def _footer(self, rows: Sequence[Row], width: int, now: float) -> list[Text]:
        """The selected row in full, on as many lines as it needs, and the keys."""
        if not self.keys:
            return []
        selected = [
            line
            for row in rows
            if row.opened.id == self.view.selected
            for line in Text(described(row, now), style="bold").wrap(self.console, width)[:MAX_DESCRIBED]
        ]
        said = [line.copy() for line in self._said] if self.whole else []
        style = "bold" if self.view.asked or self.view.typing else "dim"
        return [*selected, *said, Text(printable(self.view.help()), style=style)]

    def _line(self, row: Row, names: tuple[Column, ...], width: int, now: float) -> Text:
        style = "yellow" if row.mood == LIVE and row.state == "connecting" else ROW_STYLES[row.mood]
        if row.opened.id == self.view.selected:
            style = f"{style} reverse"
        widths = _widths(names, width)
        if row.ended is None:
            return Text(_fitted((*names, *FIGURES), widths, lambda column: column.cell(row, now)), style=style)
        return Text(f"{_fitted(names, widths, lambda column: column.cell(row, now))} {ending(row)}", style=style)


def _fitted(columns: Sequence[Column], widths: Sequence[int], cell: Callable[[Column], str]) -> str:
    cells = zip(columns, widths, strict=False)
    return " ".join(fit(printable(cell(column)), width, right=column.right) for column, width in cells)


def _widths(names: Sequence[Column], width: int) -> list[int]:
    """The columns' widths on a line of `width` cells: the open ones share what the others leave; the first gets the rest."""
    columns = (*names, *FIGURES)
    left = max(16, width - sum(column.width for column in columns) - (len(columns) - 1))
    shares = sum(column.share for column in columns if not column.width)
    widths = [column.width or left * column.share // shares for column in columns]
    widths[0] += left - sum(given for given, column in zip(widths, columns, strict=True) if not column.width)
    return widths


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

"""The rows of the live table: what is known of each connection, the columns that show it, and their figures in few characters."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Self

from tuunel.events import GOOD_ENDS, ConnectionClosed, ConnectionOpened, Traffic, Use, printable

RATE_WINDOW = 1.0  # seconds over which a rate is taken
LIVE: Final = "live"
GOOD: Final = "good"
BAD: Final = "bad"


@dataclass(slots=True)
class Row:
    """One connection as the table knows it. Times are those of the table's clock."""

    opened: ConnectionOpened
    since: float
    state: str = "connecting"
    tunnel: str = ""
    ended: ConnectionClosed | None = None
    ended_at: float = 0.0
    rate: float = 0.0
    sampled: int = 0
    sampled_at: float = 0.0

    @property
    def carried(self) -> int:
        """The bytes so far, both ways."""
        return self.opened.traffic.up + self.opened.traffic.down

    @property
    def mood(self) -> str:
        """LIVE, or how it ended: GOOD or BAD."""
        if self.ended is None:
            return LIVE
        return GOOD if self.ended.reason in GOOD_ENDS else BAD

    def sample(self, now: float) -> None:
        """Take the rate anew, at most once per window."""
        if now - self.sampled_at >= RATE_WINDOW:
            total = self.carried
            self.rate = (total - self.sampled) / (now - self.sampled_at)
            self.sampled, self.sampled_at = total, now

    def still(self) -> Self:
        """The row as it is now, with counters that do not go on."""
        live, copied = self.opened.traffic, Traffic()
        copied.up, copied.down, copied.lost, copied.rtt = live.up, live.down, live.lost, live.rtt
        return replace(self, opened=replace(self.opened, traffic=copied))

    def age(self, now: float) -> float:
        """How long it has lived, in seconds."""
        return (now if self.ended is None else self.ended_at) - self.since

    def holds(self, text: str) -> bool:
        """Whether `text`, in lower case, is part of what names the row or says how it is."""
        reason = self.ended.reason if self.ended else ""
        named = (self.opened.target, self.opened.device, self.opened.door, self.opened.path, condition(self), reason)
        return any(text in each.lower() for each in named)


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, its width in cells, and what it shows of a row. Width 0: its `share` of what the others leave."""

    title: str
    width: int
    cell: Callable[[Row, float], str]
    right: bool = False
    share: int = 1


def _label(title: str, name: str, share: int = 1) -> Column:
    return Column(title, 0, lambda row, _: str(getattr(row.opened, name)), share=share)


FIGURES: Final = (
    Column("STATE", 7, lambda row, _: condition(row)),
    Column("UP", 5, lambda row, _: amount(row.opened.traffic.up), right=True),
    Column("DOWN", 5, lambda row, _: amount(row.opened.traffic.down), right=True),
    Column("RATE/S", 6, lambda row, _: amount(row.rate), right=True),
    Column("RTT", 5, lambda row, _: round_trip(row.opened.traffic.rtt), right=True),
    Column("AGE", 4, lambda row, now: age(row.age(now)), right=True),
)
_DOOR: Final = Column("DOOR", 7, lambda row, _: row.opened.door.removeprefix("http-"))
_PATH: Final = Column("PATH", 6, lambda row, _: row.opened.path)
_NAMES: Final = {
    "relay": (_label("TO DEVICE", "target"), _label("FROM DEVICE", "device")),  # it knows device IDs and byte counts, nothing else
    "agent": (_label("TARGET", "target", 3), _label("CLIENT", "device"), _PATH),
}


def names_of(role: str) -> tuple[Column, ...]:
    """The columns that name a connection of `role`; an ended row shows its reason in place of FIGURES, which say how it is."""
    return _NAMES.get(role, (_label("TARGET", "target", 3), _label("DEVICE", "device"), _DOOR, _PATH))


def condition(row: Row) -> str:
    """A connection's state in at most seven characters; a UDP flow that has lost datagrams at this end is `lossy`."""
    if row.ended is not None:
        return "ended"
    if row.state == "connecting":
        return "dialing"
    return "lossy" if row.opened.traffic.lost else row.state


def ending(row: Row) -> str:
    """How a row ended: its reason, and what was said of it or what it carried."""
    if row.ended is None:
        return ""
    traffic = row.opened.traffic
    carried = f"{amount(traffic.up)} up, {amount(traffic.down)} down" + (f", {amount(traffic.lost)} lost" if traffic.lost else "")
    return f"{printable(row.ended.reason)}: {printable(row.ended.detail) or carried}"


def described(row: Row, now: float) -> str:
    """A row in full, on one line."""
    opened, traffic = row.opened, row.opened.traffic
    parts = [
        f"#{opened.id}",
        opened.target,
        opened.device and f"device {opened.device}",
        f"by {opened.door}" if opened.door not in {"", "tunnel", "relay"} else "",
        opened.path,
        row.tunnel and f"tunnel {row.tunnel}",
        ending(row) or f"{condition(row)} {age(row.age(now))}",
        f"{traffic.up} up {traffic.down} down" if row.ended is None else "",
    ]
    return "  ".join(printable(part) for part in parts if part)


def used(use: Use) -> str:
    """What a device or prefix uses of what it may, on one line; what has no limit stands alone."""
    figures = (
        (f"{use.tunnels}", use.max_tunnels and f"{use.max_tunnels}", "tunnels"),
        (f"{use.opens:g}", use.max_opens and f"{use.max_opens:g}", "opens/s"),
        (amount(use.rate), use.max_rate and amount(use.max_rate), "bytes/s"),
    )
    parts = [f"{now} of {most} {what}" if most else f"{now} {what}" for now, most, what in figures]
    parts += [f"{use.refused} refused"] if use.refused else []
    limits = f"  AT ITS LIMIT: {', '.join(use.at_limit)}" if use.at_limit else ""
    return f"{use.kind} {printable(use.holder)}  {', '.join(parts)}{limits}"


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

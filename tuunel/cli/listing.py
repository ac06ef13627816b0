"""Lists for people: columns as wide as they need, times in words, untrusted text made safe."""

from collections.abc import Sequence
from datetime import UTC, datetime

from tuunel.cli.arguments import UNITS
from tuunel.events import printable

GAP = "  "


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of left-aligned columns, the heading first."""
    lines = [head, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return [GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def when(moment: int | None) -> str:
    """A time in unix seconds, in UTC; `never` for None and 0."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC") if moment else "never"


def duration(seconds: int) -> str:
    """A length of time as `--for` takes it, in the largest unit that divides it: `8h`."""
    size, unit = next((size, unit) for unit, size in reversed(UNITS.items()) if seconds % size == 0)
    return f"{seconds // size}{unit}"


def count(number: int, thing: str) -> str:
    """`1 tunnel`, `2 tunnels`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def milliseconds(seconds: float) -> str:
    """A round trip in milliseconds, with three digits or so, without the unit."""
    value = seconds * 1000
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def scaled(number: float, unit: str) -> str:
    """A quantity with the prefix that keeps it short: `412 MB`, `3.30 Gbit`."""
    for prefix in ("", "k", "M"):
        if number < 1000:
            return f"{number:.{0 if not prefix or number >= 100 else 1}f} {prefix}{unit}"
        number /= 1000
    return f"{number:.2f} G{unit}"

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

"""Lists for people: columns as wide as they need, times in words, untrusted text made safe."""

from collections.abc import Sequence
from datetime import UTC, datetime

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

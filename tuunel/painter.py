"""Keeps the last lines of a terminal up to date: what has changed is written, and what a resize has torn is taken away.

Text in, control sequences out; no I/O. Source: ECMA-48 (CUU, EL, ED), xterm's alternate screen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

HIDE_CURSOR: Final = "\x1b[?25l"
SHOW_CURSOR: Final = "\x1b[?25h"
ALTERNATE_SCREEN: Final = "\x1b[?1049h"
MAIN_SCREEN: Final = "\x1b[?1049l"
ERASE_LINE: Final = "\x1b[K"
ERASE_BELOW: Final = "\x1b[J"


@dataclass(frozen=True, slots=True)
class Painted:
    """A line as the terminal gets it: `code` with its colours, `cells` wide."""

    code: str
    cells: int


class Painter:
    """Draws frames of lines, none of them as wide as the terminal, so that the cursor rests behind the last one.

    `whole` takes the whole screen, the alternate one, for as long as there is a frame.
    """

    def __init__(self, *, whole: bool = False) -> None:
        self._whole = whole
        self._lines: Sequence[Painted] | None = None  # what stands there; None: nothing of ours
        self._size = (0, 0)

    def paint(self, lines: Sequence[Painted], size: tuple[int, int], above: Sequence[str] = ()) -> str:
        """What brings the terminal of `size` (columns, rows) from the last frame to `lines`, with the text of `above` before them."""
        if self._lines is None:
            begin = HIDE_CURSOR + (f"{ALTERNATE_SCREEN}\x1b[H{ERASE_BELOW}" if self._whole else "")
        elif size == self._size and len(lines) == len(self._lines) and not above:
            code = self._change(self._lines, lines)
            self._lines = lines
            return code
        else:
            begin = self._erase(self._lines, size)
        self._lines, self._size = lines, size
        said = "".join(f"{text}\n" for text in above)
        return begin + said + "\n".join(line.code for line in lines)

    def leave(self) -> str:
        """What leaves the last frame where it stands, and the cursor below it; on a screen of its own it goes."""
        if self._lines is None:
            return ""
        self._lines = None
        return SHOW_CURSOR + (MAIN_SCREEN if self._whole else "\n")

    def _change(self, old: Sequence[Painted], new: Sequence[Painted]) -> str:
        parts, at = [], len(old) - 1
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            if before != after:
                parts.append(_move(number - at) + after.code + ERASE_LINE)
                at = number
        if at != len(old) - 1:
            parts.append(_move(len(old) - 1 - at) + (f"\x1b[{new[-1].cells}C" if new[-1].cells else ""))
        return "".join(parts)

    def _erase(self, lines: Sequence[Painted], size: tuple[int, int]) -> str:
        if self._whole:
            return f"\x1b[H{ERASE_BELOW}"
        columns, rows = size
        # a terminal that became narrower has folded the lines, and its cursor has moved with the last of them
        folded = sum(max(1, -(-line.cells // max(1, columns))) for line in lines)
        return _move(-(min(folded, rows) - 1)) + ERASE_BELOW


def _move(lines: int) -> str:
    """To the start of the line so many lines below; above, when it is negative."""
    if lines == 0:
        return "\r"
    return f"\r\x1b[{lines}B" if lines > 0 else f"\r\x1b[{-lines}A"

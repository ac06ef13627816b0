"""Colours, where a person looks at them and wants them: https://no-color.org."""

import os
from enum import StrEnum
from typing import TextIO


class Colour(StrEnum):
    """Ink that is readable on dark and on light screens (ECMA-48, SGR)."""

    GREEN = "32"
    YELLOW = "33"
    RED = "1;31"


def has_colours(stream: TextIO) -> bool:
    """Whether escape sequences may be written to the stream: a terminal, not a dumb one, and NO_COLOR is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in {None, "", "dumb"}


def painted(text: str, colour: Colour, stream: TextIO) -> str:
    """The text in that colour where the stream has colours, else as it is."""
    return f"\x1b[{colour}m{text}\x1b[0m" if has_colours(stream) else text

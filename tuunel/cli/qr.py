"""A link or an invite as a QR code on the terminal, for a camera: ISO/IEC 18004, by segno."""

import os
import sys
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Annotated, Final, TextIO

import typer

from tuunel.cli.colours import has_colours
from tuunel.cli.nextsteps import after_ready
from tuunel.errors import UsageError
from tuunel.events import Ready

AsQr = Annotated[bool, typer.Option("--qr", help="Also show it as a QR code on stderr.")]
NextSteps = Callable[[Ready], Sequence[str]]

BORDER: Final = 4  # modules around it, clause 6.3.8 of the standard: without them many cameras do not find it
BLACK_ON_WHITE: Final = "\x1b[38;5;16;48;5;231m"  # of the 256 colours: a theme may show the first sixteen as it likes
RESET: Final = "\x1b[0m"
BLOCKS: Final = {(False, False): " ", (True, False): "\u2580", (False, True): "\u2584", (True, True): "\u2588"}  #: (upper, lower) inked


def require_eyes(*, qr: bool, as_json: bool) -> None:
    """UsageError when a picture is asked for where programs read."""
    if qr and as_json:
        raise UsageError("--qr is for people, and --json for programs", "give one of them")


def qr_lines(text: str, stream: TextIO) -> list[str]:
    """The lines that show `text` on `stream`, two modules in a character; one line of words where the terminal is too narrow.

    Black on white wherever escape sequences may be written. Elsewhere the ink is white, as on a dark screen; most cameras read both.
    """
    import segno  # noqa: PLC0415 - only who asks for a code needs it

    code = segno.make(text, error="l", boost_error=False, micro=False)  # nothing wears a screen off: the smallest is the best
    width = int(code.symbol_size(border=BORDER)[0])
    if stream.isatty() and os.get_terminal_size(stream.fileno()).columns < width:
        return [f"the QR code is {width} characters wide, and this terminal is not: make it wider, then try again"]
    coloured = has_colours(stream)
    rows = [[bool(module) == coloured for module in row] for row in code.matrix_iter(border=BORDER)]
    halves = zip_longest(rows[::2], rows[1::2], fillvalue=[not coloured] * width)
    lines = ["".join(BLOCKS[pair] for pair in zip(upper, lower, strict=True)) for upper, lower in halves]
    return [f"{BLACK_ON_WHITE}{line}{RESET}" for line in lines] if coloured else lines


def next_steps(*, qr: bool) -> NextSteps:
    """What to do once a role is ready; with `qr` below the code of the link or invite that it has made."""

    def steps(ready: Ready) -> list[str]:
        made = ready.link or ready.invite
        return [*(qr_lines(made, sys.stderr) if made and qr else []), *after_ready(ready)]

    return steps

"""What people type, turned into values: durations, links, device IDs, and the options that many commands share."""

import re
import sys
from typing import Annotated, Final

import typer

from tuunel.errors import UsageError
from tuunel.journal import Level

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for programs.")]
AsJsonLines = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout, for programs.")]
Drain = Annotated[float, typer.Option("--drain", metavar="SECONDS", min=0, help="How long connections may finish after Ctrl-C or SIGTERM.")]
LogLevel = Annotated[
    Level,
    typer.Option("--log-level", metavar="LEVEL", help="What log lines tell: error, warning, notice, or info, which is every connection."),
]
Metrics = Annotated[
    str | None,
    typer.Option("--metrics", metavar="[HOST:]PORT", help="Serve Prometheus metrics at /metrics; on loopback without HOST."),
]

DEFAULT_LEVEL = Level.INFO
DEFAULT_DRAIN = 2.0
MAX_TYPED_LINK = 4096  # more than any link: what is longer is no link, and is not read to its end
UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"([0-9]{1,9})([smhd])")


def seconds(text: str) -> int:
    """A duration such as `90s`, `15m`, `8h` or `30d` in seconds. Raises UsageError."""
    parsed = _DURATION.fullmatch(text.strip().lower())
    if parsed is None or int(parsed[1]) == 0:
        raise UsageError(f"{text!r} is not a duration", "write a number and a unit: 90s, 15m, 8h or 30d")
    return int(parsed[1]) * UNITS[parsed[2]]


def typed(argument: str) -> str:
    """`argument` itself, or the first line of stdin when it is `-`: a secret need not stand on a command line."""
    if argument != "-":
        return argument
    line = sys.stdin.readline(MAX_TYPED_LINK).strip()
    if not line:
        raise UsageError("'-' was given, but stdin holds no link", "pipe the link or invite in, or give it as an argument")
    return line

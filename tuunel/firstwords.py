"""What standard input has to say when `nc` starts, looked at and left there: where nothing is connected, nothing was taken away.

Only Linux lets a pipe be looked at, by tee(2); ssh gives pipes to its ProxyCommand. Source: docs/spec/front-doors.md section 6.
"""

import os
import stat
import sys
from typing import Final

_MOST: Final = 4096  #: bytes: with the request one piece for the proxy's socket; and no message of a pipe in packet mode is longer
_NONBLOCK: Final = 2  #: SPLICE_F_NONBLOCK


class FirstWords:
    """The first words of standard input. They are said once: `said` of its bytes must be skipped by who reads it then."""

    def __init__(self) -> None:
        self.said = 0

    def look(self) -> bytes:
        """Give what has come by now, without waiting; nothing when some was given before."""
        words = b"" if self.said else _look()
        self.said += len(words)
        return words


def _look() -> bytes:
    if sys.platform != "linux" or not stat.S_ISFIFO(os.fstat(0).st_mode):
        return b""
    import ctypes  # noqa: PLC0415  two milliseconds, for whom it is worth a round trip

    reading, writing = os.pipe()
    try:
        there = ctypes.CDLL(None).tee(0, writing, ctypes.c_size_t(_MOST), _NONBLOCK)
        return os.read(reading, there) if there > 0 else b""
    finally:
        os.close(reading)
        os.close(writing)

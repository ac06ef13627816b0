"""Borrowed buffers for the data path: memory is held by bytes on their way, never by a connection that waits.

Layout, the same in the whole project: byte 0 is scratch (a sealed record's type goes there), the body starts at byte 1.
So a body that was received can be sealed where it lies, and a record can be opened where its body is sent from.
"""

import mmap
from typing import Final

MAX_BODY: Final = 256 * 1024  # the largest record body, docs/spec/records.md: above it, CPU per byte no longer falls
BUFFER_SIZE: Final = MAX_BODY + 4096  # scratch byte, body, and a record's header and tag; whole pages
KEEP: Final = 16  # free buffers kept for the next borrower: 4 MiB


class BufferPool:
    """Lends buffers of BUFFER_SIZE bytes. One pool serves a whole process; not for use from several threads.

    Pages of a new buffer take memory only once they are touched, so a small chunk in a large buffer is cheap.
    """

    def __init__(self, keep: int = KEEP) -> None:
        self._free: list[mmap.mmap] = []
        self._keep = keep
        self._lent = 0

    @property
    def lent(self) -> int:
        """How many buffers are out: connections at rest hold none."""
        return self._lent

    def borrow(self) -> memoryview:
        """Lend a writable buffer of BUFFER_SIZE bytes. Its content is arbitrary: another borrower may have used it."""
        memory = self._free.pop() if self._free else mmap.mmap(-1, BUFFER_SIZE)
        self._lent += 1
        return memoryview(memory)

    def give_back(self, buffer: memoryview) -> None:
        """Take back the very view that `borrow` lent. It is dead afterwards: using it or giving it back again is a ValueError.

        Slices of it must not be used any more either; nothing can check that.
        """
        memory = buffer.obj
        if not isinstance(memory, mmap.mmap):
            raise TypeError("only a buffer that was borrowed can be given back")
        buffer.release()
        self._lent -= 1
        if len(self._free) < self._keep:
            self._free.append(memory)

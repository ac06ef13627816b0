"""What the apps of the TCP workloads ask the service for: `kind u8 | amount u64` at the start of a connection.

Nothing here needs a half-close, which not every system carries: a sink ends with a mark in its last block, all else when the service
closes.
"""

import struct

ECHO, ANSWER, SINK, SOURCE = range(1, 5)
"""Send everything back; send `amount` bytes and close; count what comes and tell the count as a u64; send for `amount` ms and close."""

BLOCK = 1024 * 1024  #: what goes into a sink: blocks of zeros, of which the last ends with a 1
ORDER = struct.Struct("!BQ")
COUNT = struct.Struct("!Q")


def order(kind: int, amount: int = 0) -> bytes:
    """Return the order."""
    return ORDER.pack(kind, amount)


def blocks() -> tuple[memoryview, memoryview]:
    """Return a block of a sink, and the last block."""
    return memoryview(bytes(BLOCK)), memoryview(bytes(BLOCK - 1) + b"\1")

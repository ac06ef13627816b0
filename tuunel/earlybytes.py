"""A client's first bytes, which travel with the request for its target where they have come by the time it leaves.

Source: docs/spec/tunnel.md sections 3 and 9, docs/spec/front-doors.md section 6.
"""

from collections.abc import Callable


class EarlyBytes:
    """What may be sent with a request: the `first` bytes, and what `come` gives of those behind them, each of them once.

    `come` must not wait, and gives what has come since it was called last.
    """

    __slots__ = ("_come", "_first", "taken")

    def __init__(self, first: bytes = b"", come: Callable[[], bytes] = bytes) -> None:
        self._first = first
        self._come = come
        self.taken = 0  #: how many were taken: an attempt that took any is not repeated, because they may have arrived

    def take(self) -> bytes:
        """Take what is there now, as late as possible: it is the caller's to send, and nobody else's."""
        data = self._first + self._come()
        self._first = b""
        self.taken += len(data)
        return data

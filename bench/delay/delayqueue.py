"""Packets that wait for their time."""

from collections import deque


class DelayQueue:
    """First in, first out, each `delay` seconds after it came. The caller brings the clock."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._waiting: deque[tuple[float, bytes]] = deque()

    def put(self, packet: bytes, now: float) -> None:
        """Take a packet that came at `now`."""
        self._waiting.append((now + self._delay, packet))

    def due(self, now: float) -> bytes | None:
        """Return the next packet whose time has come and forget it; None when there is none."""
        return self._waiting.popleft()[1] if self._waiting and self._waiting[0][0] <= now else None

    @property
    def next(self) -> float | None:
        """When the next packet is due; None when none waits."""
        return self._waiting[0][0] if self._waiting else None

"""Tells a peer that is gone from one that does not read, where bytes wait to be sent: by what its kernel acknowledges.

Neither TCP_USER_TIMEOUT nor the system's own patience (a quarter of an hour) can: the first ends a live reader that pauses. Linux only;
elsewhere the system's patience is all there is. Source: docs/spec/tunnel.md (liveness).
"""

from tuunel.rawstream import RawStream


class AckWatch:
    """Watches one stream, which is asked about every few seconds."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since: float | None = None

    def unanswered(self, stream: RawStream, now: float) -> float:
        """For how many seconds, as these looks saw it, the peer's machine has acknowledged nothing of what was sent more than once."""
        age = stream.unacknowledged()
        if age is None:
            self._since = None
            return 0.0
        if self._since is None:
            self._since = now  # the last word may be much older: nothing was sent in between
        self._since = max(self._since, now - age)
        return now - self._since

"""The guard of front doors on loopback, which every user of a machine can reach: only this user's own programs, and root's, are let in.

Source: docs/spec/front-doors.md section 8.
"""

import os
import socket
import time
from typing import Final

from tuunel.events import Emit, Notice
from tuunel.peeruser import peer_user
from tuunel.rawstream import RawStream

ROOT: Final = 0
NOTICE_INTERVAL: Final = 1.0  #: seconds between two notices: whoever is refused can try a thousand times in them


class UserGuard:
    """Judges clients. Where the system cannot tell users apart (`works` is False), it admits everybody."""

    def __init__(self, emit: Emit) -> None:
        self.works = _users_can_be_told()
        self._emit = emit
        self._told = float("-inf")

    def admits(self, stream: RawStream) -> bool:
        """Whether the client at the other end of a connection that was just accepted may come in. One whose user cannot be told may not."""
        if not self.works or stream.is_unix or not stream.is_local:
            return True
        user = peer_user(stream)
        if user in (os.geteuid(), ROOT):
            return True
        self._tell(user)
        return False

    def _tell(self, user: int | None) -> None:
        now = time.monotonic()
        if now - self._told >= NOTICE_INTERVAL:
            self._told = now
            who = "a user who cannot be told" if user is None else f"user {user}"
            self._emit(Notice(f"a program of {who} was refused: this proxy serves its own user (--all-users would open it to all)"))


def _users_can_be_told() -> bool:
    """Try it with a connection of this very process."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                return peer_user(RawStream(accepted)) == os.geteuid()
    except OSError:
        return False

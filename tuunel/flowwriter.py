"""Sends what waits in the outbox of a UDP tunnel's end: at once where the tunnel takes it, else as soon as it does.

Source: docs/spec/records.md section 6 (queues).
"""

import anyio

from tuunel.e2e.outbox import Outbox
from tuunel.pump import BROKEN
from tuunel.rawstream import Rest
from tuunel.tunnel import Tunnel


class FlowWriter:
    """Sends the records of `outbox` through `tunnel`; neither is its own."""

    def __init__(self, tunnel: Tunnel, outbox: Outbox) -> None:
        self._tunnel = tunnel
        self._outbox = outbox
        self._rest: Rest | None = None  # of records that have left the outbox
        self._broken: Exception | None = None
        self._news = anyio.Event()
        self._ending = False
        self._over = False

    def flush(self) -> None:
        """Send what waits, as far as the tunnel takes it without waiting; `run` sends the rest, and tells of a tunnel that is broken.

        Does nothing once `run` has returned: FIN may be out.
        """
        try:
            while self._outbox and self._rest is None and not (self._broken or self._over):
                self._rest = self._tunnel.send_now(self._outbox.take())
        except BROKEN as error:
            self._broken = error
        if self._rest is not None or self._broken:
            self._news.set()

    def end(self) -> None:
        """Let `run` return when nothing waits any more."""
        self._ending = True
        self._news.set()

    async def run(self) -> None:
        """Send until `end`. Raises as `Tunnel.write_now`. A cancelled one may have sent a record in part."""
        while True:
            self._news = anyio.Event()  # before looking: what comes while a record is sent is not overlooked
            self.flush()
            if self._broken is not None:
                raise self._broken
            if self._rest is not None:
                await self._rest()
                self._rest = None
            elif self._ending:
                self._over = True
                return
            else:
                await self._news.wait()

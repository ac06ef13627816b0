"""Reads a tunnel for its own sake: the first bytes are kept, the others only counted."""

from tuunel.buffers import MAX_BODY, BufferPool
from tuunel.tunnel import Tunnel


class Inflow:
    """What has come through `tunnel` so far: `head`, its first `wanted` bytes, and `size`, the number of those behind them."""

    def __init__(self, tunnel: Tunnel, buffers: BufferPool, wanted: int) -> None:
        self.head = b""
        self.size = 0
        self.ended = False
        self._tunnel = tunnel
        self._buffers = buffers
        self._wanted = wanted

    @property
    def whole(self) -> bool:
        """Whether `head` has all that was wanted."""
        return len(self.head) == self._wanted

    async def step(self) -> None:
        """Wait for more, and take one record. Raises as the tunnel, which is of no use any more when this is cancelled."""
        await self._tunnel.on_readable(self._take)

    def _take(self) -> bool | None:
        buffer = self._buffers.borrow()
        try:
            n = self._tunnel.read_into(buffer, MAX_BODY)
            if n is None:
                return None
            self.ended = n == 0
            kept = bytes(buffer[1 : 1 + min(n, self._wanted - len(self.head))])
            self.head += kept
            self.size += n - len(kept)
            return True
        finally:
            self._buffers.give_back(buffer)

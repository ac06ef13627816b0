"""A client's stream behind the guard of `--http-hosts`: what it sends is read only as far as the guard has let it through.

Source: docs/spec/forward.md section 4.
"""

from collections.abc import Callable

import anyio
import anyio.lowlevel

from tuunel.errors import Failure, Reason
from tuunel.frontdoor import EARLY_LIMIT, HEADER_DEADLINE
from tuunel.hostguard import HostGuard
from tuunel.rawsocket import Result
from tuunel.rawstream import RawStream, Rest


class GuardedStream:
    """A Conduit around `stream`, which it does not own. Reading raises Failure(FORBIDDEN_HOST) at what the guard refuses."""

    def __init__(self, stream: RawStream, guard: HostGuard) -> None:
        self._stream = stream
        self._guard = guard
        self._cleared = bytearray()

    async def first_request(self) -> bytes:
        """Wait for the first request: its head, and what has come behind it. b"" when the client sends nothing at all.

        Failure(FORBIDDEN_HOST) when it is refused, or not there within HEADER_DEADLINE.
        """
        received = 0
        with anyio.move_on_after(HEADER_DEADLINE):
            while True:
                # one more byte than a head may have: the guard refuses it then
                data = await self._stream.receive(EARLY_LIMIT + 1 - received)
                received += len(data)
                cleared = self._pass_on(data)
                if cleared or not data:
                    return cleared
        if received:
            raise Failure(Reason.FORBIDDEN_HOST, detail=f"no request came within {HEADER_DEADLINE:.0f} seconds")
        return b""

    def take(self, data: bytes) -> None:
        """Take bytes that somebody else has read from the stream: they are read here next, as far as the guard lets them through."""
        self._cleared += self._pass_on(data) if data else b""

    def _pass_on(self, data: bytes) -> bytes:
        if data:
            return self._guard.receive_data(data)
        self._guard.receive_eof()
        return b""

    # Conduit

    @property
    def chunk_limit(self) -> int:
        """See `Conduit`."""
        return self._stream.chunk_limit

    async def on_readable(self, step: Callable[[], Result | None]) -> Result:
        """See `Conduit`."""

        def steps() -> Result | None:
            result = step()
            while result is None and self._cleared:  # the guard has let through more than one step takes
                result = step()
            return result

        if self._cleared:
            await anyio.lowlevel.checkpoint()
            if (result := steps()) is not None:
                return result
        return await self._stream.on_readable(steps)

    def read_into(self, buffer: memoryview, limit: int) -> int | None:
        """See `Conduit`. None also while the guard holds back what has come."""
        if not self._cleared:
            n = self._stream.read_into(buffer, limit)
            if n is None:
                return None
            self._cleared += self._pass_on(bytes(buffer[1 : 1 + n]))
            if n == 0:
                return 0
        n = min(len(self._cleared), limit)
        buffer[1 : 1 + n] = self._cleared[:n]
        del self._cleared[:n]
        return n or None

    @property
    def at_end(self) -> bool:
        """See `Conduit`. Never known: the guard has its say about an end, too."""
        return False

    def write_now(self, buffer: memoryview, n: int, *, last: bool = False) -> Rest | None:
        """See `Conduit`."""
        return self._stream.write_now(buffer, n, last=last)

    async def write_eof(self) -> None:
        """See `Conduit`."""
        await self._stream.write_eof()

    def reset(self) -> None:
        """See `Conduit`."""
        self._stream.reset()

    async def aclose(self) -> None:
        """See `Conduit`."""
        await self._stream.aclose()

    def broken(self) -> bool:
        """See `Conduit`."""
        return self._stream.broken()

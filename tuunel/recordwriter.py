"""The writing half of a tunnel's records: whole and in order, one writer after the other, keys replaced in time.

Source: docs/spec/records.md.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

import anyio

from tuunel.buffers import BufferPool
from tuunel.e2e.records import RecordSealer
from tuunel.e2e.wire import RecordType
from tuunel.rawstream import Bytes, RawStream, Rest

SMALL_AGAIN: Final = 1.0  #: seconds without a record after which records start small again


class TunnelCut(ConnectionResetError):
    """The tunnel ended before its end: the text says how. An OSError, because the app behind this end must see a reset."""


class RecordWriter:
    """Seals and sends records on `stream`, which it does not own. Any number of tasks may write; each record goes out whole.

    `check_whole` raises when the tunnel is over: it is asked before each write, which then raises the same. Every write raises OSError
    when the connection is gone. One that was cancelled, or has failed, leaves the writer of no use but for `close`.
    """

    def __init__(self, stream: RawStream, sealer: RecordSealer, buffers: BufferPool, check_whole: Callable[[], None]) -> None:
        self.written = time.monotonic()  #: when the last record went out
        self.ended = False  #: FIN is out, or will be next: no KEY_UPDATE may follow it in this use
        # What to send when the writer is free, one record of a type and the newest at that: a peer that floods us with PINGs and
        # takes no answer must not fill our memory.
        self.queue: dict[RecordType, bytes] = {}
        self._stream = stream
        self._sealer = sealer
        self._buffers = buffers
        self._check_whole = check_whole
        self._sending = anyio.Lock(fast_acquire=True)
        self._held: list[tuple[RecordType, bytes]] = []  # FIN, KEY_UPDATE: what nobody waits for, in order, in front of what is sent next
        self._unsent: Bytes | None = None  # the rest of what was sealed: it goes out before anything else
        self._unsent_in: memoryview | None = None  # the borrowed buffer in which it lies, if it does
        self._torn = False  # a record was sent in part and never will be whole: nothing behind it would mean anything

    @property
    def busy(self) -> bool:
        """Whether a write is under way: a task is at work on it, or will be as soon as it runs."""
        return self._unsent is not None or self._sending.locked()

    @property
    def waiting(self) -> bool:
        """Whether `flush` has something to send."""
        return bool(self.queue or self._held)

    @property
    def holds_fin(self) -> bool:
        """Whether the last use's FIN is held back, and so not behind this end yet."""
        return bool(self._held) and self._held[0][0] is RecordType.FIN

    @property
    def chunk_limit(self) -> int:
        """The largest body worth sealing now; it grows while the socket takes whole records."""
        return self._sealer.chunk_limit

    def send_data(self, buffer: memoryview, n: int, *, fin: bytes = b"") -> Rest | None:
        """Seal `buffer[1:1+n]` as one DATA record and send it, without waiting where that is possible; see `Conduit.write_now`.

        With `fin`, which is its body, FIN goes behind it in the same write, unless this has to wait for another writer.
        """
        if self.queue or self._held or self._must_wait():
            return partial(self._send_data_in_turn, buffer, n)
        return None if self._send_record(buffer, n, fin) else self._send_unsent

    async def _send_data_in_turn(self, buffer: memoryview, n: int) -> None:
        async with self._turn():
            await self._send_overdue()
            self._send_record(buffer, n)
            await self._finish_record()
            await self._send_queue()

    async def _send_unsent(self) -> None:
        async with self._turn():
            await self._send_queue()

    def _send_record(self, buffer: memoryview, n: int, fin: bytes = b"") -> bool:
        """Seal, send what the socket takes now, and hold the rest. Whether it took all."""
        out = self._buffers.borrow()
        whole = True
        try:
            length = self._sealer.seal_into(buffer, n, RecordType.DATA, out)
            if fin:
                self.ended = True
                end = self._sealer.seal(RecordType.FIN, fin)
                out[length : length + len(end)] = end
                length += len(end)
            whole = self._send_sealed(out[:length])
        finally:
            if whole:
                self._buffers.give_back(out)
            else:
                self._unsent_in = out
        self._sealer.whole_writes(whole)
        return whole

    def _send_sealed(self, data: Bytes) -> bool:
        sent = self._stream.send_now(data)
        self.written = time.monotonic()
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
        return sent == len(data)

    def send_now(self, records: Iterable[tuple[RecordType, bytes]]) -> Rest | None:
        """Seal small records, in order, and send them in one write, without waiting where that is possible; as `send_data`."""
        return self._send_now(partial(self._seal_all, records))

    async def send(self, records: Iterable[tuple[RecordType, bytes]]) -> None:
        """Seal small records, in order, and send them in one write."""
        await self._send(partial(self._seal_all, records))

    async def send_fin(self, body: bytes) -> None:
        """End this direction of this use."""
        self._end()
        await self._send(partial(self._sealer.seal, RecordType.FIN, body))

    def _end(self) -> None:
        self.ended = True
        self.queue.pop(RecordType.KEY_UPDATE, None)  # behind FIN it would begin the next use

    def hold_fin(self, body: bytes) -> None:
        """As `send_fin`, but in no hurry: the peer hears of it with what is sent next, or by `flush`."""
        self._check_whole()
        self._end()
        self._held.append((RecordType.FIN, body))

    async def send_held_fin(self) -> None:
        """Send what `hold_fin` has held back, if that is still so."""
        if self.holds_fin:
            async with self._turn():
                await self._send_queue()

    def renew(self) -> None:
        """Begin the next use: from here on all is as behind the handshake. The peer hears of it with what is sent next, or by `flush`."""
        self._held.append((RecordType.KEY_UPDATE, b""))
        self._sealer.restart_growth()
        self.ended = False

    def _seal_all(self, records: Iterable[tuple[RecordType, bytes]]) -> bytes:
        return b"".join(self._sealer.seal(kind, body) for kind, body in records)

    async def _send(self, seal: Callable[[], bytes]) -> None:
        if rest := self._send_now(seal):
            await rest()

    def _send_now(self, seal: Callable[[], bytes]) -> Rest | None:
        if self._must_wait():
            return partial(self._send_in_turn, seal)
        return None if self._send_sealed(self._seal_waiting() + seal()) else self._send_unsent

    def _must_wait(self) -> bool:
        self._check_whole()
        if self._sending.locked():
            return True  # a record that another one waits with is not torn yet; its turn asks again
        self._check_not_torn()
        return self._unsent is not None or (self._sealer.needs_key_update and not self.ended)

    def _seal_waiting(self) -> bytes:
        """What goes in front of a record: mostly nothing."""
        held = self._seal_held()
        if not self.queue:
            return held
        queued = tuple(self.queue.items())
        self.queue.clear()
        return held + self._seal_all(queued)

    def _seal_held(self) -> bytes:
        """What is held back, which goes in front of anything else."""
        if not self._held:
            return b""
        held = self._seal_all(self._held)
        self._held.clear()
        return held

    async def _send_in_turn(self, seal: Callable[[], bytes]) -> None:
        async with self._turn():
            await self._send_overdue()
            await self._transmit(seal())
            await self._send_queue()

    async def flush(self) -> None:
        """Send what is queued, unless a writer is at work: it does so when it is done."""
        if self.waiting and not self.busy:
            async with self._turn():
                await self._send_queue()

    def send_last(self, kind: RecordType, body: bytes) -> None:
        """Send one record if nothing else is half sent, and the socket takes it at once. Never raises OSError."""
        if not (self.busy or self._torn):
            with suppress(OSError):
                self._stream.send_now(self._seal_held() + self._sealer.seal(kind, body))

    def start_small_after_a_pause(self, now: float) -> None:
        """Asked once a second: records are small again after a second without one."""
        if now - self.written > SMALL_AGAIN:
            self._sealer.restart_growth()

    def close(self) -> None:
        """Drop the secrets, what is queued and what is unsent. Idempotent."""
        self._sealer.close()
        self._held.clear()
        self.queue.clear()
        self._unsent = None
        if self._unsent_in is not None:
            self._buffers.give_back(self._unsent_in)
            self._unsent_in = None

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """The right to send whole records, behind what has been sealed before."""
        async with self._sending:
            self._check_whole()
            self._check_not_torn()
            await self._finish_record()
            yield

    async def _finish_record(self) -> None:
        """Send the rest of a record that has been sent in part."""
        if self._unsent is None:
            return
        unsent, self._unsent = self._unsent, None
        borrowed, self._unsent_in = self._unsent_in, None
        try:
            await self._transmit(unsent)
        finally:
            if borrowed is not None:
                self._buffers.give_back(borrowed)

    async def _send_queue(self) -> None:
        await self._send_overdue()
        while self.queue:
            await self._send_overdue()
            kind = next(iter(self.queue))
            await self._transmit(self._sealer.seal(kind, self.queue.pop(kind)))

    async def _send_overdue(self) -> None:
        """Send what is held back, and the next key where it is due."""
        overdue = self._seal_held()
        if self._sealer.needs_key_update and not self.ended:
            overdue += self._sealer.key_update()
        if overdue:
            await self._transmit(overdue)

    async def _transmit(self, data: Bytes) -> None:
        self._torn = True
        await self._stream.send_all(data)
        self._torn = False
        self.written = time.monotonic()

    def _check_not_torn(self) -> None:
        if self._torn:
            raise TunnelCut("a record could not be sent whole")

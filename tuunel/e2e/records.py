"""Records: how a tunnel's bytes are sealed and opened, at the speed of the cipher, without a copy.

    length u24 || ChaCha20-Poly1305(key, nonce = iv XOR seq, aad = the 3 length bytes, type u8 || body)

Plaintext travels in chunks: a `memoryview` whose byte 0 is scratch for the record type, with the body at [1 : 1 + n].
Source: docs/spec/records.md.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tuunel.e2e.wire import BODY_LENGTHS, MAX_BODY, MAX_EARLY_BODY, TRANSITIONS, Direction, Phase, RecordType, fits
from tuunel.errors import Failure, LocalProtocolError, Reason, RemoteProtocolError
from tuunel.hkdf import IV_LENGTH, AeadKey, expand_label

__all__ = [
    "BUFFER_SIZE",
    "MAX_BODY",
    "MAX_EARLY_BODY",
    "OVERHEAD",
    "RECORD_SIZE",
    "Buffers",
    "Direction",
    "Phase",
    "RecordOpener",
    "RecordSealer",
    "RecordType",
]

HEADER: Final = 3
TAG: Final = 16
OVERHEAD: Final = HEADER + 1 + TAG  #: bytes on the wire beyond the body
BUFFER_SIZE: Final = 1 + MAX_BODY  #: of a chunk that any record fits in
RECORD_SIZE: Final = OVERHEAD + MAX_BODY + HEADER  #: any record, and the header of the next
READ_AHEAD: Final = OVERHEAD + MAX_EARLY_BODY + HEADER  #: read at once when records are small

GROWTH_BYTES: Final = 65536  #: sealed in small records after a start, so that a long thin line shows its first bytes soon
GROWN_CHUNK: Final = 65536

KEY_UPDATE_RECORDS: Final = 1 << 24  #: the sender's key is due for an update after this many records ...
KEY_UPDATE_BYTES: Final = 1 << 36  #: ... or 64 GiB of bodies
MAX_KEY_RECORDS: Final = 2 * KEY_UPDATE_RECORDS  #: neither end lets a key go on beyond this: the doubling is room for a record in flight
MAX_KEY_BYTES: Final = 2 * KEY_UPDATE_BYTES


_NOTHING: Final = memoryview(b"")
#: `TRANSITIONS`, by phase first: what comes in a phase is looked up at each record, and the phase changes seldom.
_ORDER: Final[Mapping[Direction, Mapping[Phase, Mapping[RecordType, Phase]]]] = MappingProxyType({
    direction: {phase: {kind: after for (before, kind), after in table.items() if before is phase} for phase in Phase}
    for direction, table in TRANSITIONS.items()
})  # fmt: skip
_TYPES: Final[Mapping[int, RecordType]] = MappingProxyType({int(kind): kind for kind in BODY_LENGTHS})


class _Cipher:
    """The current key of one direction: gives each nonce once, and counts what the key has done."""

    __slots__ = ("_iv", "_secret", "aead", "bytes", "records")

    def __init__(self, secret: bytes) -> None:
        self._install(secret)

    def _install(self, secret: bytes) -> None:
        key = AeadKey(expand_label(secret, "key"), expand_label(secret, "iv", length=IV_LENGTH))
        self._secret = secret
        self._iv = int.from_bytes(key.iv, "big")
        self.aead = ChaCha20Poly1305(key.key)
        self.records = 0
        self.bytes = 0

    def next_nonce(self) -> bytes:
        """The nonce of the next record; every call moves on."""
        nonce = (self._iv ^ self.records).to_bytes(IV_LENGTH, "big")
        self.records += 1
        return nonce

    def update(self) -> None:
        """Forget the secret; the next one, which cannot be turned back, takes its place."""
        self._install(expand_label(self._secret, "update"))

    @property
    def worn_out(self) -> bool:
        """No further record but KEY_UPDATE may use this key."""
        return self.records >= MAX_KEY_RECORDS or self.bytes >= MAX_KEY_BYTES


class _Ordered:
    """Where one direction of a tunnel stands, and what may come next in it."""

    def __init__(self, direction: Direction) -> None:
        self._order = _ORDER[direction]
        self._enter(Phase.STANDBY)

    @property
    def phase(self) -> Phase:
        """Where this direction stands, as sealed or opened so far."""
        return self._phase

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._next = self._order[phase]


class RecordSealer(_Ordered):
    """Seals one direction's records, in order. A record of this sealer must be sent whole before the next one is.

    Misuse (a record out of order, a body too large, anything after `close`) is LocalProtocolError and seals nothing.
    With `early`, records stay at or below `MAX_EARLY_BODY` until `peer_authenticated()`.
    """

    def __init__(self, secret: bytes, direction: Direction, *, early: bool = False) -> None:
        super().__init__(direction)
        self._cipher: _Cipher | None = _Cipher(secret)
        self._max_body = MAX_EARLY_BODY if early else MAX_BODY
        self._growth = 0
        self._whole = False

    @property
    def needs_key_update(self) -> bool:
        """The key has done its share: send `key_update()` next. The share by time is the caller's to watch."""
        cipher = self._live()
        return cipher.records >= KEY_UPDATE_RECORDS or cipher.bytes >= KEY_UPDATE_BYTES

    @property
    def chunk_limit(self) -> int:
        """The largest body that is worth sealing now: small at a start, large only on a line that takes whole records."""
        if self._growth < GROWTH_BYTES:
            return MAX_EARLY_BODY
        return min(self._max_body, MAX_BODY if self._whole else GROWN_CHUNK)

    def restart_growth(self) -> None:
        """Begin with small records again; the caller says so after a second without one."""
        self._growth = 0

    def whole_writes(self, taken: bool) -> None:  # noqa: FBT001 - a fact about the last write, told on every change
        """Say whether the socket takes whole records at once."""
        self._whole = taken

    def peer_authenticated(self) -> None:
        """The peer has proven its identity: lift the early limit."""
        self._max_body = MAX_BODY

    def seal_into(self, buffer: memoryview, n: int, kind: RecordType, out: memoryview) -> int:
        """Seal the body `buffer[1 : 1 + n]` into `out`; return the bytes written, `n + OVERHEAD`. Overwrites `buffer[0]`."""
        if len(buffer) < n + 1 or len(out) < n + OVERHEAD:
            raise LocalProtocolError("a buffer is too small for the record")
        cipher = self._step(kind, n)
        length = n + 1 + TAG
        buffer[0] = kind
        out[:HEADER] = length.to_bytes(HEADER, "big")
        cipher.aead.encrypt_into(cipher.next_nonce(), buffer[: n + 1], out[:HEADER], out[HEADER : HEADER + length])
        if kind is RecordType.KEY_UPDATE:
            cipher.update()
        return HEADER + length

    def seal(self, kind: RecordType, body: bytes = b"") -> bytes:
        """Seal a record that is not worth a buffer. KEY_UPDATE moves to the next key; the old one is gone."""
        cipher = self._step(kind, len(body))
        header = (len(body) + 1 + TAG).to_bytes(HEADER, "big")
        record = header + cipher.aead.encrypt(cipher.next_nonce(), bytes([kind]) + body, header)
        if kind is RecordType.KEY_UPDATE:
            cipher.update()
        return record

    def key_update(self) -> bytes:
        """Seal KEY_UPDATE."""
        return self.seal(RecordType.KEY_UPDATE)

    def close(self) -> None:
        """Drop the secrets."""
        self._cipher = None

    def _step(self, kind: RecordType, length: int) -> _Cipher:
        cipher = self._live()
        phase = self._next.get(kind)
        if phase is None:
            raise LocalProtocolError(f"{kind.name} may not be sent while {self._phase.value}")
        if not fits(kind, length) or length > self._max_body:
            raise LocalProtocolError(f"{kind.name} cannot have a body of {length} bytes")
        if cipher.worn_out and kind is not RecordType.KEY_UPDATE:
            raise LocalProtocolError("the key is worn out: a key update is overdue")
        if phase is not self._phase:
            self._enter(phase)
        self._growth += length
        cipher.bytes += length
        return cipher

    def _live(self) -> _Cipher:
        if self._cipher is None:
            raise LocalProtocolError("this sealer is closed")
        return self._cipher


class Buffers(Protocol):
    """Where an opener borrows from: every buffer holds `RECORD_SIZE` bytes or more and belongs to the borrower until given back."""

    def borrow(self) -> memoryview:
        """A writable buffer; its content is arbitrary."""
        ...

    def give_back(self, buffer: memoryview, /) -> None:
        """Return the very view that was borrowed."""
        ...


class RecordOpener(_Ordered):
    """Opens one direction's records, in order, out of a ciphertext buffer that it borrows only while bytes are in it.

    Feed it with `room()` and `received(n)`, or with `receive_data`; then call `open_into` until it returns None.
    After a RemoteProtocolError, and after `close()`, it holds neither secrets nor buffers and any use is LocalProtocolError.
    Until `peer_authenticated()`, a record above `MAX_EARLY_BODY` is a breach, told by its header alone.
    """

    def __init__(self, secret: bytes, direction: Direction, buffers: Buffers, *, early: bool = False) -> None:
        super().__init__(direction)
        self._cipher: _Cipher | None = _Cipher(secret)
        self._max_body = MAX_EARLY_BODY if early else MAX_BODY
        self._buffers = buffers
        self._buffer: memoryview | None = None
        self._start = 0  # of the bytes not opened yet
        self._end = 0
        self._backlog = _NOTHING  # given by receive_data, not in the buffer yet

    @property
    def fin_received(self) -> bool:
        """FIN has been opened: the peer sends no more app bytes."""
        return self._phase is Phase.FINISHED

    def peer_authenticated(self) -> None:
        """The peer has proven its identity, and may send large records."""
        self._max_body = MAX_BODY

    @property
    def has_record(self) -> bool:
        """Whether `open_into` is worth a call before more bytes come: a whole record is here, or a breach, or bytes not looked at yet."""
        if self._end - self._start < HEADER:
            return bool(self._backlog)
        length = self._sealed_length()
        return bool(self._backlog) or HEADER + length <= self._end - self._start or not 1 + TAG <= length <= 1 + self._max_body + TAG

    def room(self) -> memoryview:
        """Where the next ciphertext may be written: never empty, and no longer than what is useful. `received` must follow."""
        self._live()
        if self._backlog or self._complete():
            raise LocalProtocolError("open what is here first")
        return self._free()

    def received(self, n: int) -> None:
        """`n` bytes were written at the start of `room()`; 0 when nothing came, which hands an empty buffer back."""
        self._live()
        if self._buffer is None or not 0 <= n <= len(self._buffer) - self._end:
            raise LocalProtocolError("received() without room for it")
        self._end += n
        self._release_if_empty()

    def receive_data(self, data: bytes) -> None:
        """Take ciphertext that is already in memory. It is held until opened."""
        self._live()
        self._backlog = memoryview(bytes(self._backlog) + data)

    def receive_eof(self) -> None:
        """The carrier has ended. Returns when the peer had said its last word; otherwise Failure(TUNNEL_LOST): truncation."""
        self._live()
        ended = self._phase in (Phase.FINISHED, Phase.REFUSED, Phase.ABORTED)
        whole = self._end == self._start and not self._backlog
        self.close()
        if not (ended and whole):
            raise Failure(Reason.TUNNEL_LOST, detail="the carrier ended without an end mark")

    def open_into(self, buffer: memoryview) -> tuple[RecordType, int] | None:
        """Open one record into `buffer`: its type, and n with the body at `buffer[1 : 1 + n]`. None: more bytes are needed.

        `buffer` must hold `BUFFER_SIZE` bytes, or `1 + MAX_EARLY_BODY` before `peer_authenticated()`. KEY_UPDATE has
        been obeyed when it is returned. On RemoteProtocolError the content of `buffer` must not be used.
        """
        cipher = self._live()
        while (length := self._complete()) is None:
            if not self._backlog:
                self._release_if_empty()
                return None
            self._take_backlog()
        if len(buffer) < length - HEADER - TAG:
            raise LocalProtocolError("the chunk is too small for the record")
        sealed = self._held[:length]
        worn_out = cipher.worn_out
        try:
            size = cipher.aead.decrypt_into(cipher.next_nonce(), sealed[HEADER:], sealed[:HEADER], buffer[: length - HEADER - TAG]) - 1
        except InvalidTag:
            raise self._breach("a record does not verify") from None
        kind = self._judge(buffer[0], size)
        if worn_out and kind is not RecordType.KEY_UPDATE:
            raise self._breach("the peer uses a key for too long")
        cipher.bytes += size
        if kind is RecordType.KEY_UPDATE:
            cipher.update()
        self._start += length
        self._release_if_empty()
        return kind, size

    def close(self) -> None:
        """Hand the buffer back and drop the secrets. May be called at any time, more than once."""
        self._cipher = None
        self._backlog = _NOTHING
        self._start = self._end = 0
        if self._buffer is not None:
            self._buffers.give_back(self._buffer)
            self._buffer = None

    def _judge(self, code: int, length: int) -> RecordType:
        """The type of a record that verified, once it is known to be one that may come now."""
        kind = _TYPES.get(code)
        if kind is None:
            raise self._breach("a record has an unknown or reserved type")
        phase = self._next.get(kind)
        if phase is None:
            raise self._breach(f"{kind.name} out of order")
        if not fits(kind, length):
            raise self._breach(f"{kind.name} has a wrong length")
        if phase is not self._phase:
            self._enter(phase)
        return kind

    @property
    def _held(self) -> memoryview:
        """The ciphertext not opened yet."""
        return _NOTHING if self._buffer is None else self._buffer[self._start : self._end]

    def _announced(self) -> int:
        """Wire length of the first record held; 0 while its header is not here. A length that means nothing is a breach at once."""
        if self._end - self._start < HEADER:
            return 0
        length = self._sealed_length()
        if not 1 + TAG <= length <= 1 + self._max_body + TAG:
            raise self._breach("a record has an impossible length")
        return HEADER + length

    def _sealed_length(self) -> int:
        """What the first header says, which is here."""
        assert self._buffer is not None
        return int.from_bytes(self._buffer[self._start : self._start + HEADER], "big")

    def _complete(self) -> int | None:
        """Wire length of the first record held, once it is here whole."""
        length = self._announced()
        return length if 0 < length <= self._end - self._start else None

    def _free(self) -> memoryview:
        """Where ciphertext goes next: up to the end of the first record and the next header, or `READ_AHEAD` bytes.

        Reading no further means that hardly anything has to be moved when the record is opened, and no more memory is touched.
        """
        wanted = self._announced() + HEADER
        if self._buffer is None:
            self._buffer = self._buffers.borrow()
        elif self._start:
            held = self._held
            self._buffer[: len(held)] = held
            self._start, self._end = 0, len(held)
        return self._buffer[self._end : max(wanted, READ_AHEAD)]

    def _take_backlog(self) -> None:
        room = self._free()
        n = min(len(room), len(self._backlog))
        room[:n] = self._backlog[:n]
        self._backlog = self._backlog[n:]
        self._end += n

    def _release_if_empty(self) -> None:
        if self._start == self._end and self._buffer is not None:
            self._buffers.give_back(self._buffer)
            self._buffer = None
            self._start = self._end = 0

    def _breach(self, what: str) -> RemoteProtocolError:
        self.close()
        return RemoteProtocolError(what)

    def _live(self) -> _Cipher:
        if self._cipher is None:
            raise LocalProtocolError("this opener is closed")
        return self._cipher

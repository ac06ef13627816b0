"""How bytes are cut and sealed between a device and the relay: `len u16 || payload`, the payload under AES-256-GCM once keys exist.

Layout and limits: docs/spec/hop-handshake.md section 2.
"""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tuunel.errors import LocalProtocolError, RemoteProtocolError
from tuunel.hkdf import AeadKey

LENGTH: Final = 2
TAG: Final = 16
MAX_RECORD: Final = 16384  #: bytes of ciphertext in one record: all that an unauthenticated peer can make this end hold
MAX_PLAINTEXT: Final = MAX_RECORD - TAG
MAX_RECORDS: Final = 1 << 24  #: under one key: RFC 8446 section 5.5 allows AES-GCM 2^24.5 full records


class Frames:
    """Cuts a byte stream into frames. Holds what has arrived and was not asked for yet."""

    __slots__ = ("_buffer",)

    def __init__(self, data: bytes = b"") -> None:
        self._buffer = bytearray(data)

    def receive_data(self, data: bytes) -> None:
        """Add bytes from the peer."""
        self._buffer += data

    def next(self, *, floor: int, ceiling: int, magic: bytes = b"") -> bytes | None:
        """The next frame's payload, or None when more bytes are needed; a wrong magic or length is refused as soon as it is seen."""
        if bytes(self._buffer[: len(magic)]) != magic[: len(self._buffer)]:
            raise RemoteProtocolError("this is not tuunel's protocol")
        start = len(magic) + LENGTH
        if len(self._buffer) < start:
            return None
        end = start + self._length(len(magic))
        if not floor <= end - start <= ceiling:
            raise RemoteProtocolError(f"a frame of {end - start} bytes is outside {floor} to {ceiling}")
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[start:end])
        del self._buffer[:end]
        return payload

    def bytes_wanted(self, magic: bytes = b"") -> int:
        """How many more bytes the next frame needs for certain: read no more than that, and nothing is taken that belongs behind it."""
        start = len(magic) + LENGTH
        if len(self._buffer) < start:
            return start - len(self._buffer)
        return max(0, start + self._length(len(magic)) - len(self._buffer))

    def _length(self, at: int) -> int:
        return int.from_bytes(self._buffer[at : at + LENGTH])

    def __len__(self) -> int:
        return len(self._buffer)

    def peek(self) -> bytes:
        """Everything that has arrived and was not taken."""
        return bytes(self._buffer)

    def take_all(self) -> bytes:
        """Everything that has arrived, and forget it."""
        taken = bytes(self._buffer)
        self._buffer.clear()
        return taken


def frame(payload: bytes) -> bytes:
    """`len u16 || payload`."""
    return len(payload).to_bytes(LENGTH) + payload


class Sealer:
    """Seals records of one direction: every record its own nonce, so a lost, doubled or swapped one does not open."""

    __slots__ = ("_aead", "_key", "_seq")

    def __init__(self, key: AeadKey) -> None:
        self._key = key
        self._aead = AESGCM(key.key)
        self._seq = 0

    @property
    def records_left(self) -> int:
        """How many records may still be sealed under this key."""
        return MAX_RECORDS - self._seq

    def seal(self, plaintext: bytes) -> bytes:
        """The next record, framed. LocalProtocolError above the length that the peer accepts."""
        if len(plaintext) > MAX_PLAINTEXT or self._seq >= MAX_RECORDS:
            raise LocalProtocolError(f"record {self._seq} of {len(plaintext)} bytes cannot be sealed")
        length = (len(plaintext) + TAG).to_bytes(LENGTH)
        sealed = self._aead.encrypt(self._key.nonce(self._seq), plaintext, length)
        self._seq += 1
        return length + sealed


class Opener:
    """Opens records of one direction, in order."""

    __slots__ = ("_aead", "_key", "_seq")

    def __init__(self, key: AeadKey) -> None:
        self._key = key
        self._aead = AESGCM(key.key)
        self._seq = 0

    def open(self, payload: bytes) -> bytes:
        """The plaintext of the next record, whose frame held `payload`; RemoteProtocolError when it is not genuine."""
        if self._seq >= MAX_RECORDS:
            raise RemoteProtocolError("too many records under one key")
        try:
            plaintext = self._aead.decrypt(self._key.nonce(self._seq), payload, len(payload).to_bytes(LENGTH))
        except InvalidTag:
            raise RemoteProtocolError("a record is not genuine") from None
        self._seq += 1
        return plaintext

"""The end-to-end key schedule: from transcript and shared secrets to the keys of INIT, ACCEPT and both directions of records.

Source: docs/spec/end-to-end.md section 4. Pure functions; who holds which secret, and for how long, is the handshake's matter.
"""

import hashlib
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tuunel.e2e.wire import HANDSHAKE_CEILING, PAD_BLOCK, Direction
from tuunel.errors import RemoteProtocolError
from tuunel.hkdf import aead_key, expand_label, extract

LENGTH: Final = 2  #: the length field before the sealed part of INIT and of ACCEPT
TAG: Final = 16


def digest(*parts: bytes) -> bytes:
    """SHA-256 of the parts, one behind the other: one step of the transcript."""
    return hashlib.sha256(b"".join(parts)).digest()


T0: Final = digest(b"tuunel/1 e2e P256+ML-KEM-768 HKDF-SHA256 CHACHA20POLY1305 ECDSA-P256-SHA256")


def keyed_transcript(offer: bytes, open_message: bytes, ciphertext: bytes) -> bytes:
    """t2': the transcript up to and with the KEM ciphertext, which salts the handshake secret."""
    return digest(digest(digest(T0, offer), open_message), ciphertext)


def handshake_secret(transcript: bytes, shared_point: bytes, shared_kem: bytes) -> bytes:
    """hs: secret as long as one of the two key agreements holds."""
    return extract(transcript, shared_point + shared_kem)


def record_secret(hs: bytes, direction: Direction, transcript: bytes) -> bytes:
    """The first secret of one direction's records; `transcript` is t4 from forward proxy to agent, t5 the other way."""
    return expand_label(hs, direction.value, transcript)


def sealed_length(header: bytes) -> int:
    """How many bytes follow the header of INIT or ACCEPT (whose last two bytes say so) to complete the message."""
    length = int.from_bytes(header[-LENGTH:], "big")
    plain = length - TAG
    if not 0 < plain <= HANDSHAKE_CEILING or plain % PAD_BLOCK:
        raise RemoteProtocolError("a handshake message has an impossible length")
    return length


def seal_init(hs: bytes, plaintext: bytes) -> bytes:
    """The length and sealed part of INIT."""
    return _seal(hs, "init", b"", plaintext)


def open_init(hs: bytes, message: bytes) -> bytes:
    """The plaintext of INIT, given its length and sealed part."""
    return _open(hs, "init", b"", message)


def seal_accept(hs: bytes, t4: bytes, plaintext: bytes) -> bytes:
    """ACCEPT as it is sent."""
    return _seal(hs, "accept", t4, plaintext)


def open_accept(hs: bytes, t4: bytes, message: bytes) -> bytes:
    """The plaintext of ACCEPT."""
    return _open(hs, "accept", t4, message)


def _seal(hs: bytes, label: str, context: bytes, plaintext: bytes) -> bytes:
    key = aead_key(hs, label, context)
    header = (len(plaintext) + TAG).to_bytes(LENGTH, "big")
    return header + ChaCha20Poly1305(key.key).encrypt(key.nonce(0), plaintext, header)


def _open(hs: bytes, label: str, context: bytes, message: bytes) -> bytes:
    header, sealed = message[:LENGTH], message[LENGTH:]
    if len(header) != LENGTH or len(sealed) != sealed_length(header):
        raise RemoteProtocolError("a handshake message has a wrong length")
    key = aead_key(hs, label, context)
    try:
        return ChaCha20Poly1305(key.key).decrypt(key.nonce(0), sealed, header)
    except InvalidTag:
        raise RemoteProtocolError("a handshake message does not verify") from None

"""The hop handshake's transcript and key schedule: docs/spec/hop-handshake.md section 4."""

import hashlib
import hmac
from typing import Final

from tuunel.hkdf import AeadKey, aead_key, expand_label, extract

PROTOCOL_NAME: Final = b"tuunel/1 hop P256 HKDF-SHA256 AES256GCM ECDSA-P256-SHA256"


class KeySchedule:
    """The transcript h0 to h8 of one handshake, begun by M1, and the keys that hang on it."""

    __slots__ = ("_hash", "_secret")

    def __init__(self, m1: bytes) -> None:
        self._hash = hashlib.sha256(PROTOCOL_NAME).digest()
        self._secret = b""
        self.add(m1)

    def add(self, *parts: bytes) -> bytes:
        """Take these bytes into the transcript; its new hash."""
        self._hash = hashlib.sha256(self._hash + b"".join(parts)).digest()
        return self._hash

    def agree(self, reply: bytes, shared: bytes) -> tuple[AeadKey, AeadKey]:
        """Both points are known: the keys of RELAY_AUTH and DEVICE_AUTH."""
        self._secret = extract(self.add(reply), shared)
        return aead_key(self._secret, "s hs", self._hash), aead_key(self._secret, "c hs", self._hash)

    def mac(self, label: str) -> bytes:
        """The MAC over the transcript so far: `s fin` is the relay's, `c fin` the device's."""
        return hmac.digest(expand_label(self._secret, label), self._hash, "sha256")

    def channel_keys(self) -> tuple[AeadKey, AeadKey]:
        """The handshake is complete: the keys of the device's and of the relay's hop records. The handshake secret is dropped."""
        master = extract(expand_label(self._secret, "derived"), bytes(32))
        self._secret = b""
        return aead_key(master, "c hop", self._hash), aead_key(master, "s hop", self._hash)

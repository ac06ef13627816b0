"""The key schedule's two steps: HKDF with SHA-256 (RFC 5869), expanding in the labelled shape of TLS 1.3 (RFC 8446 section 7.1).

Every secret of the hop handshake, the end-to-end handshake and the invites comes from here; docs/spec/names.md section 1 has the layout.
"""

import hmac
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

HASH_LENGTH: Final = 32
LABEL_PREFIX: Final = b"tuunel1 "
MAX_LABEL: Final = 255 - len(LABEL_PREFIX)  # one length byte counts prefix and label
MAX_CONTEXT: Final = 255  # one length byte
MAX_OUTPUT: Final = 255 * HASH_LENGTH  # RFC 5869 section 2.3: the block counter is one byte
KEY_LENGTH: Final = 32
IV_LENGTH: Final = 12


def extract(salt: bytes, ikm: bytes) -> bytes:
    """Return the 32-byte pseudorandom key of `ikm` under `salt`: HKDF-Extract, RFC 5869 section 2.2."""
    return hmac.digest(salt or bytes(HASH_LENGTH), ikm, "sha256")


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    """Return `length` bytes of keying material: HKDF-Expand, RFC 5869 section 2.3. ValueError above 8160 bytes."""
    if not 0 < length <= MAX_OUTPUT:
        raise ValueError(f"HKDF-Expand gives 1 to {MAX_OUTPUT} bytes, not {length}")
    if length <= HASH_LENGTH:  # as nearly always
        return hmac.digest(prk, info + b"\x01", "sha256")[:length]
    output = block = b""
    for counter in range(1, -(-length // HASH_LENGTH) + 1):
        block = hmac.digest(prk, block + info + bytes((counter,)), "sha256")
        output += block
    return output[:length]


def expand_label(secret: bytes, label: str, context: bytes = b"", length: int = HASH_LENGTH) -> bytes:
    """Return `length` bytes bound to `label` and `context`: `XL` of the protocol texts.

    info = length u16 || length of (prefix || label) u8 || "tuunel1 " || label || length of context u8 || context.
    ValueError when the label is empty or not ASCII, or when anything does not fit its length byte.
    """
    if len(context) > MAX_CONTEXT:
        raise ValueError(f"{len(context)} bytes of context do not fit")
    return expand(secret, _labelled(label, length) + bytes((len(context),)) + context, length)


@lru_cache(maxsize=64)
def _labelled(label: str, length: int) -> bytes:
    """The part of info that is the same for every secret: each use of a tunnel asks for it six times."""
    name = label.encode("ascii")
    if not 0 < len(name) <= MAX_LABEL:
        raise ValueError(f"label {label!r} does not fit")
    name = LABEL_PREFIX + name
    return length.to_bytes(2) + bytes((len(name),)) + name


@dataclass(frozen=True, slots=True)
class AeadKey:
    """A key of 32 bytes and an iv of 12 for one direction. It masks itself when shown."""

    key: bytes = field(repr=False)
    iv: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_LENGTH or len(self.iv) != IV_LENGTH:
            raise ValueError("an AEAD key is 32 bytes of key and 12 of iv")

    def nonce(self, seq: int) -> bytes:
        """Return the nonce of record number `seq`: iv XOR (0^32 || seq u64). OverflowError above 2^64 - 1."""
        return (int.from_bytes(self.iv) ^ int.from_bytes(seq.to_bytes(8))).to_bytes(IV_LENGTH)


def aead_key(secret: bytes, label: str, context: bytes = b"") -> AeadKey:
    """Expand `secret` to an AEAD key: 44 bytes in one expansion, key first, iv behind it."""
    material = expand_label(secret, label, context, KEY_LENGTH + IV_LENGTH)
    return AeadKey(material[:KEY_LENGTH], material[KEY_LENGTH:])

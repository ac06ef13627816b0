"""ChaCha20-Poly1305 from the formulas of RFC 8439, slow and plain: a second opinion on the library's cipher, proven by known answers."""

import struct

MASK = 0xFFFFFFFF
PRIME = (1 << 130) - 5
CLAMP = 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
COLUMNS_THEN_DIAGONALS = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip


def _rotate(word: int, by: int) -> int:
    return (word << by | word >> (32 - by)) & MASK


def chacha20_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    """64 bytes of key stream. RFC 8439 section 2.3."""
    start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), counter, *struct.unpack("<3I", nonce)]
    s = list(start)
    for _ in range(10):
        for a, b, c, d in COLUMNS_THEN_DIAGONALS:
            for x, y, z, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                s[x] = (s[x] + s[y]) & MASK
                s[z] = _rotate(s[z] ^ s[x], by)
    return struct.pack("<16I", *((one + two) & MASK for one, two in zip(s, start, strict=True)))


def chacha20(key: bytes, counter: int, nonce: bytes, data: bytes) -> bytes:
    """RFC 8439 section 2.4."""
    stream = b"".join(chacha20_block(key, counter + block, nonce) for block in range(-(-len(data) // 64)))
    return bytes(one ^ two for one, two in zip(data, stream, strict=False))


def poly1305(key: bytes, message: bytes) -> bytes:
    """RFC 8439 section 2.5."""
    r, s, total = int.from_bytes(key[:16], "little") & CLAMP, int.from_bytes(key[16:], "little"), 0
    for at in range(0, len(message), 16):
        total = (total + int.from_bytes(message[at : at + 16] + b"\x01", "little")) * r % PRIME
    return ((total + s) % (1 << 128)).to_bytes(16, "little")


def tag(key: bytes, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes:
    """RFC 8439 section 2.8."""
    parts = (aad, bytes(-len(aad) % 16), ciphertext, bytes(-len(ciphertext) % 16), struct.pack("<QQ", len(aad), len(ciphertext)))
    return poly1305(chacha20_block(key, 0, nonce)[:32], b"".join(parts))


def seal(key: bytes, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """Ciphertext and tag."""
    ciphertext = chacha20(key, 1, nonce, plaintext)
    return ciphertext + tag(key, nonce, ciphertext, aad)


def unseal(key: bytes, nonce: bytes, sealed: bytes, aad: bytes) -> bytes | None:
    """The plaintext; None when the tag is wrong."""
    ciphertext = sealed[:-16]
    return chacha20(key, 1, nonce, ciphertext) if tag(key, nonce, ciphertext, aad) == sealed[-16:] else None

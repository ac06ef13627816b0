"""A second reading of docs/spec/hop-handshake.md, written from the text alone: it imports nothing of the product.

It takes what went over the wire and the two ephemeral private values, and derives every hash and secret of the handshake,
checks both signatures and both MACs, and opens every record.
"""

import hashlib
import hmac
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NAMES = {
    0x01: "Welcome", 0x02: "HopError", 0x03: "Ping", 0x04: "Pong", 0x10: "Offer", 0x11: "Open", 0x12: "PairedForward",
    0x13: "PairedAgent", 0x14: "Switch", 0x20: "Admission", 0x21: "Demand", 0x22: "Mint", 0x23: "Minted", 0x24: "DropToken",
    0x25: "Unenrol", 0x26: "Notice",
}  # fmt: skip


def h(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def mac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def xl(secret: bytes, label: bytes, context: bytes = b"", length: int = 32) -> bytes:
    label = b"tuunel1 " + label
    info = length.to_bytes(2, "big") + bytes([len(label)]) + label + bytes([len(context)]) + context
    out = block = b""
    for counter in range(1, 3):
        block = mac(secret, block + info + bytes([counter]))
        out += block
    return out[:length]


class Direction:
    """One AEAD key, and the number of its next record."""

    def __init__(self, material: bytes) -> None:
        self.key, self.iv, self.seq = material[:32], int.from_bytes(material[32:], "big"), 0

    def open(self, wire: bytes) -> tuple[bytes, bytes]:
        end = 2 + int.from_bytes(wire[:2], "big")
        nonce = (self.iv ^ self.seq).to_bytes(12, "big")
        self.seq += 1
        return AESGCM(self.key).decrypt(nonce, wire[2:end], wire[:2]), wire[end:]


def public(data: bytes) -> ec.EllipticCurvePublicKey:
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), data)


def check_signature(key: ec.EllipticCurvePublicKey, label: bytes, digest: bytes, signature: bytes) -> None:
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    key.verify(encode_dss_signature(r, s), b" " * 64 + label + b"\0" + digest, ec.ECDSA(hashes.SHA256()))


def derive(given: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """Every secret of the connection, and every plaintext, in hex; an exception when anything does not fit."""
    m1, m2, m3, m4 = (bytes.fromhex(flight) for flight in case["flights"].values())
    reply, auth = m2[:100], m2[100:]
    assert m1[:4] == b"TNL1"
    assert (m1[6], m1[7], reply[2]) == (1, 1, 1)
    one = ec.derive_private_key(given["device_ephemeral_private"], ec.SECP256R1()).exchange(ec.ECDH(), public(reply[35:100]))
    other = ec.derive_private_key(given["relay_ephemeral_private"], ec.SECP256R1()).exchange(ec.ECDH(), public(m1[40:105]))
    assert one == other
    h0 = h(b"tuunel/1 hop P256 HKDF-SHA256 AES256GCM ECDSA-P256-SHA256")
    h1 = h(h0, m1)
    h2 = h(h1, reply)
    hs = mac(h2, one)
    shs, chs = xl(hs, b"s hs", h2, 44), xl(hs, b"c hs", h2, 44)

    plain_auth, nothing = Direction(shs).open(auth)
    assert nothing == b""
    chain_length = int.from_bytes(plain_auth[:2], "big")
    params_at = 2 + chain_length
    proofs_at = params_at + 2 + int.from_bytes(plain_auth[params_at : params_at + 2], "big")
    signature, code, pad = plain_auth[proofs_at : proofs_at + 64], plain_auth[proofs_at + 64 : proofs_at + 96], plain_auth[proofs_at + 96 :]
    leaf_length = int.from_bytes(plain_auth[4:6], "big")
    leaf, root = plain_auth[6 : 6 + leaf_length], plain_auth[8 + leaf_length : params_at]
    assert [leaf.hex(), root.hex()] == given["chain"]
    key_info = (
        x509.load_der_x509_certificate(root)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    assert h(key_info).hex() == plain_auth[params_at + 2 : params_at + 34].hex() == given["pin"]
    h3 = h(h2, plain_auth[:proofs_at])
    leaf_key = x509.load_der_x509_certificate(leaf).public_key()
    assert isinstance(leaf_key, ec.EllipticCurvePublicKey)
    check_signature(leaf_key, b"tuunel/1 relay auth", h3, signature)
    h4 = h(h3, signature)
    s_fin = xl(hs, b"s fin")
    assert mac(s_fin, h4) == code
    h5 = h(h4, code, pad)

    plain_device, rest = Direction(chs).open(m3)
    assert len(plain_device) == 512
    at = 27
    if plain_device[0] == 1:
        at += 65
        at += 1 + plain_device[at]
        at += 1 + plain_device[at]
    at += 2 + int.from_bytes(plain_device[at : at + 2], "big")
    identity = given["client_private"] if "DIAL" in case["name"] else given["agent_private"]
    identity_key = ec.derive_private_key(identity, ec.SECP256R1()).public_key()
    point = identity_key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    short = h(b"tuunel/1 device id\0", point)[:22]
    device_id = short + h(b"tuunel/1 device id checksum\0", short, b"\1")[:2] + b"\1"
    assert plain_device[2:27] == device_id
    h6 = h(h5, plain_device[:at])
    check_signature(identity_key, b"tuunel/1 device auth", h6, plain_device[at : at + 64])
    h7 = h(h6, plain_device[at : at + 64])
    c_fin = xl(hs, b"c fin")
    assert mac(c_fin, h7) == plain_device[at + 64 : at + 96]
    h8 = h(h7, plain_device[at + 64 :])
    ms = mac(xl(hs, b"derived"), bytes(32))
    c_hop, s_hop = xl(ms, b"c hop", h8, 44), xl(ms, b"s hop", h8, 44)

    ends = {"device": Direction(c_hop), "relay": Direction(s_hop)}
    first = []
    while rest:
        plaintext, rest = ends["device"].open(rest)
        first.append(plaintext.hex())
    answer, nothing = ends["relay"].open(m4)
    assert nothing == b""
    assert answer[0] == 2 or (answer[0], answer[1:26]) == (1, device_id)
    records = []
    for record in case["records"]:
        plaintext, nothing = ends[record["from"]].open(bytes.fromhex(record["record"]))
        assert nothing == b""
        assert NAMES[plaintext[0]] == record["message"]
        records.append(plaintext.hex())
    secrets = {
        "h0": h0, "h1": h1, "h2": h2, "h3": h3, "h4": h4, "h5": h5, "h6": h6, "h7": h7, "h8": h8, "ecdh": one, "hs": hs, "shs": shs,
        "chs": chs, "s fin": s_fin, "c fin": c_fin, "ms": ms, "c hop": c_hop, "s hop": s_hop, "RELAY_AUTH": plain_auth,
        "DEVICE_AUTH": plain_device, NAMES[answer[0]].upper(): answer,
    }  # fmt: skip
    return {name: value.hex() for name, value in secrets.items()} | {"first messages": first, "records": records}


def name_of_tunnel(agent_point: bytes, forward_point: bytes) -> str:
    """Base32 by hand, to share not even that."""
    bits = int.from_bytes(h(b"tuunel/1 tunnel id\0", agent_point, forward_point)[:5], "big")
    return "".join("abcdefghijklmnopqrstuvwxyz234567"[bits >> shift & 31] for shift in range(35, -1, -5))

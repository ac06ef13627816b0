"""A second reading of the specification that shares no code with tuunel: what the agent's secrets make of the bytes."""

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mlkem
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def xl(secret: bytes, label: str, context: bytes = b"", length: int = 32) -> bytes:
    name = b"tuunel1 " + label.encode()
    info = length.to_bytes(2, "big") + bytes([len(name)]) + name + bytes([len(context)]) + context
    block = out = b""
    number = 1
    while len(out) < length:
        block = hmac.new(secret, block + info + bytes([number]), hashlib.sha256).digest()
        out += block
        number += 1
    return out[:length]


def aead_open(key: bytes, iv: bytes, number: int, header: bytes, sealed: bytes) -> bytes:
    nonce = bytes(a ^ b for a, b in zip(iv, bytes(4) + number.to_bytes(8, "big"), strict=True))
    return ChaCha20Poly1305(key).decrypt(nonce, sealed, header)


def check_signature(public: bytes, label: bytes, message: bytes, signature: bytes) -> None:
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    key.verify(der, b" " * 64 + label + b"\0" + message, ec.ECDSA(hashes.SHA256()))


def device_id(public: bytes) -> bytes:
    h22 = sha(b"tuunel/1 device id\0" + public)[:22]
    return h22 + sha(b"tuunel/1 device id checksum\0" + h22 + b"\1")[:2] + b"\1"


def read_params(data: bytes) -> tuple[str, list[int]]:
    """The label, and the commands that are announced."""
    entries = {}
    while data:
        assert data[0] not in entries
        entries[data[0]], data = data[2 : 2 + data[1]], data[2 + data[1] :]
    assert entries.keys() <= {1, 2}
    return entries[1].decode(), list(entries.get(2, b""))


def read_service(sent: bytes, answered: bytes, name: str) -> dict[str, int]:
    """What the app bytes of each direction say behind CONNECT to a service of the agent, of one question or measurement."""
    if name == "relay-rtt":
        assert len(sent) == 1
        assert len(answered) == 4
        return {"rtt": int.from_bytes(answered, "big")}
    told = {"milliseconds": int.from_bytes(sent[:4], "big")}
    if name == "source":
        assert len(sent) == 4
        return told | {"came": len(answered)}
    assert name == "sink"
    assert len(answered) == 16
    return told | {"sent": len(sent) - 4, "size": int.from_bytes(answered[:8], "big"), "microseconds": int.from_bytes(answered[8:], "big")}


def read_handshake(case: dict[str, Any]) -> dict[str, Any]:
    """Everything that follows from the messages of one handshake and the agent's two private keys."""
    offer, opened, init, accept = (bytes.fromhex(case[name]) for name in ("offer", "open", "init", "accept"))
    out: dict[str, Any] = {}

    assert len(offer) == 1419
    assert offer[0] == 1
    point_r, kem_public, not_after = offer[1:66], offer[66:1250], int.from_bytes(offer[1250:1258], "big")
    relay_id, identity_r, signature_r = offer[1258:1290], offer[1290:1355], offer[1355:]
    out["T0"] = sha(b"tuunel/1 e2e P256+ML-KEM-768 HKDF-SHA256 CHACHA20POLY1305 ECDSA-P256-SHA256")
    check_signature(identity_r, b"tuunel/1 e2e offer", sha(out["T0"] + offer[:1355]), signature_r)
    out |= {"not_after": not_after, "relay_id": relay_id, "device": device_id(identity_r)}

    assert opened[0] == 1
    assert opened[2:27] == out["device"]
    point_f = opened[27:92]
    assert len(opened) == (100 if opened[1] else 92)
    out["tunnel_id"] = base64.b32encode(sha(b"tuunel/1 tunnel id\0" + point_r + point_f)[:5]).decode().lower()

    private = ec.derive_private_key(int(case["agent_ephemeral"], 16), ec.SECP256R1())
    kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(case["kem_seed"]))
    assert kem.public_key().public_bytes_raw() == kem_public
    ciphertext = init[:1088]
    out["t1"] = sha(out["T0"] + offer)
    out["t2"] = sha(out["t1"] + opened)
    out["t2c"] = sha(out["t2"] + ciphertext)
    out["ecdh"] = private.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point_f))
    out["kem_secret"] = kem.decapsulate(ciphertext)
    out["hs"] = hmac.new(out["t2c"], out["ecdh"] + out["kem_secret"], hashlib.sha256).digest()

    material = xl(out["hs"], "init", b"", 44)
    out["init_key"], out["init_iv"] = material[:32], material[32:]
    assert int.from_bytes(init[1088:1090], "big") == len(init) - 1090
    plain = out["init_plaintext"] = aead_open(out["init_key"], out["init_iv"], 0, init[1088:1090], init[1090:])
    assert len(plain) % 256 == 0
    identity_f = plain[:65]
    out["t3"] = sha(out["t2c"] + identity_f)
    out["t4"] = sha(out["t3"] + plain[65:])
    check_signature(identity_f, b"tuunel/1 e2e initiator", out["t3"], plain[65:129])
    rest = plain[130:]
    if plain[129]:
        out["invite_id"], proof, rest = rest[:8], rest[8:40], rest[40:]
        invite = bytes.fromhex(case["invite_secret"])
        assert out["invite_id"] == opened[92:] == xl(invite, "invite id", b"", 8)
        out["proof"] = hmac.new(xl(invite, "invite proof"), out["t3"], hashlib.sha256).digest()
        assert proof == out["proof"]
    out["purpose"] = rest[0]
    length = int.from_bytes(rest[1:3], "big")
    out["initiator_label"], announced = read_params(rest[3 : 3 + length])
    assert not announced
    assert not any(rest[3 + length :])

    material = xl(out["hs"], "accept", out["t4"], 44)
    out["accept_key"], out["accept_iv"] = material[:32], material[32:]
    assert int.from_bytes(accept[:2], "big") == len(accept) - 2
    plain = out["accept_plaintext"] = aead_open(out["accept_key"], out["accept_iv"], 0, accept[:2], accept[2:])
    assert len(plain) % 256 == 0
    out["status"] = plain[0]
    check_signature(identity_r, b"tuunel/1 e2e responder", out["t4"], plain[1:65])
    length = int.from_bytes(plain[65:67], "big")
    out["responder_label"], out["commands"] = read_params(plain[67 : 67 + length])
    assert not any(plain[67 + length :])
    out["t5"] = sha(out["t4"] + plain)

    for name, transcript in (("f2r", out["t4"]), ("r2f", out["t5"])):
        out[name] = xl(out["hs"], name, transcript)
        out[f"{name}_key"], out[f"{name}_iv"] = xl(out[name], "key"), xl(out[name], "iv", b"", 12)
    return out


@dataclass
class RecordReader:
    """Reads one direction's records and follows its key updates."""

    secret: bytes
    number: int = 0

    def read(self, record: bytes) -> tuple[int, bytes]:
        assert int.from_bytes(record[:3], "big") == len(record) - 3
        plain = aead_open(xl(self.secret, "key"), xl(self.secret, "iv", b"", 12), self.number, record[:3], record[3:])
        self.number += 1
        if plain[0] == 0x20:
            self.secret, self.number = xl(self.secret, "update"), 0
        return plain[0], plain[1:]


@dataclass
class Use:
    """One use of a tunnel: its number, the secrets that it begins with, and the app bytes and other records of each direction."""

    number: int
    f2r: bytes = b""
    r2f: bytes = b""
    data: dict[str, bytes] = field(default_factory=lambda: {"f2r": b"", "r2f": b""})
    kinds: dict[str, list[int]] = field(default_factory=lambda: {"f2r": [], "r2f": []})
    fin: dict[str, bytes] = field(default_factory=dict)

    def name(self, tunnel_id: str) -> str:
        return f"{tunnel_id}.{self.number}" if self.number else tunnel_id

    def secrets(self) -> dict[str, str]:
        out = {"f2r": self.f2r, "r2f": self.r2f}
        for name in ("f2r", "r2f"):
            out |= {f"{name}_key": xl(out[name], "key"), f"{name}_iv": xl(out[name], "iv", b"", 12)}
        return {name: value.hex() for name, value in out.items()}


def read_uses(case: dict[str, Any]) -> list[Use]:
    """Follow both directions of a tunnel through its uses, in the order in which its records were sent."""
    readers = {name: RecordReader(bytes.fromhex(case[name])) for name in ("f2r", "r2f")}
    records = {name: [bytes.fromhex(record) for _, _, record in case[f"{name}_records"]] for name in readers}
    uses = [Use(0, readers["f2r"].secret, readers["r2f"].secret)]
    now = dict.fromkeys(readers, 0)
    for direction in case["order"]:
        use = uses[now[direction]]
        kind, body = readers[direction].read(records[direction].pop(0))
        if direction in use.fin and kind == 0x20:
            assert use.fin == {"f2r": b"\1", "r2f": b"\1"}, "both ends have ended, and offered another use"
            now[direction] += 1
            if now[direction] == len(uses):
                uses.append(Use(now[direction]))
            setattr(uses[now[direction]], direction, readers[direction].secret)
            continue
        assert direction not in use.fin or kind in {0x21, 0x22, 0x23, 0x03}
        assert kind not in {0x11, 0x12} or 0x10 in use.kinds["f2r"], "R answers nothing that it was not asked"
        use.kinds[direction].append(kind)
        if kind == 0x01:
            use.data[direction] += body
        if kind == 0x02:
            use.fin[direction] = body
    assert not any(records.values())
    return uses


def read_flow_record(kind: int, body: bytes, *, from_agent: bool) -> tuple[object, ...]:
    """What a flow record says: its flow, "open" or "bound" with host and port, "close" with code and detail, or "datagram"."""
    flow, rest = int.from_bytes(body[:2], "big"), body[2:]
    if kind == 0x30:
        return flow, "datagram", rest
    assert len(body) % 256 == 0
    if kind == 0x31:
        end = 1 + rest[0]
        assert not any(rest[end + 2 :])
        return flow, "bound" if from_agent else "open", rest[1:end].decode(), int.from_bytes(rest[end : end + 2], "big")
    assert kind == 0x32
    end = 2 + rest[1]
    assert not any(rest[end:])
    return flow, "close", rest[0], rest[2:end].decode()

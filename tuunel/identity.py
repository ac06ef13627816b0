"""Who a device is: its long-term ECDSA P-256 identity key, the device ID that is a hash of it, and signatures with one label per use.

Layouts: docs/spec/names.md sections 2 (device IDs) and 3 (points and signatures).
"""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from tuunel import statefile
from tuunel.errors import RemoteProtocolError, StateError, UsageError

CURVE: Final = ec.SECP256R1()
POINT_LENGTH: Final = 65
SIGNATURE_LENGTH: Final = 64
DEVICE_ID_LENGTH: Final = 25
DEVICE_ID_VERSION: Final = b"\x01"
COMPACT_LENGTH: Final = 40
GROUP: Final = 5
ID_HASH_LENGTH: Final = 22
BASE32: Final = frozenset("abcdefghijklmnopqrstuvwxyz234567")
UNCOMPRESSED: Final = 0x04
SCALAR_LENGTH: Final = 32
SIGNATURE_PADDING: Final = b"\x20" * 64  # as in TLS 1.3: no message of another protocol can be mistaken for one of ours


@dataclass(frozen=True, slots=True)
class DeviceID:
    """The name of a device that cannot be forged: 25 bytes, h22 || c2 || version, where h22 is a hash of its identity key.

    UsageError when checksum or version of `raw` are wrong. `str()` is the form shown to people: eight groups of five with dashes.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != DEVICE_ID_LENGTH:
            raise UsageError(f"a device ID has {DEVICE_ID_LENGTH} bytes, not {len(self.raw)}", "copy it again, whole")
        body, checksum, version = self.raw[:ID_HASH_LENGTH], self.raw[ID_HASH_LENGTH:-1], self.raw[-1:]
        if checksum != _id_checksum(body, version):
            raise UsageError("this device ID has a typo: its checksum does not match", "copy it again from the device that shows it")
        if version != DEVICE_ID_VERSION:
            raise UsageError(f"this device ID has version {version[0]}, which this tuunel does not know", "bring tuunel up to date")

    @classmethod
    def from_public_key(cls, public: bytes) -> Self:
        """Return the ID of the device with this identity key (65 bytes, uncompressed point)."""
        if len(public) != POINT_LENGTH:
            raise ValueError(f"a public key has {POINT_LENGTH} bytes, not {len(public)}")
        body = hashlib.sha256(b"tuunel/1 device id\x00" + public).digest()[:ID_HASH_LENGTH]
        return cls(body + _id_checksum(body, DEVICE_ID_VERSION) + DEVICE_ID_VERSION)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read either spelling, in groups of five with dashes or without any, in any case. UsageError says what is wrong with it."""
        compact = text.strip().lower()
        if compact[GROUP :: GROUP + 1] == "-" * (COMPACT_LENGTH // GROUP - 1):
            compact = compact.replace("-", "")
        wrong = sorted(set(compact) - BASE32 - {"-"})
        if wrong:
            raise UsageError(
                f"this is no device ID: it cannot contain {wrong[0]!r}", "a device ID is made of a-z and 2-7, in groups of five"
            )
        length = len(compact.replace("-", ""))
        if length != COMPACT_LENGTH:
            raise UsageError(f"this device ID has {length} characters, not {COMPACT_LENGTH}", "copy it again, whole")
        if "-" in compact:
            raise UsageError("the dashes of this device ID do not stand between groups of five", "copy it again, whole")
        return cls(base64.b32decode(compact.upper()))

    @property
    def compact(self) -> str:
        """The spelling without dashes: 40 characters."""
        return base64.b32encode(self.raw).decode().lower()

    def __str__(self) -> str:
        text = self.compact
        return "-".join(text[at : at + GROUP] for at in range(0, COMPACT_LENGTH, GROUP))

    def __repr__(self) -> str:
        return f"DeviceID({self})"


def _id_checksum(body: bytes, version: bytes) -> bytes:
    return hashlib.sha256(b"tuunel/1 device id checksum\x00" + body + version).digest()[:2]


class IdentityKey:
    """A device's private identity key. It never leaves this object except into its own file; `repr` shows the device ID only."""

    __slots__ = ("_private", "device_id", "public_bytes")

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        if private.curve.name != CURVE.name:
            raise ValueError("an identity key is on the curve P-256")
        self._private = private
        self.public_bytes = encode_point(private.public_key())  #: the public key, 65 bytes
        self.device_id = DeviceID.from_public_key(self.public_bytes)  #: the ID that this key proves

    @classmethod
    def generate(cls) -> Self:
        """Make a new identity from the system's randomness."""
        return cls(ec.generate_private_key(CURVE))

    @classmethod
    def from_private_value(cls, value: int) -> Self:
        """Make the identity with this private scalar: for frozen vectors."""
        return cls(ec.derive_private_key(value, CURVE))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the identity from its PEM file (PKCS #8, mode 0600). StateError when it is missing, unsafe, damaged or of another kind."""
        key = cls._read(path)
        if key is None:
            raise StateError(
                f"{path} does not exist: this machine has no identity yet", "it is made when the machine first enrols at a relay"
            )
        return key

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """Read the identity, or make one and store it. Processes that do this at the same time get the same one."""
        key = cls._read(path)
        if key is not None:
            return key
        with statefile.locked(path):
            key = cls._read(path)
            if key is None:
                private = ec.generate_private_key(CURVE)
                statefile.write_private(path, _to_pem(private))
                key = cls(private)
        return key

    @classmethod
    def _read(cls, path: Path) -> Self | None:
        data = statefile.read_private(path)
        if data is None:
            return None
        try:
            private = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise statefile.damaged(path, "it holds no private key") from error
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.curve.name != CURVE.name:
            raise statefile.damaged(path, "its key is not on the curve P-256")
        return cls(private)

    def sign(self, label: str, digest: bytes) -> bytes:
        """Return the 64-byte signature r || s over `digest` for the use named by `label`; the same input gives the same signature."""
        return sign_with(self._private, label, digest)

    def __repr__(self) -> str:
        return f"IdentityKey({self.device_id})"


def _to_pem(private: ec.EllipticCurvePrivateKey) -> bytes:
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def sign_with(private: ec.EllipticCurvePrivateKey, label: str, digest: bytes) -> bytes:
    """Return the 64-byte signature r || s with this key: ECDSA P-256, SHA-256, deterministic (RFC 6979)."""
    r, s = decode_dss_signature(private.sign(_signed_message(label, digest), _SIGNING))
    return r.to_bytes(SCALAR_LENGTH) + s.to_bytes(SCALAR_LENGTH)


def verify(public: bytes, label: str, digest: bytes, signature: bytes) -> None:
    """Return when `signature` (64 bytes) over `digest` for `label` is by this key; RemoteProtocolError otherwise."""
    key = decode_point(public)
    if len(signature) != SIGNATURE_LENGTH:
        raise RemoteProtocolError(f"a signature has {SIGNATURE_LENGTH} bytes, not {len(signature)}")
    r, s = int.from_bytes(signature[:SCALAR_LENGTH]), int.from_bytes(signature[SCALAR_LENGTH:])
    try:
        key.verify(encode_dss_signature(r, s), _signed_message(label, digest), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise RemoteProtocolError(f"the signature {label!r} does not verify") from error


def decode_point(data: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of an uncompressed point: exactly 65 bytes, the first 04, on the curve; RemoteProtocolError otherwise.

    The library also reads the compressed form, which would give one key two device IDs: so length and first byte are checked here.
    """
    if len(data) != POINT_LENGTH or data[0] != UNCOMPRESSED:
        raise RemoteProtocolError("a public key is an uncompressed point of 65 bytes")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(CURVE, bytes(data))
    except ValueError as error:
        raise RemoteProtocolError("a public key is not on the curve P-256") from error


def encode_point(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return the public key as an uncompressed point, 65 bytes."""
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


def ecdh(private: ec.EllipticCurvePrivateKey, public: bytes) -> bytes:
    """Return the 32-byte shared secret (the x coordinate) with the point `public`; RemoteProtocolError when that is no point."""
    return private.exchange(ec.ECDH(), decode_point(public))


def _signed_message(label: str, digest: bytes) -> bytes:
    return SIGNATURE_PADDING + label.encode("ascii") + b"\x00" + digest


def _signing_algorithm() -> ec.ECDSA:
    try:
        return ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    except UnsupportedAlgorithm:  # OpenSSL before 3.2: the signature then takes its nonce from the system's randomness
        return ec.ECDSA(hashes.SHA256())


_SIGNING: Final = _signing_algorithm()

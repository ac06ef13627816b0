"""The relay's two certificates: a root that every link pins and a 90-day leaf that signs handshakes.

Profile: docs/spec/hop-handshake.md section 6. A relay is known by its root key alone: its address may change, its leaf rotates
without anybody noticing.
"""

import hashlib
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from tuunel.errors import Failure, Reason

SUBJECT_NAME: Final = "relay.tuunel"  #: the one DNS name in every leaf: what counts is the pinned root, not where the relay lives
DAY: Final = 86400
LEAF_LIFETIME: Final = 90 * DAY
RENEW_BEFORE: Final = 30 * DAY
NOT_VALID_NOW: Final = "its certificate is not valid at this time"  #: the detail of the failure that a wrong clock causes
CLOCK_SKEW: Final = DAY  #: a leaf is valid from a day before it was made: a device's clock may be behind
NO_EXPIRY: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  #: RFC 5280 section 4.1.2.5: no well-defined expiry
#: What the library raises for certificates that it cannot read, some parts of which it reads only when they are asked for.
_UNREADABLE: Final = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, CryptographyDeprecationWarning)
MAX_CHAIN: Final = 4  #: certificates; a chain of version 1 has two
MAX_GOOD: Final = 16  #: verified chains that are remembered: those of as many relays


@dataclass(frozen=True, slots=True)
class RelayCredentials:
    """What the relay proves itself with: the leaf's key, the chain to send (DER, leaf first, root last), and when the leaf ends."""

    leaf_key: ec.EllipticCurvePrivateKey = field(repr=False)
    chain: tuple[bytes, ...]
    relay_id: bytes
    not_after: int

    def needs_renewal(self, now: int) -> bool:
        """Whether fewer than 30 of the leaf's 90 days are left. `now` in Unix seconds."""
        return self.not_after - now < RENEW_BEFORE


@dataclass(frozen=True, slots=True)
class RelayRoot:
    """The relay's root key and its self-signed certificate. Keep the key: a new one is a new relay to every link."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @property
    def relay_id(self) -> bytes:
        """The 32 bytes that links pin."""
        return fingerprint(self.certificate)

    @classmethod
    def from_certificate(cls, key: ec.EllipticCurvePrivateKey, certificate_der: bytes) -> Self:
        """The root of a stored key and certificate; ValueError when they do not belong together."""
        certificate = x509.load_der_x509_certificate(certificate_der)
        if certificate.public_key() != key.public_key():
            raise ValueError("the root certificate is not of the root key")
        return cls(key, certificate)


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate's SubjectPublicKeyInfo in DER: of the root, this is the relay's id and what links pin."""
    return hashlib.sha256(_public_key_info(certificate.public_key())).digest()


def make_root(key: ec.EllipticCurvePrivateKey, now: int) -> RelayRoot:
    """A self-signed root for `key` (P-256) that never expires: changing it would break every link."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tuunel relay root")])
    builder = _start(name, name, key.public_key(), now, NO_EXPIRY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return RelayRoot(key, builder.sign(key, hashes.SHA256()))


def make_leaf(root: RelayRoot, key: ec.EllipticCurvePrivateKey, now: int) -> RelayCredentials:
    """A leaf for `key` (P-256), valid for 90 days from `now` (Unix seconds)."""
    not_after = now + LEAF_LIFETIME
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tuunel relay")])
    builder = _start(name, root.certificate.subject, key.public_key(), now, datetime.fromtimestamp(not_after, UTC))
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(SUBJECT_NAME)]), critical=False)
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key())
    leaf = builder.add_extension(issuer_key, critical=False).sign(root.key, hashes.SHA256())
    chain = tuple(certificate.public_bytes(serialization.Encoding.DER) for certificate in (leaf, root.certificate))
    return RelayCredentials(key, chain, root.relay_id, not_after)


def _start(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, now: int, not_after: datetime
) -> x509.CertificateBuilder:
    # A serial number from the key and the time: unique for one root, and the caller's randomness stays the only one.
    digest = hashlib.sha256(_public_key_info(public_key) + now.to_bytes(8)).digest()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(int.from_bytes(digest[:16]) >> 1 | 1)
        .not_valid_before(datetime.fromtimestamp(now - CLOCK_SKEW, UTC))
        .not_valid_after(not_after)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _public_key_info(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("a relay's keys are on the curve P-256")
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True)
class _Good:
    """What a chain that has been verified comes to: its leaf's key, and the time in which every certificate in it is valid."""

    key: ec.EllipticCurvePublicKey
    valid_from: datetime
    valid_until: datetime


_good: Final[dict[tuple[tuple[bytes, ...], bytes], _Good]] = {}  # by chain and pin


def verify_chain(chain: tuple[bytes, ...], pin: bytes, now: int) -> ec.EllipticCurvePublicKey:
    """The leaf's public key, when `chain` (DER, leaf first, root last) leads to the root that `pin` names and is valid at `now`.

    Everything else is Failure(RELAY_UNTRUSTED), whose detail says what is wrong. A relay shows the same bytes to each connection: of a
    chain that was good under this pin nothing can change but whether it is valid now, so that alone is asked anew.
    """
    moment = datetime.fromtimestamp(now, UTC)
    good = _good.get((chain, pin))
    if good is None or not good.valid_from < moment < good.valid_until:
        good = _verify_anew(chain, pin, moment)
        if len(_good) >= MAX_GOOD:
            _good.clear()
        _good[chain, pin] = good
    return good.key


def _verify_anew(chain: tuple[bytes, ...], pin: bytes, moment: datetime) -> _Good:
    if not 2 <= len(chain) <= MAX_CHAIN:
        raise _untrusted("its certificate chain has no leaf and root")
    try:
        leaf, *between, root = certificates = [_parse(certificate) for certificate in chain]
        pinned, key = fingerprint(root) == pin, leaf.public_key()
        current = leaf.not_valid_before_utc <= moment <= leaf.not_valid_after_utc
    except _UNREADABLE:
        raise _untrusted("its certificates cannot be read") from None
    if not pinned:
        raise _untrusted("its root key is not the one that is pinned")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _untrusted("its certificate is not of a P-256 key")
    if not current:
        raise _untrusted(NOT_VALID_NOW, advice="set this machine's clock right, then try again")
    policy = PolicyBuilder().store(Store([root])).time(moment).max_chain_depth(MAX_CHAIN - 2)
    try:
        policy.build_server_verifier(x509.DNSName(SUBJECT_NAME)).verify(leaf, between)
    except VerificationError:
        raise _untrusted("its certificate was not issued by the pinned root for a relay") from None
    except _UNREADABLE:  # names and extensions
        raise _untrusted("its certificates cannot be read") from None
    begins, ends = max(each.not_valid_before_utc for each in certificates), min(each.not_valid_after_utc for each in certificates)
    return _Good(key, begins, ends)


def _parse(certificate: bytes) -> x509.Certificate:
    with warnings.catch_warnings():
        # What the library tolerates with a warning (a negative serial number) no relay of ours sends.
        warnings.simplefilter("error", CryptographyDeprecationWarning)
        return x509.load_der_x509_certificate(certificate)


def _untrusted(detail: str, advice: str = "") -> Failure:
    return Failure(Reason.RELAY_UNTRUSTED, detail=detail, advice=advice)

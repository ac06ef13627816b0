"""The relay's certificates: known by the root key alone, everything else about a chain that is wrong is RELAY_UNTRUSTED."""

from contextlib import suppress
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from tests.relay.hops import CREDENTIALS, NOW, OTHER_ROOT, ROOT, key
from tuunel.errors import Failure, Reason
from tuunel.relay import certificates
from tuunel.relay.certificates import (
    DAY,
    LEAF_LIFETIME,
    MAX_CHAIN,
    MAX_GOOD,
    NOT_VALID_NOW,
    RENEW_BEFORE,
    SUBJECT_NAME,
    RelayCredentials,
    RelayRoot,
    make_leaf,
    make_root,
    verify_chain,
)
from tuunel.relay.handshake_wire import CHAIN_CEILING

LEAF = CREDENTIALS.chain[0]


def untrusted(chain: tuple[bytes, ...], pin: bytes = ROOT.relay_id, now: int = NOW) -> str:
    with pytest.raises(Failure) as caught:
        verify_chain(chain, pin, now)
    assert caught.value.reason is Reason.RELAY_UNTRUSTED
    return caught.value.detail


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def leaf(*, name: str = SUBJECT_NAME, issuer: bool = True, ca: bool = False, usage=ExtendedKeyUsageOID.SERVER_AUTH, public=None) -> bytes:
    """A leaf that the real root has signed, with one thing about it changed."""
    public = public or key(7).public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")]))
        .issuer_name(ROOT.certificate.subject)
        .public_key(public)
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(NOW - DAY, UTC))
        .not_valid_after(datetime.fromtimestamp(NOW + DAY, UTC))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
    )
    if issuer:
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ROOT.key.public_key()), critical=False)
    return der(builder.sign(ROOT.key, hashes.SHA256()))


def test_a_good_chain_gives_the_leafs_key() -> None:
    assert verify_chain(CREDENTIALS.chain, ROOT.relay_id, NOW) == CREDENTIALS.leaf_key.public_key()
    assert verify_chain((leaf(), CREDENTIALS.chain[1]), ROOT.relay_id, NOW) == key(7).public_key()


def test_the_relay_id_is_the_hash_of_the_roots_public_key_info() -> None:
    info = ROOT.key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(info)
    assert ROOT.relay_id == CREDENTIALS.relay_id == digest.finalize()


def test_a_new_leaf_and_a_new_root_certificate_of_the_same_key_keep_the_pin() -> None:
    later = NOW + 80 * DAY
    again = make_root(ROOT.key, later)
    credentials = make_leaf(again, key(8), later)
    assert credentials.relay_id == ROOT.relay_id
    assert verify_chain(credentials.chain, ROOT.relay_id, later) == key(8).public_key()


@pytest.mark.parametrize(
    ("chain", "detail"),
    [
        pytest.param((leaf(name="relay.example.net"), CREDENTIALS.chain[1]), "not issued by the pinned root for a relay", id="SAN"),
        pytest.param((leaf(usage=ExtendedKeyUsageOID.CLIENT_AUTH), CREDENTIALS.chain[1]), "for a relay", id="usage"),
        pytest.param((leaf(issuer=False), CREDENTIALS.chain[1]), "for a relay", id="no AuthorityKeyIdentifier"),
        pytest.param((leaf(ca=True), CREDENTIALS.chain[1]), "for a relay", id="a CA as leaf"),
        pytest.param((make_leaf(OTHER_ROOT, key(7), NOW).chain[0], CREDENTIALS.chain[1]), "for a relay", id="another root's leaf"),
        pytest.param(make_leaf(OTHER_ROOT, key(7), NOW).chain, "not the one that is pinned", id="another root"),
        pytest.param((leaf(public=ec.derive_private_key(3, ec.SECP384R1()).public_key()), CREDENTIALS.chain[1]), "P-256", id="curve"),
        pytest.param((CREDENTIALS.chain[1], LEAF), "not the one that is pinned", id="wrong order"),
        pytest.param((LEAF,), "no leaf and root", id="leaf alone"),
        pytest.param((CREDENTIALS.chain[1],), "no leaf and root", id="root alone"),
        pytest.param((), "no leaf and root", id="nothing"),
        pytest.param((LEAF, *[CREDENTIALS.chain[1]] * MAX_CHAIN), "no leaf and root", id="too many"),
        pytest.param((b"", CREDENTIALS.chain[1]), "cannot be read", id="empty"),
    ],
)
def test_every_other_chain_is_untrusted(chain: tuple[bytes, ...], detail: str) -> None:
    assert detail in untrusted(chain)


def through_an_intermediate(*, ends: int) -> tuple[bytes, ...]:
    """A leaf that the root has not signed itself, but somebody whom it lets sign until `ends`."""
    between, name = key(9), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "between")])
    issued = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(ROOT.certificate.subject)
        .public_key(between.public_key())
        .serial_number(2)
        .not_valid_before(datetime.fromtimestamp(NOW - 3 * DAY, UTC))
        .not_valid_after(datetime.fromtimestamp(ends, UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ROOT.key.public_key()), critical=False)
        .add_extension(ROOT.certificate.extensions.get_extension_for_class(x509.KeyUsage).value, critical=True)
        .sign(ROOT.key, hashes.SHA256())
    )
    return (make_leaf(RelayRoot(between, issued), key(7), NOW - 2 * DAY).chain[0], der(issued), CREDENTIALS.chain[1])


def test_an_intermediate_that_has_ended_issues_nothing() -> None:
    assert verify_chain(through_an_intermediate(ends=NOW + DAY), ROOT.relay_id, NOW) == key(7).public_key()
    assert "not issued by the pinned root" in untrusted(through_an_intermediate(ends=NOW - DAY))


def test_a_chain_that_was_good_is_good_for_its_time_and_its_pin_only() -> None:
    chain = through_an_intermediate(ends=NOW + DAY)
    for _ in range(2):
        assert verify_chain(chain, ROOT.relay_id, NOW) == key(7).public_key()
    assert "not issued by the pinned root" in untrusted(chain, now=NOW + DAY + 1)
    assert NOT_VALID_NOW in untrusted(chain, now=NOW + 91 * DAY)
    assert "not the one that is pinned" in untrusted(chain, OTHER_ROOT.relay_id)
    assert "cannot be read" in untrusted((*chain[:-1], chain[-1] + b"\0"))
    assert verify_chain(chain, ROOT.relay_id, NOW) == key(7).public_key()


def test_few_good_chains_are_remembered() -> None:
    for number in range(MAX_GOOD + 1):
        verify_chain(make_leaf(ROOT, key(number + 1), NOW).chain, ROOT.relay_id, NOW)
    assert len(certificates._good) <= MAX_GOOD


def test_an_rsa_leaf_is_untrusted() -> None:
    public = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    assert "P-256" in untrusted((leaf(public=public), CREDENTIALS.chain[1]))


def test_a_root_that_a_leaf_has_signed_is_no_way_around_the_pin() -> None:
    """The leaf's holder cannot make leaves of its own: it is no authority."""
    below = make_leaf(RelayRoot(CREDENTIALS.leaf_key, x509.load_der_x509_certificate(LEAF)), key(7), NOW).chain[0]
    assert "for a relay" in untrusted((below, LEAF, CREDENTIALS.chain[1]))


@pytest.mark.parametrize(
    ("now", "valid"), [(NOW - DAY - 1, False), (NOW - DAY, True), (NOW + LEAF_LIFETIME, True), (NOW + LEAF_LIFETIME + 1, False)]
)
def test_a_leaf_is_valid_from_a_day_before_to_ninety_after(now: int, valid: bool) -> None:
    if valid:
        verify_chain(CREDENTIALS.chain, ROOT.relay_id, now)
    else:
        assert "not valid at this time" in untrusted(CREDENTIALS.chain, now=now)


def test_a_leaf_is_renewed_when_less_than_thirty_days_are_left() -> None:
    assert not CREDENTIALS.needs_renewal(NOW + LEAF_LIFETIME - RENEW_BEFORE)
    assert CREDENTIALS.needs_renewal(NOW + LEAF_LIFETIME - RENEW_BEFORE + 1)


def test_a_chain_is_far_below_its_ceiling() -> None:
    assert sum(map(len, CREDENTIALS.chain)) < CHAIN_CEILING // 4


def test_a_stored_root_is_read_again_and_a_foreign_key_is_noticed() -> None:
    assert RelayRoot.from_certificate(ROOT.key, CREDENTIALS.chain[1]).relay_id == ROOT.relay_id
    with pytest.raises(ValueError, match="not of the root key"):
        RelayRoot.from_certificate(key(1), CREDENTIALS.chain[1])


def test_private_keys_are_not_shown() -> None:
    for owner in (ROOT, CREDENTIALS):
        assert "PrivateKey" not in repr(owner)
    assert isinstance(CREDENTIALS, RelayCredentials)


@given(st.data())
def test_any_flipped_bit_of_what_the_root_has_signed_is_untrusted(data: st.DataObject) -> None:
    start = LEAF.index(x509.load_der_x509_certificate(LEAF).tbs_certificate_bytes)
    end = start + len(x509.load_der_x509_certificate(LEAF).tbs_certificate_bytes)
    untrusted((flipped(LEAF, data.draw(st.integers(start * 8, end * 8 - 1))), CREDENTIALS.chain[1]))


@given(st.data())
def test_a_root_counts_by_its_key_alone(data: st.DataObject) -> None:
    root = flipped(CREDENTIALS.chain[1], data.draw(st.integers(0, len(CREDENTIALS.chain[1]) * 8 - 1)))
    with suppress(Failure):
        assert verify_chain((LEAF, root), ROOT.relay_id, NOW) == CREDENTIALS.leaf_key.public_key()


def flipped(certificate: bytes, bit: int) -> bytes:
    spoilt = bytearray(certificate)
    spoilt[bit // 8] ^= 1 << bit % 8
    return bytes(spoilt)


@pytest.mark.parametrize("at", [0, 1], ids=["leaf", "root"])
def test_a_name_that_is_no_text_is_untrusted(at: int) -> None:
    chain = list(CREDENTIALS.chain)
    chain[at] = chain[at].replace(b"\x0c", b"\x16", 1).replace(b"tuunel", b"\xff" * 6)
    assert untrusted(tuple(chain))


def test_a_serial_number_that_the_library_only_warns_about_is_untrusted() -> None:
    serial = x509.load_der_x509_certificate(LEAF).serial_number.to_bytes(16)
    negative = LEAF.replace(serial, b"\x80" + serial[1:])
    assert "cannot be read" in untrusted((negative, CREDENTIALS.chain[1]))


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_arbitrary_bytes_are_untrusted(chain: list[bytes]) -> None:
    untrusted(tuple(chain))

"""A device ID names one key and tells a typo; a signature is for one label; a key file is private."""

import contextlib
import hashlib
import hmac
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from tuunel import statefile
from tuunel.errors import RemoteProtocolError, StateError, UsageError
from tuunel.identity import DeviceID, IdentityKey, decode_point, ecdh, encode_point, sign_with, verify

VECTORS = json.loads((Path(__file__).parent / "vectors" / "identity.json").read_text())
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
FIELD = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
LABEL = "tuunel/1 device auth"
LOADER = """
import pathlib, sys
from tuunel.identity import IdentityKey
print(flush=True)
print(IdentityKey.load_or_create(pathlib.Path(sys.argv[1])).device_id)
"""
DIGEST = hashlib.sha256(b"transcript").digest()


def rfc_6979(private: int, message: bytes) -> bytes:
    """A second implementation: deterministic ECDSA from RFC 6979 section 3.2, r || s."""
    digest = hashlib.sha256(message).digest()
    h1 = (int.from_bytes(digest, "big") % ORDER).to_bytes(32, "big")
    seed = private.to_bytes(32, "big") + h1
    v, k = b"\x01" * 32, bytes(32)
    for step in (b"\x00", b"\x01"):
        k = hmac.digest(k, v + step + seed, "sha256")
        v = hmac.digest(k, v, "sha256")
    nonce = int.from_bytes(hmac.digest(k, v, "sha256"), "big")  # the first candidate is in range but for a chance of 2**-32
    assert 0 < nonce < ORDER
    r = ec.derive_private_key(nonce, ec.SECP256R1()).public_key().public_numbers().x % ORDER
    s = pow(nonce, -1, ORDER) * (int.from_bytes(digest, "big") + r * private) % ORDER
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@pytest.fixture(scope="module")
def key() -> IdentityKey:
    return IdentityKey.from_private_value(0xC0FFEE)


# device IDs


@pytest.mark.parametrize("case", VECTORS["devices"])
def test_device_ids_are_frozen(case):
    key = IdentityKey.from_private_value(int(case["private"], 16))
    assert key.public_bytes.hex() == case["public"]
    assert key.device_id.raw.hex() == case["raw"]
    assert str(key.device_id) == case["text"]
    assert key.device_id.compact == case["compact"]
    assert DeviceID.from_public_key(key.public_bytes) == key.device_id


@pytest.mark.parametrize("case", VECTORS["devices"])
def test_a_device_id_is_what_the_spec_says(case):
    h22 = hashlib.sha256(b"tuunel/1 device id\0" + bytes.fromhex(case["public"])).digest()[:22]
    c2 = hashlib.sha256(b"tuunel/1 device id checksum\0" + h22 + b"\x01").digest()[:2]
    assert (h22 + c2 + b"\x01").hex() == case["raw"]


def test_the_shown_form_is_one_dns_label(key):
    assert len(str(key.device_id)) == 47
    assert [len(group) for group in str(key.device_id).split("-")] == [5] * 8
    assert len(key.device_id.compact) == 40


def test_both_spellings_in_any_case_name_the_same_device(key):
    for text in (str(key.device_id), key.device_id.compact):
        for spelling in (text, text.upper(), f"  {text}\n"):
            assert DeviceID.parse(spelling) == key.device_id
            assert hash(DeviceID.parse(spelling)) == hash(key.device_id)


@given(st.integers(0, 39), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_any_single_wrong_character_is_told(place, letter):
    good = VECTORS["devices"][0]["compact"]
    if good[place] != letter:
        with pytest.raises(UsageError):
            DeviceID.parse(good[:place] + letter + good[place + 1 :])


def test_a_typo_is_told_as_a_typo(key):
    good = key.device_id.compact
    swapped = good[1] + good[0] + good[2:]
    for text, word in (
        (swapped, "typo"),
        (good[:-1], "39 characters"),
        (good + "a", "41 characters"),
        ("0" + good[1:], "'0'"),
        ("", "0 characters"),
    ):
        with pytest.raises(UsageError, match=word):
            DeviceID.parse(text)


@given(st.text(max_size=80))
def test_no_text_is_more_than_a_usage_error(text):
    with contextlib.suppress(UsageError):
        assert DeviceID.parse(text).compact == text.strip().lower().replace("-", "")


def test_dashes_stand_between_groups_or_nowhere(key):
    text = str(key.device_id)
    for bad in (text.replace("-", "", 1), "-" + key.device_id.compact, text + "-", text.replace("-", "--")):
        with pytest.raises(UsageError):
            DeviceID.parse(bad)


def test_an_id_that_was_not_copied_whole_is_told_so_in_either_spelling(key):
    for text in (str(key.device_id), key.device_id.compact):
        for bad, length in ((text[:-2], 38), (text + "a", 41)):
            with pytest.raises(UsageError, match=f"{length} characters, not 40"):
                DeviceID.parse(bad)


def test_another_version_is_told_as_such(key):
    body = key.device_id.raw[:22]
    checksum = hashlib.sha256(b"tuunel/1 device id checksum\0" + body + b"\x02").digest()[:2]
    with pytest.raises(UsageError, match="version 2"):
        DeviceID(body + checksum + b"\x02")


@pytest.mark.parametrize("length", [0, 24, 26])
def test_a_device_id_has_25_bytes(length):
    with pytest.raises(UsageError, match="has 25 bytes"):
        DeviceID(bytes(length))


# signatures


def test_the_second_implementation_gives_the_answers_of_rfc_6979():
    for case in VECTORS["rfc6979"]["cases"]:
        private = int(VECTORS["rfc6979"]["private"], 16)
        assert rfc_6979(private, case["message"].encode()).hex() == case["signature"]


@pytest.mark.parametrize("case", VECTORS["devices"])
def test_signatures_are_deterministic_and_cover_padding_label_and_digest(case):
    key = IdentityKey.from_private_value(int(case["private"], 16))
    digest = bytes.fromhex(case["digest"])
    message = b" " * 64 + case["label"].encode() + b"\0" + digest
    assert key.sign(case["label"], digest).hex() == case["signature"]
    assert rfc_6979(int(case["private"], 16), message).hex() == case["signature"]
    verify(key.public_bytes, case["label"], digest, bytes.fromhex(case["signature"]))


def test_the_relays_leaf_signs_the_same_way(key):
    private = ec.derive_private_key(0xC0FFEE, ec.SECP256R1())
    assert sign_with(private, LABEL, DIGEST) == key.sign(LABEL, DIGEST)
    r, s = decode_dss_signature(
        private.sign(b" " * 64 + LABEL.encode() + b"\0" + DIGEST, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    )
    assert r.to_bytes(32, "big") + s.to_bytes(32, "big") == key.sign(LABEL, DIGEST)


def test_a_signature_is_for_one_label_one_digest_and_one_key(key):
    signature = key.sign(LABEL, DIGEST)
    other = IdentityKey.from_private_value(2)
    for public, label, digest in (
        (key.public_bytes, "tuunel/1 e2e offer", DIGEST),
        (key.public_bytes, LABEL, DIGEST[::-1]),
        (other.public_bytes, LABEL, DIGEST),
    ):
        with pytest.raises(RemoteProtocolError):
            verify(public, label, digest, signature)


@given(st.integers(0, 511))
def test_any_flipped_bit_of_a_signature_is_refused(bit):
    key = IdentityKey.from_private_value(0xC0FFEE)
    wrong = (int.from_bytes(key.sign(LABEL, DIGEST), "big") ^ (1 << bit)).to_bytes(64, "big")
    with pytest.raises(RemoteProtocolError):
        verify(key.public_bytes, LABEL, DIGEST, wrong)


@pytest.mark.parametrize("signature", [b"", bytes(64), b"\xff" * 64, bytes(63), bytes(65), ORDER.to_bytes(32, "big") * 2])
def test_what_is_no_signature_is_refused(key, signature):
    with pytest.raises(RemoteProtocolError):
        verify(key.public_bytes, LABEL, DIGEST, signature)


def test_a_signature_has_one_encoding(key):
    signature = key.sign(LABEL, DIGEST)
    with pytest.raises(RemoteProtocolError):
        verify(key.public_bytes, LABEL, DIGEST, signature[:32] + b"\0" + signature[32:])


# points


def test_points_are_uncompressed_and_on_the_curve(key):
    assert encode_point(decode_point(key.public_bytes)) == key.public_bytes
    x, y = key.public_bytes[1:33], key.public_bytes[33:]
    compressed = decode_point(key.public_bytes).public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    off_curve = b"\x04" + x + ((int.from_bytes(y, "big") + 1) % FIELD).to_bytes(32, "big")
    hybrid = bytes((6 + (y[-1] & 1),)) + x + y
    too_big = b"\x04" + FIELD.to_bytes(32, "big") + y
    for bad in (compressed, hybrid, off_curve, too_big, b"", b"\0", b"\x04" + bytes(64), key.public_bytes + b"\0", key.public_bytes[:-1]):
        with pytest.raises(RemoteProtocolError):
            decode_point(bad)
        with pytest.raises(RemoteProtocolError):
            ecdh(ec.derive_private_key(5, ec.SECP256R1()), bad)
        with pytest.raises(RemoteProtocolError):
            verify(bad, LABEL, DIGEST, key.sign(LABEL, DIGEST))


def test_both_sides_agree_on_the_x_coordinate():
    one, two = (ec.derive_private_key(value, ec.SECP256R1()) for value in (3, 5))
    product = ec.derive_private_key(15, ec.SECP256R1()).public_key().public_numbers().x
    assert ecdh(one, encode_point(two.public_key())) == ecdh(two, encode_point(one.public_key())) == product.to_bytes(32, "big")


def test_a_key_of_another_curve_is_no_identity():
    with pytest.raises(ValueError):
        IdentityKey(ec.generate_private_key(ec.SECP384R1()))


# key files


def test_the_key_is_made_once_and_is_private(tmp_path):
    path = tmp_path / "identity.pem"
    key = IdentityKey.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for again in (IdentityKey.load_or_create(path), IdentityKey.load(path)):
        assert again.device_id == key.device_id
        assert again.sign(LABEL, DIGEST) == key.sign(LABEL, DIGEST)


def test_openssl_reads_the_file_as_it_is(tmp_path):
    IdentityKey.load_or_create(tmp_path / "identity.pem")
    assert (tmp_path / "identity.pem").read_text().startswith("-----BEGIN PRIVATE KEY-----\n")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_key_that_others_can_open_is_refused_with_the_remedy(tmp_path, mode):
    path = tmp_path / "identity.pem"
    IdentityKey.load_or_create(path)
    path.chmod(mode)
    for read in (IdentityKey.load, IdentityKey.load_or_create):
        with pytest.raises(StateError) as caught:
            read(path)
        assert caught.value.advice == f"chmod 600 '{path}'"


def test_a_missing_key_is_told(tmp_path):
    with pytest.raises(StateError, match="no identity yet"):
        IdentityKey.load(tmp_path / "identity.pem")


def other_kinds() -> list[bytes]:
    keys = (ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    locked = keys[0].private_bytes(*form, serialization.BestAvailableEncryption(b"secret"))
    return [b"", b"garbage", *(key.private_bytes(*form, serialization.NoEncryption()) for key in keys), locked]


@pytest.mark.parametrize("content", other_kinds(), ids=["empty", "garbage", "p384", "ed25519", "encrypted"])
def test_a_damaged_key_is_never_replaced(tmp_path, content):
    path = tmp_path / "identity.pem"
    statefile.write_private(path, content)
    for read in (IdentityKey.load, IdentityKey.load_or_create):
        with pytest.raises(StateError, match="damaged"):
            read(path)
    assert path.read_bytes() == content


def test_processes_that_start_together_get_one_identity(tmp_path):
    path = tmp_path / "identity.pem"
    with statefile.locked(path):
        started = [subprocess.Popen([sys.executable, "-c", LOADER, path], stdout=subprocess.PIPE, text=True) for _ in range(3)]
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
    ids = {process.communicate(timeout=30)[0].strip() for process in started}
    assert ids == {str(IdentityKey.load(path).device_id)}


def test_an_identity_shows_its_device_id_and_nothing_else(key):
    assert repr(key) == f"IdentityKey({key.device_id})"
    assert f"{0xC0FFEE:x}" not in repr(key)


def test_every_new_identity_is_another_one():
    assert IdentityKey.generate().device_id != IdentityKey.generate().device_id


def test_a_directory_that_cannot_be_written_is_a_state_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError):
        IdentityKey.load_or_create(tmp_path / "file" / "identity.pem")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]

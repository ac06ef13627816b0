"""The key schedule's steps give the published answers, and the same ones as another implementation."""

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from tests.test_identity import VECTORS
from tuunel.hkdf import MAX_CONTEXT, MAX_LABEL, MAX_OUTPUT, AeadKey, aead_key, expand, expand_label, extract


@pytest.mark.parametrize("case", VECTORS["rfc5869"])
def test_rfc_5869_known_answers(case):
    prk = extract(bytes.fromhex(case["salt"]), bytes.fromhex(case["ikm"]))
    assert prk.hex() == case["prk"]
    assert expand(prk, bytes.fromhex(case["info"]), case["length"]).hex() == case["okm"]


@pytest.mark.parametrize("case", VECTORS["expand_label"])
def test_labelled_expansion_is_frozen(case):
    secret, context = bytes.fromhex(case["secret"]), bytes.fromhex(case["context"])
    assert expand_label(secret, case["label"], context, case["length"]).hex() == case["output"]


@given(st.binary(min_size=16, max_size=64), st.text("abc xyz", min_size=1, max_size=40), st.binary(max_size=255), st.integers(1, 300))
def test_labelled_expansion_agrees_with_the_library_over_the_layout_of_tls_1_3(secret, label, context, length):
    name = b"tuunel1 " + label.encode()
    info = length.to_bytes(2, "big") + len(name).to_bytes(1, "big") + name + len(context).to_bytes(1, "big") + context
    assert expand_label(secret, label, context, length) == HKDFExpand(hashes.SHA256(), length, info).derive(secret)


def test_an_aead_key_is_one_expansion_of_44_bytes():
    case = VECTORS["aead_key"]
    key = aead_key(bytes.fromhex(case["secret"]), case["label"], bytes.fromhex(case["context"]))
    assert (key.key.hex(), key.iv.hex()) == (case["key"], case["iv"])
    material = expand_label(bytes.fromhex(case["secret"]), case["label"], bytes.fromhex(case["context"]), 44)
    assert key.key + key.iv == material


def test_nonces_are_the_iv_xor_the_sequence_number():
    case = VECTORS["aead_key"]
    key = AeadKey(bytes.fromhex(case["key"]), bytes.fromhex(case["iv"]))
    assert key.nonce(0) == key.iv
    for seq, nonce in case["nonces"].items():
        assert key.nonce(int(seq)).hex() == nonce
        assert bytes(a ^ b for a, b in zip(key.nonce(int(seq)), key.iv, strict=True)) == bytes(4) + int(seq).to_bytes(8, "big")


def test_a_sequence_number_never_wraps():
    with pytest.raises(OverflowError):
        AeadKey(bytes(32), bytes(12)).nonce(2**64)


def test_an_aead_key_masks_itself():
    key = AeadKey(b"k" * 32, b"i" * 12)
    assert "kkk" not in repr(key)
    assert "iii" not in str(key)


@pytest.mark.parametrize(("key", "iv"), [(bytes(31), bytes(12)), (bytes(32), bytes(11)), (b"", b"")])
def test_an_aead_key_has_its_size(key, iv):
    with pytest.raises(ValueError):
        AeadKey(key, iv)


def test_what_does_not_fit_its_length_byte_is_refused():
    expand_label(bytes(32), "x" * MAX_LABEL, bytes(MAX_CONTEXT))
    for label, context in (("x" * (MAX_LABEL + 1), b""), ("x", bytes(MAX_CONTEXT + 1)), ("", b""), ("ä", b"")):
        with pytest.raises(ValueError):
            expand_label(bytes(32), label, context)


def test_the_output_has_a_ceiling():
    assert len(expand(bytes(32), b"", MAX_OUTPUT)) == MAX_OUTPUT
    for length in (0, MAX_OUTPUT + 1):
        with pytest.raises(ValueError):
            expand(bytes(32), b"", length)

"""Published answers, asked of tuunel's own functions and not of the library below them: a wrong call of a right library fails here.

Each file in tests/vectors/ names its source.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from tests import chacha
from tests.e2e.tunnels import AGENT, NOW, RELAY_ID, Handshake, Stream, private_point
from tests.test_identity import VECTORS as IDENTITY
from tuunel import hkdf, identity
from tuunel.e2e import handshake, keyschedule, records
from tuunel.e2e.offer import check_offer, make_offer
from tuunel.e2e.wire import Direction, Purpose, RecordType
from tuunel.errors import LocalProtocolError, RemoteProtocolError
from tuunel.identity import IdentityKey, decode_point, ecdh, encode_point, verify

FOLDER = Path(__file__).parent / "vectors"
E2E = json.loads((FOLDER / "e2e.json").read_text())
COMPRESSED = (b"\x02", b"\x03")


def load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FOLDER / name).read_text())
    assert document["source"]
    return document


def each(name: str, part: str = "cases") -> Any:
    cases = load(name)[part]
    assert cases
    return pytest.mark.parametrize("case", cases, ids=[str(case["id"]) for case in cases])


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


# HKDF


@each("wycheproof_hkdf_sha256.json")
def test_hkdf_gives_the_known_answers(case: dict[str, Any]) -> None:
    prk = hkdf.extract(unhex(case["salt"]), unhex(case["ikm"]))
    if not case["valid"]:
        with pytest.raises(ValueError, match="HKDF-Expand"):
            hkdf.expand(prk, unhex(case["info"]), case["size"])
        return
    assert hkdf.expand(prk, unhex(case["info"]), case["size"]).hex() == case["okm"]


@pytest.mark.parametrize("case", IDENTITY["rfc5869"])
def test_labelled_expansion_is_the_known_expansion_of_its_layout(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The info of the RFC in place of the layout: nothing but RFC 5869 is then between `expand_label` and its answer."""
    expand = hkdf.expand
    monkeypatch.setattr(hkdf, "expand", lambda secret, _info, length: expand(secret, unhex(case["info"]), length))
    assert hkdf.expand_label(unhex(case["prk"]), "any", length=case["length"]).hex() == case["okm"]


# ECDSA: the vectors sign bare messages, so the padding and the label before ours are left away


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_signed_message", lambda _label, message: message)


@pytest.mark.usefixtures("bare")
@each("wycheproof_ecdsa_p256.json")
def test_signatures_are_accepted_and_refused_as_known(case: dict[str, Any]) -> None:
    arguments = (unhex(case["public"]), "", unhex(case["msg"]), unhex(case["sig"]))
    if case["valid"]:
        verify(*arguments)
        return
    with pytest.raises(RemoteProtocolError):
        verify(*arguments)


@pytest.mark.usefixtures("bare")
def test_one_signature_has_one_encoding() -> None:
    """The same numbers with a zero more, or a zero less, are another text of a signature, and no text of one but 64 bytes is taken."""
    for case in load("wycheproof_ecdsa_p256.json")["cases"]:
        signature = unhex(case["sig"])
        if not case["valid"]:
            continue
        longer = (signature[:32] + b"\0" + signature[32:], b"\0" + signature, signature + b"\0")
        shorter = [signature[:32] + signature[33:]] if signature[32] == 0 else []
        for other in (*longer, *shorter):
            with pytest.raises(RemoteProtocolError, match="64 bytes"):
                verify(unhex(case["public"]), "", unhex(case["msg"]), other)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("case", IDENTITY["rfc6979"]["cases"], ids=lambda case: case["message"])
def test_an_identity_signs_as_rfc_6979_says(case: dict[str, Any]) -> None:
    key = IdentityKey.from_private_value(int(IDENTITY["rfc6979"]["private"], 16))
    message = case["message"].encode()
    signature = key.sign("", message)
    verify(key.public_bytes, "", message, signature)
    verify(key.public_bytes, "", message, unhex(case["signature"]))
    if key.sign("", message) != signature:
        pytest.skip("this OpenSSL signs with randomness")
    assert signature.hex() == case["signature"]


# ECDH and points


@each("wycheproof_ecdh_p256.json")
def test_key_agreement_gives_the_known_secret_or_refuses_the_point(case: dict[str, Any]) -> None:
    private, point = private_point(int(case["private"], 16)), unhex(case["public"])
    if case["result"] == "valid":
        assert ecdh(private, point).hex() == case["shared"]
        assert encode_point(decode_point(point)) == point
        return
    # what is called acceptable there is the compressed form, which here would give one key a second device ID
    assert case["result"] == "invalid" or point[:1] in COMPRESSED
    for use in (lambda: ecdh(private, point), lambda: decode_point(point), lambda: verify(point, "", b"", bytes(64))):
        with pytest.raises(RemoteProtocolError):
            use()


@each("wycheproof_ecdh_p256.json")
def test_the_compressed_form_of_a_good_point_is_refused(case: dict[str, Any]) -> None:
    point = unhex(case["public"])
    if len(point) == 65:
        short, hybrid = bytes([2 + point[-1] % 2]) + point[1:33], bytes([6 + point[-1] % 2]) + point[1:]
        for other in (short, hybrid):
            with pytest.raises(RemoteProtocolError):
                decode_point(other)


# ChaCha20-Poly1305


@each("rfc8439.json", "chacha20")
def test_the_second_opinion_knows_chacha20(case: dict[str, Any]) -> None:
    answer = chacha.chacha20(unhex(case["key"]), case["counter"], unhex(case["nonce"]), unhex(case["plaintext"]))
    assert answer.hex() == case["ciphertext"]


@each("rfc8439.json", "poly1305")
def test_the_second_opinion_knows_poly1305(case: dict[str, Any]) -> None:
    assert chacha.poly1305(unhex(case["key"]), unhex(case["msg"])).hex() == case["tag"]


def cipher_of(key: bytes, iv: bytes, monkeypatch: pytest.MonkeyPatch) -> records._Cipher:
    """A direction's cipher as records use it, with this key and iv instead of those that its secret would give."""
    monkeypatch.setattr(records, "expand_label", lambda _secret, label, length=32: {"key": key, "iv": iv}[label])
    return records._Cipher(b"")


def check_aead(cipher: records._Cipher, aad: bytes, plaintext: bytes, sealed: bytes) -> None:
    """Seal and open the first record of a key with exactly the calls of RecordSealer and RecordOpener."""
    out = memoryview(bytearray(len(sealed)))
    assert cipher.aead.encrypt_into(cipher.next_nonce(), plaintext, aad, out) == len(sealed)
    assert bytes(out) == sealed
    cipher.records = 0
    opened = memoryview(bytearray(len(plaintext)))
    assert cipher.aead.decrypt_into(cipher.next_nonce(), sealed, aad, opened) == len(plaintext)
    assert bytes(opened) == plaintext


@each("rfc8439.json", "aead")
def test_records_are_sealed_as_rfc_8439_says(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    key, iv = unhex(case["key"]), unhex(case["nonce"])
    aad, plaintext, sealed = unhex(case["aad"]), unhex(case["plaintext"]), unhex(case["ciphertext"] + case["tag"])
    assert chacha.seal(key, iv, plaintext, aad) == sealed
    assert chacha.unseal(key, iv, sealed, aad) == plaintext
    check_aead(cipher_of(key, iv, monkeypatch), aad, plaintext, sealed)


@each("wycheproof_chacha20_poly1305.json")
def test_the_cipher_of_records_gives_the_known_answers(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    key, iv, aad, plaintext = (unhex(case[part]) for part in ("key", "iv", "aad", "msg"))
    sealed = unhex(case["ct"] + case["tag"])
    if "InvalidNonceSize" in case["flags"]:
        with pytest.raises(ValueError, match="12 of iv"):
            cipher_of(key, iv, monkeypatch)
        return
    cipher = cipher_of(key, iv, monkeypatch)
    if case["valid"]:
        assert chacha.seal(key, iv, plaintext, aad) == sealed
        check_aead(cipher, aad, plaintext, sealed)
        return
    assert chacha.unseal(key, iv, sealed, aad) is None
    with pytest.raises(InvalidTag):
        cipher.aead.decrypt_into(cipher.next_nonce(), sealed, aad, memoryview(bytearray(len(plaintext))))


MODIFIED = [case for case in load("wycheproof_chacha20_poly1305.json")["cases"] if case["flags"] == ["ModifiedTag"]]


@pytest.mark.parametrize("case", MODIFIED, ids=lambda case: str(case["id"]))
def test_a_record_with_a_known_modification_of_its_tag_is_refused(case: dict[str, Any]) -> None:
    right = chacha.tag(*(unhex(case[part]) for part in ("key", "iv", "ct", "aad")))
    change = bytes(one ^ two for one, two in zip(right, unhex(case["tag"]), strict=True))
    assert any(change)
    stream = Stream()
    record = stream.sealer.seal(RecordType.DATA, b"payload")
    forged = record[:-16] + bytes(one ^ two for one, two in zip(record[-16:], change, strict=True))
    with pytest.raises(RemoteProtocolError, match="does not verify"):
        stream.feed(forged)
    with pytest.raises(LocalProtocolError):  # and nothing comes behind it
        stream.feed(record)


@pytest.mark.parametrize("direction", ["f2r", "r2f"])
@pytest.mark.parametrize("name", ["invite", "standby"])
def test_the_second_opinion_reads_the_frozen_records(name: str, direction: str) -> None:
    case = E2E[name]
    secret, number = unhex(case[direction]), 0
    for kind, body, record in case[f"{direction}_records"]:
        key = hkdf.AeadKey(hkdf.expand_label(secret, "key"), hkdf.expand_label(secret, "iv", length=12))
        header, sealed = unhex(record)[:3], unhex(record)[3:]
        assert chacha.unseal(key.key, key.nonce(number), sealed, header) == bytes([kind]) + unhex(body)
        number += 1
        if kind == RecordType.KEY_UPDATE:
            secret, number = hkdf.expand_label(secret, "update"), 0


def test_the_second_opinion_reads_what_the_sealer_seals_now() -> None:
    secret = hashlib.sha256(b"any").digest()
    key = hkdf.AeadKey(hkdf.expand_label(secret, "key"), hkdf.expand_label(secret, "iv", length=12))
    sealer = records.RecordSealer(secret, Direction.FORWARD_TO_AGENT)
    for number, size in enumerate((0, 7, 255)):
        record = sealer.seal(RecordType.PAD, bytes(size))
        assert chacha.unseal(key.key, key.nonce(number), record[3:], record[:3]) == bytes([RecordType.PAD]) + bytes(size)
        out = memoryview(bytearray(size + records.OVERHEAD))
        other = records.RecordSealer(secret, Direction.FORWARD_TO_AGENT)
        for _ in range(number + 1):
            other.seal_into(memoryview(bytearray(size + 1)), size, RecordType.PAD, out)
        assert bytes(out) == record


@pytest.mark.parametrize("name", ["invite", "standby", "refused"])
def test_the_second_opinion_reads_the_frozen_handshakes(name: str) -> None:
    case = E2E[name]
    init, accept = unhex(case["init"])[handshake.INIT_HEADER - keyschedule.LENGTH :], unhex(case["accept"])
    for message, part in ((init, "init"), (accept, "accept")):
        key, iv = unhex(case[f"{part}_key"]), unhex(case[f"{part}_iv"])
        header, sealed = message[: keyschedule.LENGTH], message[keyschedule.LENGTH :]
        assert chacha.unseal(key, iv, sealed, header) == unhex(case[f"{part}_plaintext"])


# ML-KEM-768


def offered(seed: bytes) -> tuple[bytes, Any]:
    """The encapsulation key that an agent's offer carries, and what it keeps to decapsulate with."""
    data, secrets = make_offer(AGENT, RELAY_ID, NOW, ephemeral=private_point(11), kem=MLKEM768PrivateKey.from_seed_bytes(seed))
    return check_offer(data, AGENT.device_id, RELAY_ID, NOW).kem_public, secrets.take().kem


@each("mlkem768.json", "known")
def test_an_offer_carries_the_known_kem_key_and_opens_the_known_ciphertexts(case: dict[str, Any]) -> None:
    seed = unhex(case["seed"])
    public, kem = offered(seed)
    assert public.hex() == case["ek"]
    assert kem.decapsulate(unhex(case["c"])).hex() == case["K"]
    assert kem.decapsulate(unhex(case["bad_c"])).hex() == case["bad_K"]


@each("mlkem768.json", "known")
def test_a_ciphertext_that_nobody_made_gives_a_secret_that_nobody_knows(case: dict[str, Any]) -> None:
    """FIPS 203 section 7.3, implicit rejection: SHAKE256(z || c), and never an error that an attacker could see."""
    _, kem = offered(unhex(case["seed"]))
    for at in (0, 319, 959, 960, 1087):
        changed = bytearray(unhex(case["c"]))
        changed[at] ^= 1
        assert kem.decapsulate(bytes(changed)) == hashlib.shake_256(unhex(case["seed"])[32:] + changed).digest(32)


@each("mlkem768.json", "wycheproof")
def test_the_kem_gives_the_known_answers(case: dict[str, Any]) -> None:
    public, kem = offered(unhex(case["seed"]))
    assert public.hex() == case["ek"]
    assert kem.decapsulate(unhex(case["c"])).hex() == case["K"]


@each("mlkem768.json", "refused")
def test_a_kem_key_that_is_none_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="ML-KEM-768"):
        handshake.encapsulate(unhex(case["ek"]))


@each("mlkem768.json", "known")
def test_what_is_encapsulated_for_a_known_key_is_opened_by_its_seed(case: dict[str, Any]) -> None:
    secret, ciphertext = handshake.encapsulate(unhex(case["ek"]))
    _, kem = offered(unhex(case["seed"]))
    assert kem.decapsulate(ciphertext) == secret


@pytest.mark.parametrize("at", [0, 544, 1087])
def test_a_changed_kem_ciphertext_in_init_is_told_as_no_init_and_not_as_a_fault_of_the_kem(at: int) -> None:
    run = Handshake()
    init = bytearray(run.init(Purpose.CONNECT))
    init[at] ^= 0x80
    with pytest.raises(RemoteProtocolError, match="does not verify"):
        run.responder().receive_init(bytes(init))

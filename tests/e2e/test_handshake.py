"""Keys are agreed with the right peer or not at all; every check has the attack that it stops."""

import gc
import hmac
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

import tuunel.e2e.handshake
import tuunel.e2e.offer
from tests.e2e.tunnels import (
    AGENT,
    FORWARD,
    INVITE,
    NOW,
    OTHER_RELAY_ID,
    RELAY_ID,
    STRANGER,
    Handshake,
    Stream,
    offer,
    private_point,
)
from tuunel.e2e import keyschedule
from tuunel.e2e.handshake import ACCEPT_HEADER, INIT_HEADER, Initiator, Responder, sealed_length
from tuunel.e2e.offer import OFFER_LIFETIME, make_offer
from tuunel.e2e.params import Parameters
from tuunel.e2e.records import BUFFER_SIZE, MAX_EARLY_BODY
from tuunel.e2e.wire import HANDSHAKE_CEILING, POINT, Accept, Init, Offer, Purpose, RecordType
from tuunel.errors import Failure, LocalProtocolError, PeerMismatch, Reason, RemoteProtocolError, Speaker
from tuunel.hkdf import aead_key
from tuunel.identity import DeviceID, IdentityKey, encode_point
from tuunel.links import Invite
from tuunel.relay.wire import OpenRequest, tunnel_id

NO_KEYS = (RemoteProtocolError, Failure)  # PeerMismatch is a Failure


def assert_dead(core: Initiator | Responder) -> None:
    """No keys, and no way to go on."""
    with pytest.raises(LocalProtocolError):
        core.sealer.seal(RecordType.PAD)
    with pytest.raises(LocalProtocolError):
        core.opener.room()
    step = core.receive_accept if isinstance(core, Initiator) else core.receive_init
    with pytest.raises(LocalProtocolError):
        step(b"")


# What a handshake gives


def test_both_sides_agree_and_know_each_other() -> None:
    handshake = Handshake()
    responder = handshake.responder()
    received = responder.receive_init(handshake.init())
    assert received.device == FORWARD.device_id
    assert received.label == "laptop"
    handshake.initiator.receive_accept(responder.accept("home"))
    assert handshake.initiator.peer_label == "home"
    assert (received.purpose, received.invite_id, received.proof) == (Purpose.CONNECT, None, None)
    for sealer, opener in ((handshake.initiator.sealer, responder.opener), (responder.sealer, handshake.initiator.opener)):
        stream = Stream(opened=False)
        stream.opener = opener
        assert stream.feed(sealer.seal(RecordType.PING, b"12345678")) == [(RecordType.PING, b"12345678")]


def test_all_three_parties_give_the_tunnel_one_name() -> None:
    handshake = Handshake()
    _, responder = handshake.run()
    name = tunnel_id(handshake.offer[1:66], OpenRequest.decode(handshake.open).point)
    assert handshake.initiator.tunnel_id == responder.tunnel_id == name
    assert len(name) == 8


def test_records_may_follow_init_in_the_same_write() -> None:
    handshake = Handshake()
    init = handshake.init()
    early = handshake.initiator.sealer.seal(RecordType.PING, b"12345678")
    responder = handshake.responder()
    responder.receive_init(init)
    stream = Stream(opened=False)
    stream.opener = responder.opener
    assert stream.feed(early) == [(RecordType.PING, b"12345678")]


def test_large_records_wait_until_the_peer_is_authenticated() -> None:
    handshake = Handshake()
    init = handshake.init()
    responder = handshake.responder()
    responder.receive_init(init)
    forward, agent = handshake.initiator, responder
    early, too_large = bytes(MAX_EARLY_BODY), bytes(MAX_EARLY_BODY + 1)
    stream = Stream(opened=False)
    stream.opener = agent.opener
    with pytest.raises(LocalProtocolError):
        forward.sealer.seal(RecordType.PAD, too_large)
    assert stream.feed(forward.sealer.seal(RecordType.PAD, early)) == [(RecordType.PAD, early)]
    forward.receive_accept(agent.accept())
    assert stream.feed(forward.sealer.seal(RecordType.PAD, too_large)) == [(RecordType.PAD, too_large)]
    stream.opener = forward.opener
    assert stream.feed(agent.sealer.seal(RecordType.PAD, too_large)) == [(RecordType.PAD, too_large)]


def test_an_agent_that_has_not_accepted_holds_no_large_record() -> None:
    handshake = Handshake()
    responder = handshake.responder()
    responder.receive_init(handshake.init())
    responder.opener.receive_data((MAX_EARLY_BODY + 18).to_bytes(3, "big"))
    with pytest.raises(RemoteProtocolError):
        responder.opener.open_into(memoryview(bytearray(BUFFER_SIZE)))


def test_an_invite_is_proven_under_the_transcript_and_never_sent() -> None:
    handshake = Handshake(invite=INVITE)
    received, _ = handshake.run()
    assert OpenRequest.decode(handshake.open).invite_id == INVITE.invite_id == received.invite_id
    assert received.proof == hmac.digest(INVITE.proof_key, received.t3, "sha256")
    assert INVITE.secret not in handshake.open


def test_a_refusal_is_the_agents_word() -> None:
    handshake = Handshake()
    responder = handshake.responder()
    responder.receive_init(handshake.init())
    refusal = responder.refuse(Reason.POLICY_REVOKED)
    with pytest.raises(Failure) as failure:
        handshake.initiator.receive_accept(refusal)
    assert (failure.value.reason, failure.value.speaker) == (Reason.POLICY_REVOKED, Speaker.AGENT)
    assert_dead(handshake.initiator)
    assert_dead(responder)


def test_the_length_of_a_handshake_says_nothing_about_labels_or_invites() -> None:
    lengths = {len(Handshake(invite=invite).init(purpose)) for invite in (None, INVITE) for purpose in Purpose}
    assert lengths == {INIT_HEADER + 256 + 16}


def test_a_driver_reads_exact_sizes() -> None:
    handshake = Handshake()
    init = handshake.init()
    responder = handshake.responder()
    assert INIT_HEADER + sealed_length(init[:INIT_HEADER]) == len(init)
    responder.receive_init(init)
    accept = responder.accept()
    assert ACCEPT_HEADER + sealed_length(accept[:ACCEPT_HEADER]) == len(accept)


@pytest.mark.parametrize("plain", [0, 1, 255, 257, HANDSHAKE_CEILING + 1, HANDSHAKE_CEILING + 256, 0xFFFF - 16])
def test_a_length_above_its_ceiling_or_not_whole_blocks_is_refused_before_the_rest_is_read(plain: int) -> None:
    with pytest.raises(RemoteProtocolError):
        sealed_length((plain + 16).to_bytes(2, "big"))


def test_the_longest_handshake_message_fits_its_ceiling() -> None:
    everything = Parameters("x" * 1000, frozenset(range(255)))
    assert len(Init(bytes(65), bytes(64), None, Purpose.CONNECT, everything).encode()) <= HANDSHAKE_CEILING


# What the forward proxy checks


def spoilt(handshake: Handshake, bad: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        handshake.initiator.receive_offer(bad)
    assert_dead(handshake.initiator)


def test_f_stops_a_relay_that_pairs_it_with_another_device() -> None:
    spoilt(Handshake(), offer(STRANGER)[0], PeerMismatch)


def test_f_stops_a_relay_that_puts_its_own_keys_into_an_offer() -> None:
    genuine = Offer.decode(offer()[0])
    mallory = Offer.decode(offer(STRANGER)[0])
    for changes in (
        {"ephemeral": encode_point(private_point(99).public_key())},
        {"kem_public": MLKEM768PrivateKey.from_seed_bytes(bytes(64)).public_key().public_bytes_raw()},
        {"not_after": genuine.not_after + 1},
        {"relay_id": OTHER_RELAY_ID},
        {"signature": mallory.signature},
    ):
        fields = {name: getattr(genuine, name) for name in Offer.__dataclass_fields__} | changes
        spoilt(Handshake(), Offer(**fields).encode(), PeerMismatch)


def test_f_stops_an_offer_that_was_made_for_another_relay() -> None:
    spoilt(Handshake(), offer(relay_id=OTHER_RELAY_ID)[0], PeerMismatch)


def test_f_stops_an_offer_that_is_out_of_date_and_names_the_clocks() -> None:
    in_time = Handshake(now=NOW + OFFER_LIFETIME)
    in_time.initiator.receive_offer(in_time.offer)
    late = Handshake(now=NOW + OFFER_LIFETIME + 1)
    with pytest.raises(Failure) as failure:
        late.initiator.receive_offer(late.offer)
    assert failure.value.reason is Reason.TUNNEL_LOST
    assert "clocks" in failure.value.advice
    assert_dead(late.initiator)


def signed_offer(identity: IdentityKey = AGENT, **changes: Any) -> bytes:
    """An offer that the agent itself signed, however absurd."""
    fields = {name: getattr(Offer.decode(offer()[0]), name) for name in Offer.__dataclass_fields__} | changes
    unsigned = Offer(**fields).encode()[:-64]
    return unsigned + identity.sign("tuunel/1 e2e offer", keyschedule.digest(keyschedule.T0, unsigned))


def test_f_stops_an_offer_of_another_version_even_if_it_is_signed() -> None:
    spoilt(Handshake(), signed_offer(version=2), RemoteProtocolError)


def test_f_stops_an_offer_whose_point_is_not_on_the_curve() -> None:
    spoilt(Handshake(), signed_offer(ephemeral=b"\x04" + bytes(63) + b"\x01"), RemoteProtocolError)


def test_f_stops_an_offer_whose_kem_key_is_none() -> None:
    handshake = Handshake()
    handshake.initiator.receive_offer(signed_offer(kem_public=b"\xff" * 1184))
    with pytest.raises(RemoteProtocolError):
        handshake.initiator.init(Purpose.CONNECT)
    assert_dead(handshake.initiator)


def test_f_stops_an_accept_that_is_not_signed_by_the_device_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who stole one offer's keys, but not the identity key."""
    handshake = Handshake()
    responder = handshake.responder()
    responder.receive_init(handshake.init())
    monkeypatch.setattr(responder, "_identity", STRANGER)
    with pytest.raises(PeerMismatch):
        handshake.initiator.receive_accept(responder.accept())
    assert_dead(handshake.initiator)


def test_a_refusal_by_somebody_else_is_an_alarm_and_not_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    handshake = Handshake()
    responder = handshake.responder()
    responder.receive_init(handshake.init())
    monkeypatch.setattr(responder, "_identity", STRANGER)
    with pytest.raises(PeerMismatch):
        handshake.initiator.receive_accept(responder.refuse(Reason.NOT_PAIRED))


def test_f_stops_the_accept_of_another_tunnel() -> None:
    first, second = Handshake(ephemeral=22), Handshake(ephemeral=23)
    responder = first.responder()
    responder.receive_init(first.init())
    second.init()
    with pytest.raises(RemoteProtocolError):
        second.initiator.receive_accept(responder.accept())
    assert_dead(second.initiator)


def test_f_stops_its_own_init_reflected_to_it() -> None:
    handshake = Handshake()
    init = handshake.init()
    with pytest.raises(RemoteProtocolError):
        handshake.initiator.receive_accept(init[1088:])
    assert_dead(handshake.initiator)


def test_a_length_that_its_sender_sealed_wrong_is_refused() -> None:
    """The length is authenticated: a peer with the keys could still make it disagree with the message."""
    handshake = Handshake()
    init = handshake.init()
    hs = handshake.initiator._hs
    assert hs is not None
    key = aead_key(hs, "init")
    header = (512 + 16).to_bytes(2, "big")
    plaintext = keyschedule.open_init(hs, init[1088:])
    sealed = ChaCha20Poly1305(key.key).encrypt(key.nonce(0), plaintext, header)
    with pytest.raises(RemoteProtocolError):
        keyschedule.open_init(hs, header + sealed)


def test_f_uses_an_invite_for_its_own_device_only() -> None:
    other = Invite(INVITE.relay, STRANGER.device_id, INVITE.secret)
    with pytest.raises(LocalProtocolError):
        Handshake(invite=other)


# What the agent checks


def refused_by_agent(handshake: Handshake, init: bytes, error: type[Exception], **paired: Any) -> None:
    responder = handshake.responder(**paired)
    with pytest.raises(error):
        responder.receive_init(init)
    assert_dead(responder)
    with pytest.raises(LocalProtocolError):
        handshake.responder()  # the keys of the offer are gone


def test_r_stops_an_open_that_names_another_device() -> None:
    handshake = Handshake()
    init = handshake.init()
    elsewhere = handshake.open[:2] + STRANGER.device_id.raw + handshake.open[27:]
    refused_by_agent(handshake, init, PeerMismatch, open_message=elsewhere)


def test_r_stops_a_relay_that_edits_open() -> None:
    other_point = encode_point(private_point(99).public_key())
    for edit in (
        lambda body: body[:27] + other_point,
        lambda body: body[:1] + b"\x01" + body[2:] + bytes(8),
        lambda body: b"\x02" + body[1:],
    ):
        handshake = Handshake()
        refused_by_agent(handshake, handshake.init(), RemoteProtocolError, open_message=edit(handshake.open))


def test_r_stops_a_relay_that_names_another_client() -> None:
    handshake = Handshake()
    refused_by_agent(handshake, handshake.init(), PeerMismatch, public=STRANGER.public_bytes)


def forged_init(handshake: Handshake, forge: Callable[[Init, bytes], Init]) -> bytes:
    """An INIT of somebody who holds the handshake's secret and may say what he likes in it."""
    init = handshake.init()
    core = handshake.initiator
    assert core._hs is not None
    keyed = keyschedule.keyed_transcript(handshake.offer, handshake.open, init[:1088])
    genuine = Init.decode(keyschedule.open_init(core._hs, init[1088:]))
    return init[:1088] + keyschedule.seal_init(core._hs, forge(genuine, keyed).encode())


def test_r_stops_a_client_that_cannot_sign_for_the_identity_it_names() -> None:
    handshake = Handshake()

    def forge(genuine: Init, keyed: bytes) -> Init:
        t3 = keyschedule.digest(keyed, FORWARD.public_bytes)
        return Init(FORWARD.public_bytes, STRANGER.sign("tuunel/1 e2e initiator", t3), None, Purpose.CONNECT, Parameters())

    refused_by_agent(handshake, forged_init(handshake, forge), PeerMismatch)


def test_r_stops_a_signature_that_was_made_for_another_use() -> None:
    handshake = Handshake()

    def forge(genuine: Init, keyed: bytes) -> Init:
        t3 = keyschedule.digest(keyed, FORWARD.public_bytes)
        return Init(FORWARD.public_bytes, FORWARD.sign("tuunel/1 device auth", t3), None, Purpose.CONNECT, Parameters())

    refused_by_agent(handshake, forged_init(handshake, forge), PeerMismatch)


def test_r_stops_a_signature_of_another_tunnel() -> None:
    other = Handshake(ephemeral=23)
    init = other.init()
    assert other.initiator._hs is not None
    stolen = Init.decode(keyschedule.open_init(other.initiator._hs, init[1088:])).signature
    handshake = Handshake()
    bad = forged_init(handshake, lambda genuine, _: Init(genuine.identity, stolen, None, genuine.purpose, Parameters()))
    refused_by_agent(handshake, bad, PeerMismatch)


def test_r_stops_an_init_whose_invite_is_not_the_one_in_open() -> None:
    handshake = Handshake(invite=INVITE)
    bad = forged_init(handshake, lambda genuine, _: Init(genuine.identity, genuine.signature, None, genuine.purpose, Parameters()))
    refused_by_agent(handshake, bad, RemoteProtocolError)


def test_r_stops_an_init_behind_a_stale_offer() -> None:
    handshake = Handshake()
    refused_by_agent(handshake, handshake.init(), RemoteProtocolError, now=NOW + OFFER_LIFETIME + 1)


@pytest.mark.parametrize("length", [0, 1, INIT_HEADER - 3])
def test_an_init_that_is_cut_within_its_ciphertext_is_a_protocol_error(length: int) -> None:
    handshake = Handshake()
    refused_by_agent(handshake, handshake.init()[:length], RemoteProtocolError)


def test_r_stops_an_init_that_was_made_for_another_offer() -> None:
    handshake = Handshake()
    init = handshake.init()
    handshake.secrets = offer(ephemeral=12)[1]
    refused_by_agent(handshake, init, RemoteProtocolError)


def test_r_uses_the_keys_of_an_offer_once_so_that_an_init_cannot_be_replayed() -> None:
    handshake = Handshake()
    init = handshake.init()
    responder = handshake.responder()
    responder.receive_init(init)
    with pytest.raises(LocalProtocolError):
        handshake.responder()
    with pytest.raises(LocalProtocolError):
        responder.receive_init(init)


def test_r_can_drop_an_offer_unused() -> None:
    handshake = Handshake()
    handshake.secrets.close()
    with pytest.raises(LocalProtocolError):
        handshake.responder()


def test_an_offer_lives_no_longer_than_a_day() -> None:
    for lifetime in (0, OFFER_LIFETIME + 1):
        with pytest.raises(LocalProtocolError):
            make_offer(AGENT, RELAY_ID, NOW, lifetime, ephemeral=private_point(1), kem=MLKEM768PrivateKey.generate())


@pytest.mark.parametrize(
    ("module", "attack"),
    [
        ("offer", test_f_stops_a_relay_that_puts_its_own_keys_into_an_offer),
        ("initiator", lambda: test_f_stops_an_accept_that_is_not_signed_by_the_device_asked_for(pytest.MonkeyPatch())),
        ("responder", test_r_stops_a_client_that_cannot_sign_for_the_identity_it_names),
    ],
)
def test_these_tests_notice_when_a_signature_is_not_checked(
    module: str, attack: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = tuunel.e2e.offer if module == "offer" else tuunel.e2e.handshake
    monkeypatch.setattr(where, "verify_peer", lambda *_: None)
    with pytest.raises(pytest.fail.Exception):
        attack()


# Corruption


def flips(data: bytes, step: int = 1) -> Iterator[bytes]:
    for at in range(0, len(data), step):
        yield data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


def test_any_flipped_byte_of_an_offer_agrees_no_keys() -> None:
    for bad in flips(offer()[0]):
        handshake = Handshake()
        with pytest.raises(NO_KEYS):
            handshake.initiator.receive_offer(bad)


def test_any_flipped_byte_of_open_agrees_no_keys() -> None:
    for at in range(len(Handshake(invite=INVITE).open)):
        handshake = Handshake(invite=INVITE)
        bad = handshake.open[:at] + bytes([handshake.open[at] ^ 1]) + handshake.open[at + 1 :]
        with pytest.raises(NO_KEYS):
            handshake.responder(open_message=bad).receive_init(handshake.init())


@given(bit=st.integers(0, 8 * (INIT_HEADER + 272) - 1))
@settings(deadline=None)
def test_any_flipped_bit_of_init_agrees_no_keys(bit: int) -> None:
    handshake = Handshake()
    init = bytearray(handshake.init())
    init[bit // 8] ^= 1 << bit % 8
    with pytest.raises(NO_KEYS):
        handshake.responder().receive_init(bytes(init))


def test_any_flipped_byte_of_accept_agrees_no_keys() -> None:
    length = ACCEPT_HEADER + 272
    for at in range(length):
        handshake = Handshake()
        responder = handshake.responder()
        responder.receive_init(handshake.init())
        accept = bytearray(responder.accept())
        accept[at] ^= 1 << at % 8
        with pytest.raises(NO_KEYS):
            handshake.initiator.receive_accept(bytes(accept))


@given(data=st.data())
@settings(deadline=None)
def test_any_cut_or_addition_agrees_no_keys(data: st.DataObject) -> None:
    def cut(message: bytes) -> bytes:
        return data.draw(st.one_of(st.integers(0, len(message) - 1).map(lambda at: message[:at]), st.just(message + b"\0")))

    handshake = Handshake()
    with pytest.raises(NO_KEYS):
        handshake.initiator.receive_offer(cut(handshake.offer))
    handshake = Handshake()
    with pytest.raises(NO_KEYS):
        handshake.responder().receive_init(cut(handshake.init()))
    handshake = Handshake()
    with pytest.raises(NO_KEYS):
        handshake.responder(open_message=cut(handshake.open)).receive_init(handshake.init())
    handshake = Handshake()
    responder = handshake.responder()
    responder.receive_init(handshake.init())
    with pytest.raises(NO_KEYS):
        handshake.initiator.receive_accept(cut(responder.accept()))


@given(garbage=st.binary(max_size=2000))
@settings(deadline=None)
def test_garbage_is_a_protocol_error_and_nothing_else(garbage: bytes) -> None:
    handshake = Handshake()
    with pytest.raises(RemoteProtocolError):
        handshake.responder().receive_init(garbage)
    handshake = Handshake()
    handshake.init()
    with pytest.raises(RemoteProtocolError):
        handshake.initiator.receive_accept(garbage)
    with pytest.raises(RemoteProtocolError):
        Handshake().initiator.receive_offer(garbage)


@given(garbage=st.binary(min_size=Offer.LENGTH, max_size=Offer.LENGTH))
@settings(deadline=None)
def test_garbage_of_the_right_length_is_of_another_device(garbage: bytes) -> None:
    with pytest.raises((RemoteProtocolError, PeerMismatch)):
        Handshake().initiator.receive_offer(b"\x01" + garbage[1:])


@given(plaintext=st.binary(max_size=HANDSHAKE_CEILING))
def test_a_garbage_plaintext_is_a_protocol_error_and_nothing_else(plaintext: bytes) -> None:
    for layout in (Init, Accept):
        try:
            layout.decode(plaintext)
        except RemoteProtocolError:
            continue


# Order and secrets


def test_steps_are_taken_once_and_in_order() -> None:
    handshake = Handshake()
    fresh = Handshake()
    with pytest.raises(LocalProtocolError):
        handshake.initiator.open_message()
    with pytest.raises(LocalProtocolError):
        fresh.initiator.init(Purpose.CONNECT)
    responder = fresh.responder()
    for early in (responder.accept, lambda: responder.refuse(Reason.LIMIT)):
        with pytest.raises(LocalProtocolError):
            early()
    with pytest.raises(LocalProtocolError):
        assert responder.sealer
    received = handshake.run()
    assert received
    with pytest.raises(LocalProtocolError):
        received[1].accept()
    with pytest.raises(LocalProtocolError):
        handshake.initiator.receive_accept(b"")


def reachable(root: object) -> set[int]:
    """The ids of everything that `root` holds, one way or another, classes and modules aside."""
    seen: dict[int, object] = {}
    waiting = [root]
    while waiting:
        item = waiting.pop()
        if id(item) not in seen and not isinstance(item, type | type(gc)) and not callable(item):
            seen[id(item)] = item
            waiting += gc.get_referents(item)
    return set(seen)


def test_secrets_are_dropped_when_they_have_done_their_work() -> None:
    handshake = Handshake(invite=INVITE)
    keys = handshake.secrets._keys
    assert keys is not None
    init = handshake.init()
    hs, ephemeral = handshake.initiator._hs, keys.ephemeral
    assert handshake.initiator._ephemeral is None
    assert id(INVITE) not in reachable(handshake.initiator)
    responder = handshake.responder()
    assert id(ephemeral) not in reachable(handshake.secrets)
    assert id(ephemeral) in reachable(responder)
    responder.receive_init(init)
    assert {id(ephemeral), id(keys.kem)}.isdisjoint(reachable(responder))
    agent_hs = responder._hs
    assert agent_hs == hs
    handshake.initiator.receive_accept(responder.accept())
    assert id(hs) not in reachable(handshake.initiator)
    assert id(agent_hs) not in reachable(responder)


def test_close_leaves_nothing_on_either_side() -> None:
    handshake = Handshake()
    _, responder = handshake.run()
    for core in (handshake.initiator, responder):
        core.close()
        core.close()
        with pytest.raises(LocalProtocolError):
            core.sealer.seal(RecordType.PAD)
        with pytest.raises(LocalProtocolError):
            core.opener.room()


def test_nothing_secret_is_shown() -> None:
    handshake = Handshake(invite=INVITE)
    received, _ = handshake.run()
    assert received.proof is not None
    shown = repr(received) + repr(handshake.secrets) + repr(handshake.initiator)
    assert repr(received.proof) not in shown
    assert repr(received.t3) not in shown


def test_the_device_is_computed_from_the_key_and_never_taken_from_the_relay() -> None:
    received, _ = Handshake().run()
    assert received.device == DeviceID.from_public_key(FORWARD.public_bytes)
    assert len(FORWARD.public_bytes) == POINT

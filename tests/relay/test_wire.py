"""The hop messages: literal bytes, ceilings, and nothing but a protocol error for everything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.relay.hops import AGENT, IDENTITY, LIMITS, OBSERVED, OFFER, OPEN, OPEN_WITH_INVITE
from tuunel.errors import ANSWERS, LocalProtocolError, Reason, RemoteProtocolError
from tuunel.relay.fields import HOP_CODES, HOP_REASONS
from tuunel.relay.framing import MAX_PLAINTEXT
from tuunel.relay.wire import (
    ADMISSION_ENTRIES,
    DETAIL_CEILING,
    MESSAGE_TYPES,
    OFFER_CEILING,
    OPEN_CEILING,
    Admission,
    Demand,
    DropToken,
    HopError,
    Message,
    Mint,
    Minted,
    Notice,
    Offer,
    Open,
    OpenRequest,
    PairedAgent,
    PairedForward,
    Ping,
    Pong,
    Switch,
    Unenrol,
    Welcome,
    admission_records,
    decode_message,
    encode_message,
    token_hash,
    tunnel_id,
)

ID = IDENTITY.device_id
SAMPLES: list[tuple[Message, str]] = [
    (Welcome(ID, OBSERVED, 1_800_000_000, LIMITS), f"01 {ID.raw.hex()} 0b{b'203.0.113.7'.hex()} c3cb 000000006b49d200 0040 0040 0400"),
    (HopError(Reason.RATE_LIMITED, 30, "slow"), "02 07 0000001e 04736c6f77"),
    (Ping(b"12345678"), "03 3132333435363738"),
    (Pong(b"12345678"), "04 3132333435363738"),
    (Offer(OFFER), "10" + OFFER.hex()),
    (Open(OPEN), "11" + OPEN.hex()),
    (Open(OPEN_WITH_INVITE), "11" + OPEN_WITH_INVITE.hex()),
    (PairedForward(OFFER), "12" + OFFER.hex()),
    (PairedAgent(IDENTITY.public_bytes, OPEN), "13" + IDENTITY.public_bytes.hex() + OPEN.hex()),
    (Switch(), "14"),
    (Admission(True, False, True, (ID,), (b"invite-1",), ()), f"20 01 00 01 0001 {ID.raw.hex()} 0001 {b'invite-1'.hex()} 0000"),
    (Demand(64), "21 0040"),
    (Mint(7, b"h" * 32, b"invite-1", 1, 1_800_000_900), f"22 00000007 {'68' * 32} {b'invite-1'.hex()} 0001 000000006b49d584"),
    (Minted(7), "23 00000007 00 00000000 00"),
    (Minted(7, Reason.QUOTA, 5, "no"), "23 00000007 0a 00000005 026e6f"),
    (DropToken(b"h" * 32), "24" + "68" * 32),
    (Unenrol(ID), f"25 {ID.raw.hex()}"),
    (Notice(Reason.DEVICE_BANNED, "abcdefgh", "by the operator"), f"26 06 08{b'abcdefgh'.hex()} 0f{b'by the operator'.hex()}"),
]
KINDS = [type(message).__name__ for message, _ in SAMPLES]


@pytest.mark.parametrize(("message", "layout"), SAMPLES, ids=KINDS)
def test_each_message_has_these_bytes(message: Message, layout: str) -> None:
    assert encode_message(message) == bytes.fromhex(layout)
    assert decode_message(bytes.fromhex(layout)) == message


def test_there_is_a_sample_of_every_message() -> None:
    assert {type(message) for message, _ in SAMPLES} == set(MESSAGE_TYPES.values())


@pytest.mark.parametrize(("message", "layout"), SAMPLES, ids=KINDS)
def test_a_message_with_a_byte_more_or_less_is_refused(message: Message, layout: str) -> None:
    plaintext = bytes.fromhex(layout)
    opaque = isinstance(message, Offer | PairedForward | PairedAgent)  # what they carry ends with the record
    for spoilt in (plaintext[:-1], plaintext + b"\0"):
        if opaque:
            assert decode_message(spoilt) != message
        else:
            with pytest.raises(RemoteProtocolError):
                decode_message(spoilt)


@given(st.binary(max_size=300))
def test_arbitrary_plaintext_is_a_message_or_a_protocol_error(data: bytes) -> None:
    try:
        message = decode_message(data)
    except RemoteProtocolError:
        return
    assert encode_message(message) == data


@given(st.sampled_from(SAMPLES), st.data())
def test_a_changed_byte_is_another_message_or_a_protocol_error(sample: tuple[Message, str], data: st.DataObject) -> None:
    plaintext = bytearray(bytes.fromhex(sample[1]))
    position = data.draw(st.integers(0, len(plaintext) - 1))
    plaintext[position] ^= data.draw(st.integers(1, 255))
    try:
        message = decode_message(bytes(plaintext))
    except RemoteProtocolError:
        return
    assert message != sample[0]
    assert encode_message(message) == plaintext


# Error codes


@pytest.mark.parametrize("plaintext", [b"\x25" + bytes(25), b"\x02" + bytes(6), b"\x02\xff" + bytes(5), b"\x26\x00\x00\x00"])
def test_a_device_id_or_an_error_code_that_stands_for_nothing_is_a_protocol_error(plaintext: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_message(plaintext)


def test_the_relays_codes_are_these_for_ever() -> None:
    assert [HOP_REASONS[code].value for code in range(1, 15)] == [
        "PROTOCOL",
        "VERSION",
        "AUTH_FAILED",
        "DEVICE_UNKNOWN",
        "ENROLMENT_REQUIRED",
        "DEVICE_BANNED",
        "RATE_LIMITED",
        "PEER_UNAVAILABLE",
        "OPEN_TIMEOUT",
        "QUOTA",
        "SHUTDOWN",
        "DUPLICATE_DEVICE",
        "INTERNAL",
        "KILLED",
    ]
    assert {reason: code for code, reason in HOP_REASONS.items()} == HOP_CODES
    assert HOP_CODES.keys() <= ANSWERS.keys()


def test_the_relay_says_nothing_else() -> None:
    for reason in Reason:
        if reason not in HOP_CODES:
            with pytest.raises(LocalProtocolError):
                HopError(reason).encode()
    for code in (0, 15, 255):
        with pytest.raises(RemoteProtocolError):
            HopError.decode(bytes([code]) + bytes(5))


# Ceilings


def test_a_long_detail_is_cut_at_a_character() -> None:
    long = HopError(Reason.INTERNAL, 0, "x" + "é" * 200)
    read = HopError.decode(long.encode())
    assert read.detail == "x" + "é" * 99
    assert len(read.detail.encode()) == DETAIL_CEILING - 1


def test_a_text_above_its_ceiling_or_not_utf8_is_refused() -> None:
    HopError.decode(bytes([13]) + bytes(4) + bytes([DETAIL_CEILING]) + b"x" * DETAIL_CEILING)
    for text in (bytes([DETAIL_CEILING + 1]) + b"x" * (DETAIL_CEILING + 1), b"\1\xff"):
        with pytest.raises(RemoteProtocolError):
            HopError.decode(bytes([13]) + bytes(4) + text)


def test_an_offer_is_bounded_on_both_sides() -> None:
    assert len(Offer.decode(bytes(OFFER_CEILING)).body) == OFFER_CEILING
    for length in (65, OFFER_CEILING + 1):
        with pytest.raises(RemoteProtocolError):
            Offer.decode(bytes(length))
    with pytest.raises(LocalProtocolError):
        Offer(bytes(OFFER_CEILING + 1)).encode()


def test_a_list_above_its_ceiling_is_refused_by_its_count() -> None:
    with pytest.raises(RemoteProtocolError, match="above its ceiling"):
        Admission.decode(bytes([1, 1, 0]) + (ADMISSION_ENTRIES + 1).to_bytes(2))
    with pytest.raises(LocalProtocolError):
        Admission(True, True, False, invites=(bytes(8),) * (ADMISSION_ENTRIES + 1)).encode()


def test_the_longest_admission_fits_into_a_record() -> None:
    ids = (ID,) * ADMISSION_ENTRIES
    assert len(encode_message(Admission(True, True, True, ids, (bytes(8),) * ADMISSION_ENTRIES, ids))) <= MAX_PLAINTEXT


@pytest.mark.parametrize("flags", [b"\2\1\0", b"\1\2\0", b"\1\1\2"])
def test_a_flag_is_zero_or_one(flags: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Admission.decode(flags + bytes(6))


@pytest.mark.parametrize("count", [0, 1, ADMISSION_ENTRIES, ADMISSION_ENTRIES + 1, 3 * ADMISSION_ENTRIES])
def test_an_admission_list_of_any_length_arrives_whole(count: int) -> None:
    invites = tuple(number.to_bytes(8) for number in range(count))
    records = list(admission_records(enrolled=True, paired=[ID], invites=invites, revoked=[AGENT.device_id]))
    assert [record.first for record in records] == [True] + [False] * (len(records) - 1)
    assert [record.last for record in records] == [False] * (len(records) - 1) + [True]
    assert all(record.enrolled for record in records)
    assert sum((record.invites for record in records), ()) == invites
    assert sum((record.paired for record in records), ()) == (ID,)
    assert sum((record.revoked for record in records), ()) == (AGENT.device_id,)


# OPEN, and what names a tunnel


def test_the_relay_reads_whom_an_open_asks_for() -> None:
    request = Open(OPEN_WITH_INVITE).request
    assert (request.device, request.point, request.invite_id) == (AGENT.device_id, bytes(range(65)), b"invite-1")
    assert Open(OPEN).request.invite_id is None
    assert OpenRequest(1, 1, AGENT.device_id, bytes(range(65)), b"invite-1").encode() == OPEN_WITH_INVITE
    assert len(OPEN_WITH_INVITE) == OPEN_CEILING


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\2" + OPEN[1:], id="version"),
        pytest.param(OPEN[:1] + b"\1" + OPEN[2:], id="flag without invite"),
        pytest.param(OPEN_WITH_INVITE[:1] + b"\0" + OPEN_WITH_INVITE[2:], id="invite without flag"),
        pytest.param(OPEN_WITH_INVITE[:1] + b"\2" + OPEN_WITH_INVITE[2:], id="unknown flag"),
        pytest.param(OPEN_WITH_INVITE + b"\0", id="ceiling + 1"),
        pytest.param(OPEN[:2] + bytes([OPEN[2] ^ 1]) + OPEN[3:], id="device ID with a wrong checksum"),
    ],
)
def test_an_open_that_makes_no_sense_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_message(b"\x11" + body)


def test_a_tunnel_is_named_by_its_two_points() -> None:
    point = Offer(OFFER).point
    assert point == bytes(range(65))
    assert tunnel_id(point, b"\4" * 65) == "3vsjqeu3"
    assert tunnel_id(b"\4" * 65, point) != tunnel_id(point, b"\4" * 65)


def test_the_relay_stores_a_hash_of_a_token() -> None:
    assert token_hash(b"enrolment token!").hex() == "90b4ff4d47a66b551b93d8b854679ad89a20452876733bf19bdcea75f9836a8d"

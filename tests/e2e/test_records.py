"""Records keep their order, their ends and their keys; memory is held by bytes, never by a tunnel at rest."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.e2e.tunnels import OPENING, Stream
from tuunel.e2e import records
from tuunel.e2e.records import (
    BUFFER_SIZE,
    GROWN_CHUNK,
    GROWTH_BYTES,
    HEADER,
    KEY_UPDATE_BYTES,
    KEY_UPDATE_RECORDS,
    MAX_BODY,
    MAX_EARLY_BODY,
    MAX_KEY_BYTES,
    MAX_KEY_RECORDS,
    OVERHEAD,
    RECORD_SIZE,
    TAG,
    RecordOpener,
    RecordSealer,
)
from tuunel.e2e.wire import BODY_LENGTHS, FIN_BODY, FLOW_RECORDS, PAD_BLOCK, TRANSITIONS, Direction, Error, Phase, RecordType, Reset, fits
from tuunel.errors import Failure, LocalProtocolError, Reason, RemoteProtocolError

F2R, R2F = Direction.FORWARD_TO_AGENT, Direction.AGENT_TO_FORWARD
RESERVED = [kind for kind in RecordType if kind not in BODY_LENGTHS]


def body_of(kind: RecordType) -> bytes:
    """A body that such a record may have."""
    return bytes(BODY_LENGTHS[kind][0])


def forge(stream: Stream, kind: int, body: bytes) -> bytes:
    """The next record as a peer with the key would seal it, whatever the rules say."""
    cipher = stream.sealer._cipher
    assert cipher is not None
    header = (len(body) + 1 + TAG).to_bytes(HEADER, "big")
    return header + cipher.aead.encrypt(cipher.next_nonce(), bytes([kind]) + body, header)


def assert_dead(opener: RecordOpener, stream: Stream) -> None:
    assert stream.buffers.lent == 0
    assert opener._cipher is None
    for use in (lambda: opener.open_into(stream.chunk), opener.room, opener.receive_eof, lambda: opener.receive_data(b"")):
        with pytest.raises(LocalProtocolError):
            use()


# Layout


def test_a_record_is_length_type_body_and_tag() -> None:
    stream = Stream()
    record = stream.sealer.seal(RecordType.DATA, b"hello")
    assert len(record) == OVERHEAD + 5
    assert record[:HEADER] == bytes([0, 0, 1 + 5 + TAG])
    assert b"hello" not in record


@pytest.mark.parametrize("n", [1, 2, MAX_EARLY_BODY, MAX_EARLY_BODY + 1, GROWN_CHUNK, MAX_BODY - 1, MAX_BODY])
def test_sealing_into_a_buffer_gives_the_same_record(n: int) -> None:
    one, other = Stream(), Stream()
    body = bytes(range(256)) * (n // 256 + 1)
    chunk, out = memoryview(bytearray(b"\0" + body)), memoryview(bytearray(BUFFER_SIZE + OVERHEAD))
    length = one.sealer.seal_into(chunk, n, RecordType.DATA, out)
    assert bytes(out[:length]) == other.sealer.seal(RecordType.DATA, body[:n])
    assert one.feed(bytes(out[:length])) == [(RecordType.DATA, body[:n])]


def test_sealing_into_a_buffer_that_is_too_small_seals_nothing() -> None:
    stream, twin = Stream(), Stream()
    chunk = memoryview(bytearray(11))
    for small_chunk, small_out in ((chunk, memoryview(bytearray(9 + OVERHEAD))), (chunk[:10], memoryview(bytearray(100)))):
        with pytest.raises(LocalProtocolError):
            stream.sealer.seal_into(small_chunk, 10, RecordType.DATA, small_out)
    assert stream.sealer.seal(RecordType.DATA, b"x") == twin.sealer.seal(RecordType.DATA, b"x")


# Chunking


def a_conversation(stream: Stream) -> tuple[bytes, list[tuple[RecordType, bytes]]]:
    """Records of all sizes with key updates between them, on the wire and as events."""
    events = [
        (RecordType.PING, b"12345678"),
        (RecordType.DATA, b"x"),
        (RecordType.KEY_UPDATE, b""),
        (RecordType.DATA, b"y" * (MAX_EARLY_BODY + 7)),
        (RecordType.DATA, b"z" * MAX_EARLY_BODY),
        (RecordType.KEY_UPDATE, b""),
        (RecordType.KEY_UPDATE, b""),
        (RecordType.PAD, bytes(300)),
        (RecordType.DATA, b"w" * 70_000),
        (RecordType.FIN, FIN_BODY),
        (RecordType.PONG, b"87654321"),
    ]
    return b"".join(stream.sealer.seal(kind, body) for kind, body in events), events


def feed_by_room(stream: Stream, data: bytes, sizes: Iterator[int]) -> list[tuple[RecordType, bytes]]:
    """As a socket does: no more than there is room for, and any amount less."""
    got = []
    while data:
        room = stream.opener.room()
        n = min(len(room), len(data), next(sizes, len(data)))
        room[:n], data = data[:n], data[n:]
        stream.opener.received(n)
        while (record := stream.next()) is not None:
            got.append(record)
    return got


@given(sizes=st.lists(st.integers(1, 100_000), max_size=40))
@settings(deadline=None)
def test_any_chunking_gives_the_same_events(sizes: list[int]) -> None:
    stream = Stream()
    data, events = a_conversation(stream)
    assert feed_by_room(stream, data, iter(sizes)) == events
    assert stream.buffers.lent == 0


@given(cuts=st.lists(st.integers(0, 110_000), max_size=20).map(sorted))
@settings(deadline=None)
def test_any_chunking_of_bytes_in_memory_gives_the_same_events(cuts: list[int]) -> None:
    stream = Stream()
    data, events = a_conversation(stream)
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        got += stream.feed(data[start:end])
    assert got == events
    assert stream.buffers.lent == 0


def test_byte_by_byte_gives_the_same_events() -> None:
    stream = Stream()
    body = b"hello" * 100
    data = stream.sealer.seal(RecordType.DATA, body) + stream.sealer.seal(RecordType.FIN, FIN_BODY)
    got = [record for at in range(len(data)) for record in stream.feed(data[at : at + 1])]
    assert got == [(RecordType.DATA, body), (RecordType.FIN, FIN_BODY)]


# Memory


def test_a_buffer_is_borrowed_only_while_it_holds_bytes() -> None:
    stream = Stream()
    assert stream.buffers.lent == 0
    stream.opener.room()
    assert stream.buffers.lent == 1
    stream.opener.received(0)
    assert stream.buffers.lent == 0
    record = stream.sealer.seal(RecordType.DATA, b"hello")
    stream.opener.receive_data(record[:10])
    assert stream.next() is None
    assert stream.buffers.lent == 1
    assert stream.feed(record[10:]) == [(RecordType.DATA, b"hello")]
    assert stream.buffers.lent == 0


def test_room_ends_where_reading_on_would_cost_a_copy() -> None:
    stream = Stream()
    assert len(stream.opener.room()) == records.READ_AHEAD
    stream.opener.received(0)
    record = stream.sealer.seal(RecordType.DATA, bytes(MAX_BODY))
    stream.opener.receive_data(record[:HEADER])
    assert stream.next() is None
    assert len(stream.opener.room()) == len(record)  # the rest of this record, and the header of the next
    assert len(record) + HEADER == RECORD_SIZE


def test_what_is_complete_is_opened_before_more_is_read() -> None:
    stream = Stream()
    stream.opener.receive_data(stream.sealer.seal(RecordType.DATA, b"one"))
    with pytest.raises(LocalProtocolError):
        stream.opener.room()
    assert stream.next() == (RecordType.DATA, b"one")


def test_bytes_cannot_be_received_without_room() -> None:
    stream = Stream()
    with pytest.raises(LocalProtocolError):
        stream.opener.received(1)
    room = stream.opener.room()
    with pytest.raises(LocalProtocolError):
        stream.opener.received(len(room.obj) + 1)


def test_a_chunk_that_is_too_small_loses_nothing() -> None:
    stream = Stream()
    stream.opener.receive_data(stream.sealer.seal(RecordType.DATA, b"hello"))
    with pytest.raises(LocalProtocolError):
        stream.opener.open_into(stream.chunk[:5])
    assert stream.next() == (RecordType.DATA, b"hello")


def test_close_hands_the_buffer_back_and_drops_the_secrets() -> None:
    stream = Stream()
    stream.opener.receive_data(stream.sealer.seal(RecordType.DATA, b"hello")[:10])
    assert stream.next() is None
    for _ in range(2):
        stream.opener.close()
        stream.sealer.close()
    assert_dead(stream.opener, stream)
    assert stream.sealer._cipher is None
    with pytest.raises(LocalProtocolError):
        stream.sealer.seal(RecordType.PAD)
    with pytest.raises(LocalProtocolError):
        assert stream.sealer.needs_key_update


# Corruption


@given(data=st.data())
@settings(deadline=None)
def test_any_flipped_bit_of_a_record_ends_everything(data: st.DataObject) -> None:
    stream = Stream()
    wire = bytearray(stream.sealer.seal(RecordType.DATA, b"hello") + bytes(40))
    bit = data.draw(st.integers(8 * 2, 8 * (OVERHEAD + 5) - 1))
    wire[bit // 8] ^= 1 << bit % 8
    try:
        assert stream.feed(bytes(wire)) == []  # the length now promises bytes that are not here
    except RemoteProtocolError:
        assert_dead(stream.opener, stream)


@pytest.mark.parametrize("at", [HEADER, HEADER + 1, -TAG, -1])
def test_a_flipped_bit_of_the_body_or_its_tag_does_not_verify(at: int) -> None:
    stream = Stream()
    wire = bytearray(stream.sealer.seal(RecordType.DATA, b"hello"))
    wire[at] ^= 2
    with pytest.raises(RemoteProtocolError, match="does not verify"):
        stream.feed(bytes(wire))
    assert_dead(stream.opener, stream)


@given(garbage=st.binary(min_size=OVERHEAD + HEADER, max_size=2000))
@settings(deadline=None)
def test_garbage_is_a_protocol_error_and_nothing_else(garbage: bytes) -> None:
    stream = Stream()
    try:
        assert stream.feed(garbage) == []
    except RemoteProtocolError:
        assert_dead(stream.opener, stream)


@pytest.mark.parametrize("length", [0, 1, TAG, MAX_BODY + 1 + TAG + 1, 0xFFFFFF])
def test_an_impossible_length_is_refused_by_its_header_alone(length: int) -> None:
    stream = Stream()
    with pytest.raises(RemoteProtocolError):
        stream.feed(length.to_bytes(HEADER, "big"))
    assert_dead(stream.opener, stream)


def test_replayed_dropped_and_reordered_records_do_not_verify() -> None:
    for order in ((0, 0), (1,), (1, 0)):
        stream = Stream()
        wire = [stream.sealer.seal(RecordType.DATA, bytes([n])) for n in (1, 2)]
        with pytest.raises(RemoteProtocolError):
            stream.feed(b"".join(wire[n] for n in order))


def test_a_record_of_the_other_direction_or_key_does_not_verify() -> None:
    stream = Stream(opened=False)
    other = RecordSealer(b"t" * 32, F2R)
    with pytest.raises(RemoteProtocolError):
        stream.feed(other.seal(RecordType.PAD))


# Order


EVERY = [(direction, phase, kind) for direction in Direction for phase in Phase for kind in RecordType]


def bring_to(stream: Stream, direction: Direction, phase: Phase) -> bool:
    """Bring both ends to the phase; False where this direction has none."""
    way = {
        Phase.STANDBY: [],
        Phase.OPEN: [OPENING[direction]],
        Phase.STREAM: [OPENING[direction], (RecordType.DATA, b"x")],
        Phase.FLOWS: [OPENING[direction], (RecordType.FLOW_OPEN, body_of(RecordType.FLOW_OPEN))],
        Phase.FINISHED: [OPENING[direction], (RecordType.FIN, FIN_BODY)],
        Phase.REFUSED: [(RecordType.ERROR, Error(Reason.LIMIT, "").encode())],
        Phase.ABORTED: [(RecordType.RESET, Reset(None).encode())],
    }[phase]
    if phase is Phase.REFUSED and direction is F2R:
        return False  # only an agent refuses
    for kind, body in way:
        stream.feed(stream.sealer.seal(kind, body))
    assert stream.sealer.phase is stream.opener.phase is phase
    return True


@pytest.mark.parametrize(("direction", "phase", "kind"), EVERY)
def test_every_record_in_every_phase(direction: Direction, phase: Phase, kind: RecordType) -> None:
    stream = Stream(direction, opened=False)
    if not bring_to(stream, direction, phase):
        return
    allowed = (phase, kind) in TRANSITIONS[direction]
    if allowed:
        assert stream.feed(stream.sealer.seal(kind, body_of(kind))) == [(kind, body_of(kind))]
        assert stream.sealer.phase is stream.opener.phase is TRANSITIONS[direction][phase, kind]
        return
    body = body_of(kind) if kind in BODY_LENGTHS else b"x"
    with pytest.raises(LocalProtocolError):
        stream.sealer.seal(kind, body)
    with pytest.raises(RemoteProtocolError):
        stream.feed(forge(stream, kind, body))
    assert_dead(stream.opener, stream)


def test_the_rules_of_order_in_words() -> None:
    """The table, said once more: DATA or flows only between CONNECT or CONNECTED and FIN, never both; nothing after RESET; one answer."""
    for direction in Direction:
        table = TRANSITIONS[direction]
        data = {(phase, behind) for (phase, kind), behind in table.items() if kind is RecordType.DATA}
        assert data == {(Phase.OPEN, Phase.STREAM), (Phase.STREAM, Phase.STREAM)}
        flows = {(phase, behind) for (phase, kind), behind in table.items() if kind in FLOW_RECORDS}
        assert flows == {(Phase.OPEN, Phase.FLOWS), (Phase.FLOWS, Phase.FLOWS)}
        assert {phase for phase, kind in table if kind is RecordType.DGRAM} == {Phase.FLOWS}  # a flow has been opened before
        assert {phase for phase, kind in table if kind is RecordType.FIN} == {Phase.OPEN, Phase.STREAM, Phase.FLOWS}
        assert not [kind for phase, kind in table if phase is Phase.ABORTED]
        assert not [kind for _, kind in table if kind in RESERVED]
    assert (Phase.OPEN, RecordType.FLOW_CLOSE) not in TRANSITIONS[F2R]  # there is nothing to close yet
    assert (Phase.OPEN, RecordType.FLOW_CLOSE) in TRANSITIONS[R2F]  # the first flow is refused
    assert [phase for phase, kind in TRANSITIONS[F2R] if kind is RecordType.CONNECT] == [Phase.STANDBY]
    assert not [kind for _, kind in TRANSITIONS[F2R] if kind in (RecordType.CONNECTED, RecordType.ERROR)]
    assert not [kind for _, kind in TRANSITIONS[R2F] if kind is RecordType.CONNECT]
    for answer in (RecordType.CONNECTED, RecordType.ERROR):
        assert [phase for phase, kind in TRANSITIONS[R2F] if kind is answer] == [Phase.STANDBY]


@pytest.mark.parametrize("kind", [*RESERVED, 0x00, 0x7F, 0xFF])
def test_reserved_and_unknown_types_are_refused(kind: int) -> None:
    stream = Stream()
    with pytest.raises(RemoteProtocolError):
        stream.feed(forge(stream, kind, b"x"))
    assert_dead(stream.opener, stream)


LENGTHS = [(kind, limit) for kind, limits in BODY_LENGTHS.items() for limit in (limits[0] - 1, limits[1] + 1) if 0 <= limit <= MAX_BODY]


@pytest.mark.parametrize(("kind", "length"), [*LENGTHS, (RecordType.CONNECT, PAD_BLOCK + 1)])
def test_a_body_outside_its_lengths_is_refused_at_both_ends(kind: RecordType, length: int) -> None:
    direction = F2R if kind is RecordType.CONNECT else R2F
    phase = next(phase for phase, each in TRANSITIONS[direction] if each is kind)
    stream = Stream(direction, opened=False)
    assert bring_to(stream, direction, phase)
    assert not fits(kind, length)
    with pytest.raises(LocalProtocolError):
        stream.sealer.seal(kind, bytes(length))
    with pytest.raises(RemoteProtocolError):
        stream.feed(forge(stream, kind, bytes(length)))


def test_nothing_above_256_kib_is_sealed() -> None:
    with pytest.raises(LocalProtocolError):
        Stream().sealer.seal(RecordType.DATA, bytes(MAX_BODY + 1))


def test_unknown_flags_of_fin_are_for_later_versions_and_mean_nothing_here() -> None:
    stream = Stream()
    assert stream.feed(stream.sealer.seal(RecordType.FIN, b"\xff")) == [(RecordType.FIN, b"\xff")]


# Before the peer is authenticated


def test_before_authentication_large_records_are_neither_sealed_nor_accepted() -> None:
    stream = Stream(early=True)
    assert stream.feed(stream.sealer.seal(RecordType.DATA, bytes(MAX_EARLY_BODY))) == [(RecordType.DATA, bytes(MAX_EARLY_BODY))]
    with pytest.raises(LocalProtocolError):
        stream.sealer.seal(RecordType.DATA, bytes(MAX_EARLY_BODY + 1))
    with pytest.raises(RemoteProtocolError):
        stream.feed((MAX_EARLY_BODY + 1 + 1 + TAG).to_bytes(HEADER, "big"))
    assert_dead(stream.opener, stream)


def test_authentication_lifts_the_limit() -> None:
    stream = Stream(early=True)
    stream.sealer.peer_authenticated()
    stream.opener.peer_authenticated()
    assert stream.feed(stream.sealer.seal(RecordType.DATA, bytes(MAX_BODY))) == [(RecordType.DATA, bytes(MAX_BODY))]


# Growth


def test_records_grow_with_what_was_sent_and_with_a_socket_that_takes_them_whole() -> None:
    sealer = Stream().sealer
    sent = PAD_BLOCK  # CONNECT
    while sent < GROWTH_BYTES:
        assert sealer.chunk_limit == MAX_EARLY_BODY
        sealer.seal(RecordType.DATA, bytes(MAX_EARLY_BODY))
        sent += MAX_EARLY_BODY
    assert sealer.chunk_limit == GROWN_CHUNK
    sealer.whole_writes(True)
    assert sealer.chunk_limit == MAX_BODY
    sealer.whole_writes(False)
    assert sealer.chunk_limit == GROWN_CHUNK
    sealer.restart_growth()
    assert sealer.chunk_limit == MAX_EARLY_BODY


def test_records_do_not_grow_before_the_peer_is_authenticated() -> None:
    sealer = Stream(early=True).sealer
    sealer.whole_writes(True)
    for _ in range(8):
        sealer.seal(RecordType.DATA, bytes(MAX_EARLY_BODY))
    assert sealer.chunk_limit == MAX_EARLY_BODY
    sealer.peer_authenticated()
    assert sealer.chunk_limit == MAX_BODY


# Keys


class Spy:
    """Notes every (key, nonce) that seals."""

    used: set[tuple[bytes, bytes]]

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._real = REAL_CIPHER(key)

    def _note(self, nonce: bytes) -> None:
        assert (self._key, nonce) not in Spy.used, "a nonce was used twice"
        Spy.used.add((self._key, nonce))

    def encrypt(self, nonce: bytes, data: Any, aad: Any) -> bytes:
        self._note(nonce)
        return self._real.encrypt(nonce, data, aad)

    def encrypt_into(self, nonce: bytes, data: Any, aad: Any, out: Any) -> int:
        self._note(nonce)
        return self._real.encrypt_into(nonce, data, aad, out)


REAL_CIPHER = records.ChaCha20Poly1305
STEPS = st.lists(st.sampled_from(["data", "into", "too small", "too large", "update", "out of order", "ping"]), max_size=60)


@given(steps=STEPS)
@settings(deadline=None)
def test_no_key_and_nonce_twice_whatever_goes_wrong_between(steps: list[str]) -> None:
    Spy.used = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "ChaCha20Poly1305", Spy)
        chunk, out = memoryview(bytearray(100)), memoryview(bytearray(200))
        for direction, secret in ((F2R, b"s" * 32), (R2F, b"t" * 32)):
            sealer = RecordSealer(secret, direction)
            sealer.seal(*OPENING[direction])
            for step in steps:
                match step:
                    case "data":
                        sealer.seal(RecordType.DATA, b"x")
                    case "into":
                        sealer.seal_into(chunk, 99, RecordType.DATA, out)
                    case "too small":
                        with pytest.raises(LocalProtocolError):
                            sealer.seal_into(chunk, 99, RecordType.DATA, out[:100])
                    case "too large":
                        with pytest.raises(LocalProtocolError):
                            sealer.seal(RecordType.PING, b"x" * 9)
                    case "update":
                        sealer.key_update()
                    case "out of order":
                        with pytest.raises(LocalProtocolError):
                            sealer.seal(*OPENING[direction])
                    case "ping":
                        sealer.seal(RecordType.PING, b"12345678")
    good = sum(step in ("data", "into", "update", "ping") for step in steps)
    assert len(Spy.used) == 2 * (1 + good)


def test_a_key_update_starts_anew_and_cannot_be_turned_back() -> None:
    stream = Stream()
    cipher = stream.sealer._cipher
    assert cipher is not None
    before, old = cipher._secret, cipher.aead
    stream.feed(stream.sealer.seal(RecordType.DATA, b"x"))
    assert stream.feed(stream.sealer.key_update()) == [(RecordType.KEY_UPDATE, b"")]
    assert (cipher.records, cipher.bytes) == (0, 0)
    assert cipher._secret != before
    assert cipher.aead is not old
    assert stream.feed(stream.sealer.seal(RecordType.DATA, b"y")) == [(RecordType.DATA, b"y")]


def test_key_update_through_a_buffer_moves_on_too() -> None:
    stream = Stream()
    out = memoryview(bytearray(OVERHEAD))
    length = stream.sealer.seal_into(memoryview(bytearray(1)), 0, RecordType.KEY_UPDATE, out)
    assert stream.feed(bytes(out[:length]) + stream.sealer.seal(RecordType.DATA, b"y"))[-1] == (RecordType.DATA, b"y")


def test_a_key_is_due_for_an_update_after_its_share() -> None:
    for name, share in (("records", KEY_UPDATE_RECORDS), ("bytes", KEY_UPDATE_BYTES)):
        sealer = Stream().sealer
        setattr(sealer._cipher, name, share - 1)
        assert not sealer.needs_key_update
        setattr(sealer._cipher, name, share)
        assert sealer.needs_key_update
        sealer.key_update()
        assert not sealer.needs_key_update


@pytest.mark.parametrize(("name", "limit"), [("records", MAX_KEY_RECORDS), ("bytes", MAX_KEY_BYTES)])
def test_a_worn_out_key_seals_and_opens_nothing_but_its_update(name: str, limit: int) -> None:
    for last in (limit - 1, limit):
        stream = Stream()
        for cipher in (stream.sealer._cipher, stream.opener._cipher):
            setattr(cipher, name, last)
        if last < limit:
            assert stream.feed(stream.sealer.seal(RecordType.DATA, b"x")) == [(RecordType.DATA, b"x")]
        with pytest.raises(LocalProtocolError):
            stream.sealer.seal(RecordType.DATA, b"x")
        assert stream.feed(stream.sealer.key_update()) == [(RecordType.KEY_UPDATE, b"")]
        assert stream.feed(stream.sealer.seal(RecordType.DATA, b"y")) == [(RecordType.DATA, b"y")]


def test_a_peer_that_goes_on_with_a_worn_out_key_is_refused() -> None:
    stream = Stream()
    for cipher in (stream.sealer._cipher, stream.opener._cipher):
        assert cipher is not None
        cipher.records = MAX_KEY_RECORDS
    with pytest.raises(RemoteProtocolError):
        stream.feed(forge(stream, RecordType.DATA, b"x"))
    assert_dead(stream.opener, stream)


# The end


@pytest.mark.parametrize("phase", [Phase.FINISHED, Phase.REFUSED, Phase.ABORTED])
def test_an_end_behind_the_last_word_is_an_end(phase: Phase) -> None:
    stream = Stream(R2F, opened=False)
    assert bring_to(stream, R2F, phase)
    assert stream.opener.fin_received is (phase is Phase.FINISHED)
    stream.opener.receive_eof()
    assert_dead(stream.opener, stream)


@pytest.mark.parametrize("phase", [Phase.STANDBY, Phase.OPEN, Phase.STREAM, Phase.FLOWS])
def test_an_end_without_a_last_word_is_truncation(phase: Phase) -> None:
    stream = Stream(R2F, opened=False)
    assert bring_to(stream, R2F, phase)
    with pytest.raises(Failure) as failure:
        stream.opener.receive_eof()
    assert failure.value.reason is Reason.TUNNEL_LOST
    assert_dead(stream.opener, stream)


def test_a_record_that_is_cut_is_truncation_even_behind_fin() -> None:
    stream = Stream()
    stream.feed(stream.sealer.seal(RecordType.FIN, FIN_BODY))
    stream.feed(stream.sealer.seal(RecordType.PING, b"12345678")[:-1])
    with pytest.raises(Failure):
        stream.opener.receive_eof()
    assert_dead(stream.opener, stream)

"""What may be said on a hop connection, and when: every rule of docs/spec/tunnel.md section 3, from both ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.relay.hops import AGENT, IDENTITY, LIMITS, NOW, OBSERVED, OFFER, OPEN, channels, cut, opening, tell
from tuunel.errors import LocalProtocolError, Reason, RemoteProtocolError
from tuunel.hkdf import AeadKey
from tuunel.relay.framing import MAX_RECORD, Sealer
from tuunel.relay.protocol import RULES, HopChannel, State, may_carry
from tuunel.relay.wire import (
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
    PairedAgent,
    PairedForward,
    Params,
    Ping,
    Pong,
    Purpose,
    Role,
    Side,
    Switch,
    Unenrol,
    Welcome,
    encode_message,
)

PING, PONG = Ping(b"12345678"), Pong(b"12345678")
PAIRED_AGENT = PairedAgent(IDENTITY.public_bytes, OPEN)


def forced(channel: HopChannel, message: Message) -> bytes:
    """A genuine record that this end would never send: the other end must refuse it by itself."""
    return channel._sealer.seal(encode_message(message))


def test_only_agents_wait_and_only_forward_proxies_dial() -> None:
    allowed = {(purpose, role) for purpose in Purpose for role in Role if may_carry(purpose, role)}
    assert allowed == {
        (Purpose.CONTROL, Role.AGENT),
        (Purpose.CONTROL, Role.FORWARD),
        (Purpose.READY, Role.AGENT),
        (Purpose.DIAL, Role.FORWARD),
    }


def test_what_one_end_may_say_the_other_end_takes() -> None:
    for (side, purpose, role), states in RULES.items():
        if side is Side.DEVICE:
            peer = RULES[Side.RELAY, purpose, role]
            for state, (send, receive) in states.items():
                their_send, their_receive = peer[state]
                assert send.items() <= their_receive.items()
                assert their_send.items() <= receive.items()


# CONTROL


@pytest.mark.parametrize(
    "message",
    [
        PING,
        PONG,
        Admission(True, True, False, (AGENT.device_id,), (b"invite-1",), (IDENTITY.device_id,)),
        Mint(1, bytes(32), b"invite-1", 1, 1_800_000_900),
        DropToken(bytes(32)),
        Unenrol(IDENTITY.device_id),
    ],
)
def test_an_agent_says_on_control(message: Message) -> None:
    d, r = channels(Purpose.CONTROL)
    tell(d, r, message)
    with pytest.raises(LocalProtocolError):
        channels(Purpose.CONTROL)[0].send(Open(OPEN))


@pytest.mark.parametrize(
    "message", [PING, PONG, Demand(4), Minted(1), Minted(1, Reason.QUOTA, 3, "no"), Notice(Reason.QUOTA, "abcdefgh", "x")]
)
def test_the_relay_says_on_control(message: Message) -> None:
    d, r = channels(Purpose.CONTROL)
    tell(r, d, message)


def test_an_error_on_control_is_the_relays_last_word() -> None:
    d, r = channels(Purpose.CONTROL)
    tell(r, d, HopError(Reason.DUPLICATE_DEVICE, 0, "another agent is alive"))
    assert d.state is r.state is State.CLOSED
    for channel in (d, r):
        with pytest.raises(LocalProtocolError):
            channel.send(PING)
    d.receive_data(b"anything")
    assert d.next_event() is None


@pytest.mark.parametrize("message", [Unenrol(IDENTITY.device_id), Mint(1, bytes(32), bytes(8), 1, 1), Admission(True, True, True)])
def test_a_forward_proxy_has_no_say_in_admission(message: Message) -> None:
    d, r = channels(Purpose.CONTROL, params=Params(Role.FORWARD, bytes(16)))
    with pytest.raises(LocalProtocolError):
        d.send(message)
    r.receive_data(forced(d, message))
    with pytest.raises(RemoteProtocolError, match="not allowed"):
        r.next_event()


# DIAL


def test_an_open_is_answered_by_a_pair_and_the_rest_is_the_tunnels() -> None:
    d, r = opening()
    tell(r, d, PairedForward(OFFER))
    assert d.state is r.state is State.PIPE
    for channel in (d, r):
        assert (channel.trailing_data, channel.bytes_wanted) == (b"", 0)
        with pytest.raises(LocalProtocolError):
            channel.next_event()
        with pytest.raises(LocalProtocolError):
            channel.send(PING)


def test_after_an_error_the_connection_may_open_again() -> None:
    d, r = opening()
    tell(r, d, HopError(Reason.PEER_UNAVAILABLE))
    tell(d, r, PING)
    tell(r, d, PONG)
    tell(d, r, Open(OPEN))
    tell(r, d, PairedForward(OFFER))


@pytest.mark.parametrize("message", [PING, PONG, Open(OPEN)])
def test_from_open_to_its_answer_the_forward_proxy_says_nothing(message: Message) -> None:
    d, r = opening()
    with pytest.raises(LocalProtocolError):
        d.send(message)
    r.receive_data(forced(d, message))
    with pytest.raises(RemoteProtocolError, match="not answered yet"):
        r.next_event()


def test_a_ping_that_crosses_an_open_is_never_answered() -> None:
    d, r = channels(Purpose.DIAL)
    crossing = r.send(PING)
    tell(d, r, Open(OPEN))
    d.receive_data(crossing + r.send(HopError(Reason.OPEN_TIMEOUT)))
    assert d.next_event() == HopError(Reason.OPEN_TIMEOUT)
    assert d.next_event() is None


def test_an_error_answers_exactly_one_open() -> None:
    d, r = channels(Purpose.DIAL)
    with pytest.raises(LocalProtocolError):
        r.send(HopError(Reason.PEER_UNAVAILABLE))
    d.receive_data(forced(r, HopError(Reason.PEER_UNAVAILABLE)))
    with pytest.raises(RemoteProtocolError):
        d.next_event()


def test_a_pair_without_an_open_is_refused() -> None:
    d, r = channels(Purpose.DIAL)
    d.receive_data(forced(r, PairedForward(OFFER)))
    with pytest.raises(RemoteProtocolError):
        d.next_event()


def test_the_tunnels_first_bytes_may_come_with_the_pair() -> None:
    d, r = opening()
    d.receive_data(r.send(PairedForward(OFFER)) + b"the tunnel's")
    assert d.next_event() == PairedForward(OFFER)
    d.receive_data(b" own")
    assert d.trailing_data == b"the tunnel's own"
    d.receive_eof()


# READY


def waiting() -> tuple[HopChannel, HopChannel]:
    d, r = channels(Purpose.READY, first=[Offer(OFFER)])
    assert r.next_event() == Offer(OFFER)
    return d, r


def test_an_offer_is_taken_and_switched() -> None:
    d, r = waiting()
    tell(d, r, PING)
    tell(r, d, PONG)
    tell(r, d, PAIRED_AGENT)
    assert d.trailing_data == b""
    tell(d, r, Switch())
    assert d.state is r.state is State.PIPE


def test_a_ping_in_flight_when_the_pair_crosses_is_let_pass() -> None:
    d, r = waiting()
    in_flight = d.send(PING) + d.send(PONG)
    tell(r, d, PAIRED_AGENT)
    r.receive_data(in_flight + d.send(Switch()) + b"accept")
    assert r.next_event() == Switch()
    assert r.trailing_data == b"accept"


def test_behind_the_pair_come_the_tunnels_bytes_even_before_switch() -> None:
    d, r = waiting()
    d.receive_data(r.send(PAIRED_AGENT) + b"init")
    assert d.next_event() == PAIRED_AGENT
    assert (d.trailing_data, d.bytes_wanted) == (b"init", 0)
    d.send(Switch())
    assert d.trailing_data == b"init"


@pytest.mark.parametrize("message", [PING, PONG, Offer(OFFER)])
def test_after_the_pair_the_agent_owes_switch_and_nothing_else(message: Message) -> None:
    d, r = waiting()
    tell(r, d, PAIRED_AGENT)
    with pytest.raises(LocalProtocolError):
        d.send(message)
    d.send(Switch())
    with pytest.raises(LocalProtocolError):
        d.send(message)


def test_after_the_pair_the_relay_says_nothing() -> None:
    _, r = waiting()
    r.send(PAIRED_AGENT)
    for message in (PING, HopError(Reason.SHUTDOWN), PAIRED_AGENT):
        with pytest.raises(LocalProtocolError):
            r.send(message)
    with pytest.raises(LocalProtocolError):
        _ = r.trailing_data


def test_one_connection_carries_one_offer() -> None:
    d, r = waiting()
    with pytest.raises(LocalProtocolError):
        d.send(Offer(OFFER))
    r.receive_data(forced(d, Offer(OFFER)))
    with pytest.raises(RemoteProtocolError):
        r.next_event()


def test_nothing_is_paired_without_an_offer() -> None:
    d, r = channels(Purpose.READY)
    with pytest.raises(LocalProtocolError):
        r.send(PAIRED_AGENT)
    d.receive_data(forced(r, PAIRED_AGENT))
    with pytest.raises(RemoteProtocolError):
        d.next_event()


# Records


def test_the_relays_first_word_is_its_verdict() -> None:
    keys = AeadKey(bytes(32), bytes(12))
    r = HopChannel(Side.RELAY, Purpose.CONTROL, Role.AGENT, send_key=keys, receive_key=keys)
    for message in (PING, Demand(1)):
        with pytest.raises(LocalProtocolError):
            r.send(message)
    d = HopChannel(Side.DEVICE, Purpose.CONTROL, Role.AGENT, send_key=keys, receive_key=keys)
    d.receive_data(Sealer(keys).seal(encode_message(PING)))
    with pytest.raises(RemoteProtocolError, match="not allowed"):
        d.next_event()


def test_there_is_one_welcome() -> None:
    d, r = channels(Purpose.CONTROL)
    welcome = Welcome(IDENTITY.device_id, OBSERVED, NOW, LIMITS)
    with pytest.raises(LocalProtocolError):
        r.send(welcome)
    with pytest.raises(LocalProtocolError):
        d.send(welcome)
    d.receive_data(forced(r, welcome))
    with pytest.raises(RemoteProtocolError):
        d.next_event()


def test_a_message_that_may_not_be_sent_changes_nothing() -> None:
    d, r = channels(Purpose.DIAL)
    with pytest.raises(LocalProtocolError):
        d.send(Offer(OFFER))
    tell(d, r, PING)


@pytest.mark.parametrize("spoil", [lambda x, y: y, lambda x, y: x + x, lambda x, y: y + x, lambda x, y: x[:-1] + bytes([x[-1] ^ 1])])
def test_a_lost_doubled_swapped_or_changed_record_closes_the_channel(spoil) -> None:
    d, r = channels(Purpose.CONTROL)
    r.receive_data(spoil(d.send(PING), d.send(PONG)))
    with pytest.raises(RemoteProtocolError, match="not genuine"):
        while r.next_event() is not None:
            pass
    assert r.state is State.CLOSED
    assert r.next_event() is None


@given(st.lists(st.integers(0, 400), max_size=10))
def test_any_chunking_gives_the_same_messages_and_trailing_data(points: list[int]) -> None:
    d, r = waiting()
    wire = d.send(PING) + d.send(PONG)
    tell(r, d, PAIRED_AGENT)
    wire += d.send(Switch()) + b"tunnel"
    events: list[Message] = []
    for piece in cut(wire, points):
        r.receive_data(piece)
        while r.state is not State.PIPE and (event := r.next_event()) is not None:
            events.append(event)
    assert (events, r.trailing_data) == ([Switch()], b"tunnel")


@given(st.lists(st.sampled_from([PING, PONG, Demand(9), Notice(Reason.INTERNAL, "", "x" * 200)]), max_size=8))
def test_reading_exact_sizes_never_reads_ahead(messages: list[Message]) -> None:
    d, r = channels(Purpose.CONTROL)
    wire = b"".join(map(r.send, messages))
    read = []
    while wire:
        wanted = d.bytes_wanted
        assert 0 < wanted <= len(wire)
        d.receive_data(wire[:wanted])
        wire = wire[wanted:]
        read += filter(None, [d.next_event()])
    assert read == messages


def test_an_end_of_file_between_records_is_clean_and_inside_one_is_not() -> None:
    d, r = channels(Purpose.CONTROL)
    r.receive_eof()
    r.receive_data(d.send(PING)[:-1])
    assert r.next_event() is None
    with pytest.raises(RemoteProtocolError, match="inside a record"):
        r.receive_eof()
    assert r.state is State.CLOSED


@pytest.mark.parametrize("length", [0, 16, MAX_RECORD + 1, 65535])
def test_a_record_length_that_cannot_be_is_refused_before_its_bytes_arrive(length: int) -> None:
    _, r = channels(Purpose.CONTROL)
    r.receive_data(length.to_bytes(2))
    with pytest.raises(RemoteProtocolError, match="outside"):
        r.next_event()


@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_are_only_ever_a_protocol_error(data: bytes, genuine: bool) -> None:
    for purpose in Purpose:
        d, r = channels(purpose)
        r.receive_data(d._sealer.seal(data) if genuine else data)
        try:
            while r.next_event() is not None:
                pass
        except RemoteProtocolError:
            assert r.state is State.CLOSED

"""Hop records and messages at both ends, and the gate in front of the relay."""

from ipaddress import ip_address
from typing import Final

from tests.fuzz.harness import Choices, harness, pieces, record
from tests.relay import hops
from tuunel.errors import LocalProtocolError, Reason, RemoteProtocolError
from tuunel.hkdf import AeadKey
from tuunel.relay.framing import MAX_PLAINTEXT, MAX_RECORD, Sealer
from tuunel.relay.gate import FREE_SHARE, Gate, TokenBuckets, prefix_of
from tuunel.relay.protocol import RULES, HopChannel, State
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
    Ping,
    Pong,
    Side,
    Switch,
    Unenrol,
    Welcome,
    encode_message,
)

_OURS: Final = AeadKey(b"o" * 32, b"o" * 12)
_THEIRS: Final = AeadKey(b"t" * 32, b"t" * 12)
_CONVERSATIONS: Final = tuple(RULES)
_SAMPLES: Final[tuple[Message, ...]] = (
    Welcome(hops.IDENTITY.device_id, hops.OBSERVED, hops.NOW, hops.LIMITS),
    HopError(Reason.RATE_LIMITED, 3, "later"),
    Ping(b"12345678"),
    Pong(b"12345678"),
    Offer(hops.OFFER),
    Open(hops.OPEN),
    Open(hops.OPEN_WITH_INVITE),
    PairedForward(hops.OFFER),
    PairedAgent(hops.AGENT.public_bytes, hops.OPEN),
    Switch(),
    Admission(first=True, last=True, enrolled=False, paired=(hops.AGENT.device_id,), invites=(b"invite-1",)),
    Demand(3),
    Mint(1, bytes(32), b"invite-1", 1, hops.NOW),
    Minted(1, Reason.QUOTA, 0, "no more"),
    DropToken(bytes(32)),
    Unenrol(hops.AGENT.device_id),
    Notice(Reason.PEER_UNAVAILABLE, "abcdefgh", "gone"),
)
_KINDS: Final = tuple(dict.fromkeys(map(type, _SAMPLES)))
_PLACES: Final = 20  #: of the gate: few enough for an input to fill
_HEAR, _HEAR_RAW, _SAY = range(3)  # the steps of a conversation


def _channel(choices: Choices) -> HopChannel:
    channel = HopChannel(*_CONVERSATIONS[choices.byte() % len(_CONVERSATIONS)], send_key=_OURS, receive_key=_THEIRS)
    if channel._side is Side.RELAY:  # it speaks first
        channel.send(_SAMPLES[0])
    return channel


def _conversation(index: int, *messages: Message) -> bytes:
    """The seed in which the channel of that index hears these messages."""
    return bytes([index, 0]) + b"".join(bytes([_HEAR]) + record(encode_message(message)) for message in messages)


@harness(
    max_length=3000,
    seeds=[
        *(_conversation(index, *_SAMPLES[:1], message) for index in range(len(RULES)) for message in _SAMPLES[1:]),
        *(bytes([index, 0, _HEAR]) + record(encode_message(message) + b"x") for index in range(len(RULES)) for message in _SAMPLES),
        *(_conversation(index, message) for index in range(len(RULES)) for message in _SAMPLES[1:]),
        bytes([6, 0])
        + bytes([_HEAR])
        + record(encode_message(_SAMPLES[0]))
        + bytes([_SAY, 5, _HEAR])
        + record(encode_message(_SAMPLES[7])),
    ],
)
def hop_messages(data: bytes) -> None:
    """Genuine records with any content, in any order, are messages in their one spelling that the rules allow, or RemoteProtocolError."""
    choices = Choices(data)
    channel, size, peer = _channel(choices), choices.byte(), Sealer(_THEIRS)
    while choices:
        step = choices.byte() % 3
        if step == _SAY:
            try:
                channel.send(_SAMPLES[choices.byte() % len(_SAMPLES)])
            except LocalProtocolError:
                continue
        else:
            plaintext = choices.take(min(choices.number(2), MAX_PLAINTEXT))
            if not _hear(channel, peer.seal(plaintext) if step == _HEAR else plaintext, plaintext, size):
                return


def _hear(channel: HopChannel, wire: bytes, plaintext: bytes, size: int) -> bool:
    """Feed what came; whether the conversation goes on."""
    for piece in pieces(wire, size):
        if channel._receiving_is_over:
            before = channel.trailing_data
            channel.receive_data(piece)
            assert channel.trailing_data == before + piece, "behind the last hop record every byte is the tunnel's"
            continue
        channel.receive_data(piece)
        try:
            event = channel.next_event()
        except RemoteProtocolError:
            _check_dead(channel)
            return False
        if event is not None:
            assert isinstance(event, _KINDS)
            assert encode_message(event) == plaintext, "two spellings of one message"
        elif channel.state is not State.CLOSED:
            assert channel.bytes_wanted <= MAX_RECORD
            assert len(channel._frames) < 2 + MAX_RECORD
    return channel.state is not State.CLOSED


def _check_dead(channel: HopChannel) -> None:
    assert channel.state is State.CLOSED
    assert not len(channel._frames), "a dead channel holds nothing"
    assert channel.next_event() is None
    try:
        channel.send(_SAMPLES[2])
    except LocalProtocolError:
        return
    raise AssertionError("a dead channel speaks")


@harness(
    max_length=2000,
    seeds=[bytes([index, 5]) + Sealer(_OURS).seal(encode_message(message)) for index in (0, 1, 5, 6) for message in _SAMPLES[::4]],
)
def hop_records(data: bytes) -> None:
    """Bytes of whoever does not hold the key are never a message: the channel waits for at most one record, or dies."""
    choices = Choices(data)
    channel, size = _channel(choices), choices.byte()
    for piece in pieces(choices.rest(), size):
        channel.receive_data(piece)
        try:
            assert channel.next_event() is None
        except RemoteProtocolError:
            return _check_dead(channel)
        assert len(channel._frames) < 2 + MAX_RECORD
    return None


@harness(
    max_length=120,
    seeds=[bytes(range(60)), b"\0\1\2\3" * 40, b"\3" + bytes(16) + b"\3\xff\xff" + bytes(20), bytes([0, 0, 1, 0, 0, 0]) * 20],
)
def gate(data: bytes) -> None:
    """Whoever knocks from any address, in any order: who is inside is counted, no prefix takes over its share, buckets fill up again."""
    choices, now = Choices(data), 0.0
    inside: list[str] = []
    door = Gate(lambda: now, places=_PLACES)
    buckets = TokenBuckets(lambda: now, rate=1.0, burst=2, max_keys=4)
    taken: dict[object, int] = {}
    while choices:
        step, prefix = choices.byte(), _prefix(choices)
        if step % 4 == 0:
            held, free = inside.count(prefix), _PLACES - len(inside)
            entered = door.enter(prefix)
            assert entered == (held * FREE_SHARE < free), "a newcomer is refused only at the last place"
            inside += [prefix] * entered
        elif step % 4 == 1 and inside:
            door.leave(inside.pop())
        elif step % 4 == 2:
            taken[prefix] = taken.get(prefix, 0) + buckets.take(prefix)
            assert taken[prefix] <= 2 * (2 + now), "its own bucket's, and the shared one's while there was no room for its own"
        else:
            now += step
            door.welcome(prefix)
        assert door.unproven == len(inside) <= _PLACES
        assert len(buckets) <= 5, "the shared bucket is one more"
    for prefix in inside:
        door.leave(prefix)
    for prefix in inside[:1]:
        assert prefix_of(prefix.partition("/")[0]) == prefix
    assert door.unproven == 0
    assert not door._unproven
    now += 1e6
    assert all(buckets.take(key) for key in list(buckets._levels))


def _prefix(choices: Choices) -> str:
    length = 16 if choices.byte() % 2 else 4
    return prefix_of(str(ip_address(choices.take(length).ljust(length, b"\0"))))

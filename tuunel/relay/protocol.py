"""What a device and the relay may say to each other once the handshake is done, and when: docs/spec/tunnel.md section 3.

The rules are the tables below, one for each end and purpose: in this state, these messages may go out and these may come
in, and lead to that state. Everything else is an error - of the peer when it comes in, of our own code when it goes out.
"""

from enum import Enum, auto
from typing import Final

from tuunel.errors import LocalProtocolError, RemoteProtocolError
from tuunel.hkdf import AeadKey
from tuunel.relay.framing import MAX_RECORD, TAG, Frames, Opener, Sealer
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
    Purpose,
    Role,
    Side,
    Switch,
    Unenrol,
    Welcome,
    decode_message,
    encode_message,
)


class State(Enum):
    """Where a hop connection stands."""

    IDLE = auto()
    OFFERED = auto()  #: READY: an OFFER lies at the relay
    OPENING = auto()  #: DIAL: an OPEN waits for its one answer
    PAIRED = auto()  #: READY: the relay has said its last word, the agent owes SWITCH
    PIPE = auto()  #: no hop record any more, either way
    CLOSED = auto()  #: refused, ended or broken


Moves = dict[type[Message], State]
Rules = dict[State, tuple[Moves, Moves]]  #: state -> (may send, may receive)

_IDLE: Final[Moves] = {Ping: State.IDLE, Pong: State.IDLE}
_OFFERED: Final[Moves] = {Ping: State.OFFERED, Pong: State.OFFERED}
_OPENING: Final[Moves] = {Ping: State.OPENING, Pong: State.OPENING}
_PAIRED: Final[Moves] = {Ping: State.PAIRED, Pong: State.PAIRED}
_ENDS: Final[Moves] = {HopError: State.CLOSED}


def _stay(*messages: type[Message]) -> Moves:
    return dict.fromkeys(messages, State.IDLE)


_FROM_AGENT: Final = _IDLE | _stay(Admission, Mint, DropToken, Unenrol)
_TO_AGENT: Final = _IDLE | _stay(Demand, Minted, Notice) | _ENDS
_TO_FORWARD: Final = _IDLE | _stay(Demand, Notice) | _ENDS

# A PING may cross an OPEN or a PAIRED on the wire: where it can arrive and may not be answered, it is in `_UNANSWERED`.
RULES: Final[dict[tuple[Side, Purpose, Role], Rules]] = {
    (Side.DEVICE, Purpose.CONTROL, Role.AGENT): {State.IDLE: (_FROM_AGENT, _TO_AGENT)},
    (Side.RELAY, Purpose.CONTROL, Role.AGENT): {State.IDLE: (_TO_AGENT, _FROM_AGENT)},
    (Side.DEVICE, Purpose.CONTROL, Role.FORWARD): {State.IDLE: (_IDLE, _TO_FORWARD)},
    (Side.RELAY, Purpose.CONTROL, Role.FORWARD): {State.IDLE: (_TO_FORWARD, _IDLE)},
    (Side.DEVICE, Purpose.READY, Role.AGENT): {
        State.IDLE: (_IDLE | {Offer: State.OFFERED}, _IDLE | _ENDS),
        State.OFFERED: (_OFFERED, _OFFERED | {PairedAgent: State.PAIRED} | _ENDS),
        State.PAIRED: ({Switch: State.PIPE}, {}),
    },
    (Side.RELAY, Purpose.READY, Role.AGENT): {
        State.IDLE: (_IDLE | _ENDS, _IDLE | {Offer: State.OFFERED}),
        State.OFFERED: (_OFFERED | {PairedAgent: State.PAIRED} | _ENDS, _OFFERED),
        State.PAIRED: ({}, _PAIRED | {Switch: State.PIPE}),
    },
    (Side.DEVICE, Purpose.DIAL, Role.FORWARD): {
        State.IDLE: (_IDLE | {Open: State.OPENING}, _IDLE),
        State.OPENING: ({}, _OPENING | {HopError: State.IDLE, PairedForward: State.PIPE}),
    },
    (Side.RELAY, Purpose.DIAL, Role.FORWARD): {
        State.IDLE: (_IDLE, _IDLE | {Open: State.OPENING}),
        State.OPENING: (_OPENING | {HopError: State.IDLE, PairedForward: State.PIPE}, {}),
    },
}
_UNANSWERED: Final = {(Side.DEVICE, State.OPENING), (Side.RELAY, State.PAIRED)}
_NO_MOVES: Final[tuple[Moves, Moves]] = ({}, {})


def may_carry(purpose: Purpose, role: Role) -> bool:
    """Whether a device in that role opens connections for that purpose: only agents wait (READY), only forward proxies dial (DIAL)."""
    return (Side.RELAY, purpose, role) in RULES


class HopChannel:
    """One hop connection after the handshake, at either end: sealed messages both ways, in the order that the tables allow.

    After a RemoteProtocolError the channel is closed. Once the hop records have ended (`PAIRED` and `SWITCH`) the rest of
    the connection belongs to the tunnel: take `trailing_data` as its first bytes and leave the channel alone.
    """

    def __init__(self, side: Side, purpose: Purpose, role: Role, *, send_key: AeadKey, receive_key: AeadKey) -> None:
        self._side = side
        self._rules = RULES[side, purpose, role]
        self._sealer = Sealer(send_key)
        self._opener = Opener(receive_key)
        self._frames = Frames()
        self._state = State.IDLE
        self._welcomed = False

    @property
    def state(self) -> State:
        """Where this connection stands."""
        return self._state

    @property
    def bytes_wanted(self) -> int:
        """How many bytes certainly belong to the next record (0: to none). Whoever reads no more never has trailing data."""
        return 0 if self._receiving_is_over else self._frames.bytes_wanted()

    @property
    def records_left(self) -> int:
        """How many messages may still be sent on this connection."""
        return self._sealer.records_left

    @property
    def trailing_data(self) -> bytes:
        """Bytes that arrived behind the peer's last hop record: the tunnel's first. LocalProtocolError before that record was read."""
        if not self._receiving_is_over:
            raise LocalProtocolError("the peer's hop records have not ended")
        return self._frames.peek()

    @property
    def _receiving_is_over(self) -> bool:
        return self._state is State.PIPE or (self._side is Side.DEVICE and self._state is State.PAIRED)

    def send(self, message: Message) -> bytes:
        """The sealed record of `message`. LocalProtocolError, with nothing changed, when it may not be said now."""
        after = self._after_sending(type(message))
        record = self._sealer.seal(encode_message(message))
        self._state = after
        self._welcomed = self._welcomed or self._side is Side.RELAY
        return record

    def _after_sending(self, kind: type[Message]) -> State:
        if self._side is Side.RELAY and not self._welcomed:
            moves = self._verdict()
        else:
            moves, _ = self._rules.get(self._state, _NO_MOVES)
        if kind not in moves:
            raise LocalProtocolError(f"{kind.__name__} may not be sent in state {self._state.name}")
        return moves[kind]

    def _verdict(self) -> Moves:
        """What the relay says first."""
        return {} if self._state is State.CLOSED else {Welcome: self._state, HopError: State.CLOSED}

    def receive_data(self, data: bytes) -> None:
        """Add bytes from the peer; call `next_event` until it returns None."""
        self._frames.receive_data(data)

    def receive_eof(self) -> None:
        """The peer has closed: RemoteProtocolError when that cuts a record; else the connection is over, cleanly."""
        cut = len(self._frames) > 0 and not self._receiving_is_over
        if cut:
            self._close()
            raise RemoteProtocolError("the connection ended inside a record")

    def next_event(self) -> Message | None:
        """The next message, or None when more bytes are needed. RemoteProtocolError: the peer broke the rules, the channel is closed.

        A PING that arrives where no answer may be given is not reported.
        """
        if self._receiving_is_over:
            raise LocalProtocolError("the peer's hop records have ended")
        try:
            while (message := self._next_message()) is not None:
                if not (isinstance(message, Ping | Pong) and (self._side, self._state) in _UNANSWERED):
                    return message
        except RemoteProtocolError:
            self._close()
            raise
        return None

    def _next_message(self) -> Message | None:
        if self._state is State.CLOSED:
            return None
        if self._side is Side.RELAY and self._state is State.OPENING and len(self._frames):
            raise RemoteProtocolError("bytes behind an OPEN that is not answered yet")
        payload = self._frames.next(floor=TAG + 1, ceiling=MAX_RECORD)
        if payload is None:
            return None
        message = decode_message(self._opener.open(payload))
        self._state = self._after_receiving(type(message))
        self._welcomed = self._welcomed or self._side is Side.DEVICE
        return message

    def _after_receiving(self, kind: type[Message]) -> State:
        if self._side is Side.DEVICE and not self._welcomed:
            moves = self._verdict()
        else:
            _, moves = self._rules.get(self._state, _NO_MOVES)
        if kind not in moves:
            raise RemoteProtocolError(f"{kind.__name__} is not allowed in state {self._state.name}")
        return moves[kind]

    def _close(self) -> None:
        self._state = State.CLOSED
        self._frames.take_all()

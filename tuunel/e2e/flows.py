"""UDP in a tunnel: flows that the forward proxy numbers, and the agent opens, answers and ends. Both ends, without I/O.

Each core takes the flow records of its peer, in order, and tells what they mean; what it has to say waits in its `outbox`.
Source: docs/spec/records.md section 6.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

from tuunel.address import HostPort
from tuunel.e2e.outbox import Outbox
from tuunel.e2e.wire import (
    DETAIL_CEILING,
    FLOW_NUMBER,
    FLOW_RECORDS,
    MAX_DATAGRAM,
    HostField,
    OptionalReasonField,
    Padded,
    RecordType,
    fits,
)
from tuunel.errors import Failure, LocalProtocolError, Reason, RemoteProtocolError
from tuunel.relay.fields import U16, HostPortField, Text

MAX_FLOWS: Final = 1024  #: numbers in use in one tunnel: as many as one association may have, and bounded memory at both ends
NUMBERS: Final = 1 << 8 * FLOW_NUMBER


@dataclass(frozen=True, slots=True)
class FlowOpen(Padded):
    """Body of FLOW_OPEN from the forward proxy: `host` and `port` as in a TCP request."""

    flow: Annotated[int, U16]
    host: Annotated[str, HostField()]
    port: Annotated[int, U16]


@dataclass(frozen=True, slots=True)
class FlowOpened(Padded):
    """Body of FLOW_OPEN from the agent: the local address of its socket to the target."""

    flow: Annotated[int, U16]
    bound: Annotated[HostPort, HostPortField()]


@dataclass(frozen=True, slots=True)
class FlowClose(Padded):
    """Body of FLOW_CLOSE; None: there is no more to say. `detail` is untrusted text, cut to `DETAIL_CEILING` bytes."""

    flow: Annotated[int, U16]
    reason: Annotated[Reason | None, OptionalReasonField()]
    detail: Annotated[str, Text(DETAIL_CEILING)]


@dataclass(frozen=True, slots=True)
class FlowRequested:
    """The forward proxy asks for a flow to `target`; an empty host is the agent's own localhost. Its datagrams may follow at once."""

    flow: int
    target: HostPort


@dataclass(frozen=True, slots=True)
class FlowReady:
    """The agent has opened the flow: its socket is bound to `bound`."""

    flow: int
    bound: HostPort


@dataclass(frozen=True, slots=True)
class FlowEnded:
    """The peer has ended a flow that this end had not closed, or refused it; this end has closed it too. Nothing more comes of it."""

    flow: int
    reason: Reason | None
    detail: str


@dataclass(frozen=True, slots=True)
class FlowData:
    """A datagram."""

    flow: int
    payload: bytes


@dataclass(slots=True)
class _Flow:
    """One number in use."""

    may_send: bool
    may_receive: bool
    closed: bool = False  # by this end
    close_left: bool = False  # this end's FLOW_CLOSE has left the outbox
    peer_closed: bool = False


class _Flows:
    """What both ends do. A number is in use until each end's FLOW_CLOSE has passed: so nothing that waits can outgrow the flows."""

    def __init__(self, dropped: Callable[[int, int], object]) -> None:
        self.outbox = Outbox(dropped=dropped, closed=self._close_left)
        self._flows: dict[int, _Flow] = {}

    def __len__(self) -> int:
        """How many numbers are in use."""
        return len(self._flows)

    def send(self, flow: int, payload: bytes) -> bool:
        """Queue a datagram. False when it is lost: there is no room, it is above MAX_DATAGRAM, or the flow is over."""
        state = self._flows.get(flow)
        if state is None or state.closed or len(payload) > MAX_DATAGRAM:
            return False
        if not state.may_send:
            raise LocalProtocolError(f"flow {flow} is not open yet")
        return self.outbox.datagram(flow, payload)

    def _close(self, flow: int, reason: Reason | None, detail: str) -> None:
        state = self._flows.get(flow)
        if state is not None and not state.closed:
            state.closed = True
            self.outbox.control(flow, RecordType.FLOW_CLOSE, FlowClose(flow, reason, detail).encode())

    def _close_left(self, flow: int) -> None:
        self._flows[flow].close_left = True
        self._free_if_over(flow)

    def _free_if_over(self, flow: int) -> None:
        state = self._flows[flow]
        if state.close_left and state.peer_closed:
            del self._flows[flow]

    def _spoken_of(self, flow: int) -> _Flow:
        """The flow that the peer speaks of."""
        state = self._flows.get(flow)
        if state is None or state.peer_closed:
            raise RemoteProtocolError(f"flow {flow} is not in use")
        return state

    def _receive_datagram(self, body: bytes) -> FlowData | None:
        flow = int.from_bytes(body[:FLOW_NUMBER], "big")
        state = self._spoken_of(flow)
        if not state.may_receive:
            raise RemoteProtocolError(f"a datagram came before flow {flow} was open")
        return None if state.closed else FlowData(flow, body[FLOW_NUMBER:])

    def _receive_close(self, message: FlowClose) -> FlowEnded | None:
        state = self._spoken_of(message.flow)
        news = not state.closed
        state.peer_closed = True
        self._close(message.flow, None, "")
        self.outbox.forget(message.flow)  # what the peer would only drop
        self._free_if_over(message.flow)
        return FlowEnded(message.flow, message.reason, message.detail) if news else None


class ForwardFlows(_Flows):
    """The forward proxy's end: it opens flows. `dropped` is told flow and size of each datagram that was queued and is not sent."""

    def __init__(self, dropped: Callable[[int, int], object]) -> None:
        super().__init__(dropped)
        self._next = 0  # numbers go round, so that a log shows one flow after the other

    def open(self, target: HostPort) -> int:
        """Ask for a flow and return its number; datagrams may be sent at once, and are lost if it is refused.

        Failure(LIMIT) when all numbers are in use, Failure(NAME_NOT_RESOLVED) for a host that no name can be.
        """
        if len(self._flows) >= MAX_FLOWS:
            raise Failure(Reason.LIMIT, detail=f"{MAX_FLOWS} flows in one tunnel")
        flow = self._next
        while flow in self._flows:
            flow = (flow + 1) % NUMBERS
        body = FlowOpen(flow, target.host, target.port).encode()
        self._next = (flow + 1) % NUMBERS
        self._flows[flow] = _Flow(may_send=True, may_receive=False)
        self.outbox.control(flow, RecordType.FLOW_OPEN, body)
        return flow

    def close(self, flow: int, reason: Reason | None = None) -> None:
        """End a flow: what is queued is still sent, what comes is dropped. Does nothing to a flow that is over."""
        self._close(flow, reason, "")

    def receive(self, kind: RecordType, body: bytes) -> FlowReady | FlowEnded | FlowData | None:
        """Take a flow record of the agent; None when it means nothing to the caller. RemoteProtocolError: cut the tunnel."""
        _check_form(kind, body)
        match kind:
            case RecordType.DGRAM:
                return self._receive_datagram(body)
            case RecordType.FLOW_OPEN:
                return self._receive_opened(FlowOpened.decode(body))
        return self._receive_close(FlowClose.decode(body))

    def _receive_opened(self, message: FlowOpened) -> FlowReady | None:
        state = self._spoken_of(message.flow)
        if state.may_receive:
            raise RemoteProtocolError(f"flow {message.flow} was opened twice")
        state.may_receive = True
        return None if state.closed else FlowReady(message.flow, message.bound)


class AgentFlows(_Flows):
    """The agent's end: it answers and ends flows. `dropped` as in `ForwardFlows`."""

    def opened(self, flow: int, bound: HostPort) -> None:
        """Say that the flow's socket is there, bound to `bound`; once per flow. Does nothing to a flow that is over."""
        state = self._flows.get(flow)
        if state is None or state.closed:
            return
        if state.may_send:
            raise LocalProtocolError(f"flow {flow} was opened twice")
        state.may_send = True
        self.outbox.control(flow, RecordType.FLOW_OPEN, FlowOpened(flow, bound).encode())

    def close(self, flow: int, reason: Reason | None = None, detail: str = "") -> None:
        """Refuse or end a flow, and say why; None: it was idle. What is queued is still sent. Does nothing to a flow that is over."""
        self._close(flow, reason, detail)

    def receive(self, kind: RecordType, body: bytes) -> FlowRequested | FlowEnded | FlowData | None:
        """Take a flow record of the forward proxy; None when it means nothing to the caller. RemoteProtocolError: cut the tunnel."""
        _check_form(kind, body)
        match kind:
            case RecordType.DGRAM:
                return self._receive_datagram(body)
            case RecordType.FLOW_OPEN:
                return self._receive_open(FlowOpen.decode(body))
        return self._receive_close(FlowClose.decode(body))

    def _receive_open(self, message: FlowOpen) -> FlowRequested:
        if message.flow in self._flows:
            raise RemoteProtocolError(f"flow {message.flow} is in use")
        if len(self._flows) >= MAX_FLOWS:
            raise RemoteProtocolError(f"more than {MAX_FLOWS} flows in one tunnel")
        self._flows[message.flow] = _Flow(may_send=False, may_receive=True)
        return FlowRequested(message.flow, HostPort(message.host, message.port))


def _check_form(kind: RecordType, body: bytes) -> None:
    if kind not in FLOW_RECORDS or not fits(kind, len(body)):
        raise RemoteProtocolError(f"{kind.name} of {len(body)} bytes is no record of a flow")

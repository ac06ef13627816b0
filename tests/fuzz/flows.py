"""UDP in a tunnel, at both ends: the records of flows that a hostile peer sends, between what this end does of its own."""

from typing import Final

from tests.fuzz.harness import Choices, harness
from tuunel.address import HostPort
from tuunel.e2e.flows import (
    MAX_FLOWS,
    AgentFlows,
    FlowClose,
    FlowData,
    FlowEnded,
    FlowOpen,
    FlowOpened,
    FlowReady,
    FlowRequested,
    ForwardFlows,
    _Flow,
)
from tuunel.e2e.outbox import FLOW_CEILING, TOTAL_CEILING
from tuunel.e2e.wire import MAX_DATAGRAM, RecordType
from tuunel.errors import Failure, Reason, RemoteProtocolError

_HEAR, _OPEN, _CLOSE, _SEND, _TAKE = range(5)  # the steps of a conversation
_FILLED: Final = 255
_KINDS: Final = (RecordType.DGRAM, RecordType.FLOW_OPEN, RecordType.FLOW_CLOSE, RecordType.DATA)
_BOUND: Final = HostPort("192.0.2.1", 9)

_ASK: Final = FlowOpen(0, "host", 53).encode()
_END: Final = FlowClose(0, Reason.POLICY_DENIED, "no").encode()

_Flows = AgentFlows | ForwardFlows


def _heard(kind: int, body: bytes) -> bytes:
    return bytes([_HEAR, kind]) + len(body).to_bytes(2, "big") + body


def _hear(flows: _Flows, choices: Choices) -> None:
    kind, body = _KINDS[choices.byte() % len(_KINDS)], choices.take(choices.number(2))
    before = len(flows)
    event = flows.receive(kind, body)
    assert kind is not RecordType.DATA, "a record that is no flow's was taken for one"
    number = int.from_bytes(body[:2], "big")
    match event:
        case FlowRequested():
            assert FlowOpen.decode(FlowOpen(event.flow, event.target.host, event.target.port).encode()) == FlowOpen.decode(body)
            assert len(flows) == before + 1
        case FlowReady():
            assert FlowOpened.decode(body) == FlowOpened(event.flow, event.bound)
        case FlowEnded():
            assert FlowClose.decode(body) == FlowClose(event.flow, event.reason, event.detail)
        case FlowData():
            assert event.payload == body[2:]
            assert len(event.payload) <= MAX_DATAGRAM
        case None:
            return
    assert event.flow == number


def _act(flows: _Flows, step: int, choices: Choices) -> None:
    """What this end does: no peer can bring it to misuse its own core, which only a flow that is not open yet may refuse."""
    flow = choices.number(2) % 8
    state = flows._flows.get(flow)
    if step == _OPEN and isinstance(flows, ForwardFlows):
        flows.open(HostPort("host", flow))
    elif step == _OPEN:
        if not (state and state.may_send):
            flows.opened(flow, _BOUND)
    elif step == _CLOSE:
        flows.close(flow)
    elif step == _SEND:
        payload = bytes(choices.number(2))
        if state is None or state.may_send:
            assert flows.send(flow, payload) <= (len(payload) <= MAX_DATAGRAM)
    elif step == _TAKE:
        for kind, body in flows.outbox.take(choices.number(2)):
            assert kind in _KINDS
            assert len(body) <= 2 + MAX_DATAGRAM


_FLOOD: Final = {flow: _Flow(may_send=True, may_receive=True) for flow in range(8, 8 + MAX_FLOWS - 2)}


def _fill(flows: _Flows) -> None:
    """All numbers but two are in use, as after a flood of opens. They are made once, and put right for each input."""
    for state in _FLOOD.values():
        state.may_send = state.may_receive = True
        state.closed = state.close_left = state.peer_closed = False
    flows._flows.update(_FLOOD)


def _check_bounds(flows: _Flows) -> None:
    outbox = flows.outbox
    assert len(flows) <= MAX_FLOWS
    assert outbox._waiting <= TOTAL_CEILING
    assert len(outbox._control) <= 2 * MAX_FLOWS
    assert all(flow in flows._flows for flow in outbox._lanes)
    for lane in outbox._lanes.values():
        assert 0 < lane.size <= FLOW_CEILING


def _converse(flows: _Flows, data: bytes) -> None:
    choices = Choices(data)
    if choices.byte() == _FILLED:
        _fill(flows)
    while choices:
        step = choices.byte() % 5
        try:
            if step == _HEAR:
                _hear(flows, choices)
            else:
                _act(flows, step, choices)
        except RemoteProtocolError:
            break  # the tunnel is cut
        except Failure as failure:
            if failure.reason is not Reason.LIMIT:
                raise
        _check_bounds(flows)
    _check_bounds(flows)
    while flows.outbox:
        flows.outbox.take()
    assert flows.outbox._waiting == 0


@harness(
    max_length=1000,
    seeds=[
        b"\0" + _heard(1, _ASK) + _heard(0, b"\0\0q") + bytes([_OPEN, 0, 0, _SEND, 0, 0, 0, 9, _TAKE, 1, 0]),
        b"\0" + _heard(1, _ASK) + bytes([_OPEN, 0, 0]) + 3 * bytes([_SEND, 0, 0, 255, 0]) + _heard(2, _END) + bytes([_TAKE, 0, 1]),
        bytes([_FILLED]) + 3 * _heard(1, _ASK) + _heard(2, FlowClose(9, Reason.LIMIT, "x").encode()) + bytes([_CLOSE, 0, 0]),
        b"\0" + _heard(3, b"data"),
    ],
)
def agent_flows(data: bytes) -> None:
    """Any records of a forward proxy, in any order, are flows with a target, datagrams and ends, or cut the tunnel; 1024 flows, 2 MiB."""
    _converse(AgentFlows(lambda *_: None), data)


@harness(
    max_length=1000,
    seeds=[
        bytes([0, _OPEN, 0, 0, _TAKE, 1, 0]) + _heard(1, FlowOpened(0, _BOUND).encode()) + _heard(0, b"\0\0a") + bytes([_CLOSE, 0, 0]),
        bytes([0, _OPEN, 0, 0, _SEND, 0, 0, 0, 9]) + _heard(2, _END) + bytes([_TAKE, 255, 255]),
        bytes([_FILLED]) + bytes([_OPEN, 0, 0]) * 3 + _heard(1, FlowOpened(1000, _BOUND).encode()),
    ],
)
def forward_flows(data: bytes) -> None:
    """Any records of an agent, in any order, open, carry or end flows that this end asked for, or cut the tunnel; 1024 flows, 2 MiB."""
    _converse(ForwardFlows(lambda *_: None), data)

"""Flows: both ends agree on what is open, numbers never mix two flows up, and no peer makes an end grow or do more than raise."""

from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tuunel.address import HostPort
from tuunel.e2e import flows
from tuunel.e2e.flows import (
    MAX_FLOWS,
    NUMBERS,
    AgentFlows,
    FlowClose,
    FlowData,
    FlowEnded,
    FlowOpen,
    FlowOpened,
    FlowReady,
    FlowRequested,
    ForwardFlows,
)
from tuunel.e2e.wire import (
    DETAIL_CEILING,
    FLOW_RECORDS,
    HOST_CEILING,
    MAX_DATAGRAM,
    PAD_BLOCK,
    PADDED_CEILING,
    RecordType,
    fits,
)
from tuunel.errors import Failure, LocalProtocolError, Reason, RemoteProtocolError

OPEN, CLOSE, DGRAM = RecordType.FLOW_OPEN, RecordType.FLOW_CLOSE, RecordType.DGRAM
TARGET = HostPort("nas.lan", 53)
BOUND = HostPort("192.168.1.2", 40000)

Record = tuple[RecordType, bytes]
Event = FlowRequested | FlowReady | FlowEnded | FlowData


def dgram(flow: int, payload: bytes = b"x") -> Record:
    return DGRAM, flow.to_bytes(2, "big") + payload


def opening(flow: int) -> Record:
    return OPEN, FlowOpen(flow, TARGET.host, TARGET.port).encode()


def opened(flow: int) -> Record:
    return OPEN, FlowOpened(flow, BOUND).encode()


def closing(flow: int, reason: Reason | None = None, detail: str = "") -> Record:
    return CLOSE, FlowClose(flow, reason, detail).encode()


class Pair:
    """A forward proxy's end and an agent's, and what is under way between them."""

    def __init__(self) -> None:
        self.dropped: Counter[int] = Counter()
        self.forward = ForwardFlows(lambda flow, _: self.dropped.update([flow]))
        self.agent = AgentFlows(lambda flow, _: self.dropped.update([flow]))

    def to_agent(self) -> list[Event]:
        """Carry everything that waits to the agent: what it hears."""
        heard = [self.agent.receive(*record) for record in self.forward.outbox.take(1 << 40)]
        return [event for event in heard if event is not None]

    def to_forward(self) -> list[Event]:
        heard = [self.forward.receive(*record) for record in self.agent.outbox.take(1 << 40)]
        return [event for event in heard if event is not None]

    def open(self) -> int:
        flow = self.forward.open(TARGET)
        assert self.to_agent() == [FlowRequested(flow, TARGET)]
        self.agent.opened(flow, BOUND)
        assert self.to_forward() == [FlowReady(flow, BOUND)]
        return flow


@pytest.fixture
def pair() -> Pair:
    return Pair()


# Layout

BODIES = [
    FlowOpen(0, "", 0),
    FlowOpen(65535, "fd00::1", 65535),
    FlowOpened(7, HostPort("fd00::1", 53)),
    FlowClose(7, None, ""),
    FlowClose(7, Reason.POLICY_DENIED, "not häuschen"),
]


@pytest.mark.parametrize("body", BODIES, ids=str)
def test_what_is_written_is_read(body: FlowOpen | FlowOpened | FlowClose) -> None:
    assert type(body).decode(body.encode()) == body


@pytest.mark.parametrize("body", BODIES, ids=str)
def test_a_cut_or_an_addition_or_a_mark_in_the_padding_is_refused(body: FlowOpen | FlowOpened | FlowClose) -> None:
    encoded = body.encode()
    for bad in (encoded[:-1], encoded[:-1] + b"\1", encoded + b"\0", b"", encoded + bytes(PAD_BLOCK)):
        with pytest.raises(RemoteProtocolError):
            type(body).decode(bad)


def test_padding_hides_the_length_of_a_name_and_of_a_reason() -> None:
    assert {len(FlowOpen(1, "x" * n, 1).encode()) for n in range(252)} == {PAD_BLOCK}
    assert len(FlowOpen(1, "x" * HOST_CEILING, 1).encode()) == PADDED_CEILING
    assert len(FlowClose(1, Reason.LIMIT, "x" * 1000).encode()) == PAD_BLOCK
    assert FlowClose.decode(FlowClose(1, Reason.LIMIT, "x" * 1000).encode()).detail == "x" * DETAIL_CEILING


@pytest.mark.parametrize("body", [b"\0\1\xff\0", b"\0\1\x09\0", b"\0\1\x20\xc9" + b"x" * 201, b"\0\1\x20\1\xff"])
def test_a_close_of_unknown_code_or_with_a_wrong_detail_is_a_breach(pair: Pair, body: bytes) -> None:
    pair.open()
    with pytest.raises(RemoteProtocolError):
        pair.forward.receive(CLOSE, body.ljust(PAD_BLOCK, b"\0"))


# A flow's life


def test_a_flow_is_opened_carries_datagrams_both_ways_and_ends(pair: Pair) -> None:
    flow = pair.open()
    assert pair.forward.send(flow, b"question")
    assert pair.to_agent() == [FlowData(flow, b"question")]
    assert pair.agent.send(flow, b"answer")
    assert pair.to_forward() == [FlowData(flow, b"answer")]
    pair.forward.close(flow)
    assert pair.to_agent() == [FlowEnded(flow, None, "")]
    assert pair.to_forward() == []
    assert len(pair.forward) == len(pair.agent) == 0
    assert not pair.dropped


def test_datagrams_may_follow_the_open_at_once(pair: Pair) -> None:
    flow = pair.forward.open(TARGET)
    assert pair.forward.send(flow, b"1")
    assert pair.forward.send(flow, b"2")
    assert pair.to_agent() == [FlowRequested(flow, TARGET), FlowData(flow, b"1"), FlowData(flow, b"2")]


def test_what_was_sent_before_the_close_arrives_before_it(pair: Pair) -> None:
    flow = pair.forward.open(TARGET)
    assert pair.forward.send(flow, b"and gone")
    pair.forward.close(flow)
    assert pair.to_agent() == [FlowRequested(flow, TARGET), FlowData(flow, b"and gone"), FlowEnded(flow, None, "")]
    other = pair.open()
    assert pair.agent.send(other, b"and gone")
    pair.agent.close(other)
    assert pair.to_forward() == [FlowData(other, b"and gone"), FlowEnded(other, None, "")]


@pytest.mark.parametrize("reason", [Reason.POLICY_DENIED, Reason.NAME_NOT_RESOLVED, Reason.LIMIT, None])
def test_a_flow_can_be_refused_with_a_reason(pair: Pair, reason: Reason | None) -> None:
    flow = pair.forward.open(TARGET)
    pair.to_agent()
    pair.agent.close(flow, reason, "no such thing")
    pair.agent.opened(flow, BOUND)  # too late, as a lookup may be that had begun
    assert pair.to_forward() == [FlowEnded(flow, reason, "no such thing")]
    assert pair.to_agent() == []
    assert len(pair.forward) == len(pair.agent) == 0


def test_what_comes_for_a_flow_that_this_end_has_closed_is_dropped_in_silence(pair: Pair) -> None:
    flow = pair.forward.open(TARGET)
    pair.to_agent()
    pair.forward.close(flow)
    pair.agent.opened(flow, BOUND)
    assert pair.agent.send(flow, b"late")
    pair.agent.close(flow, Reason.CONNECTION_REFUSED)
    assert pair.to_forward() == []
    other = pair.open()
    pair.agent.close(other)
    assert pair.forward.send(other, b"late")
    assert pair.to_agent() == []


def test_closes_may_cross(pair: Pair) -> None:
    flow = pair.open()
    pair.forward.close(flow)
    pair.agent.close(flow, Reason.CONNECTION_REFUSED)
    crossing = pair.agent.outbox.take()
    assert pair.to_agent() == []
    assert [pair.forward.receive(*record) for record in crossing] == [None]
    assert len(pair.forward) == len(pair.agent) == 0
    assert not pair.forward.outbox
    assert not pair.agent.outbox


def test_a_flow_that_is_over_takes_no_datagram_and_no_second_end(pair: Pair) -> None:
    for core in (pair.forward, pair.agent):
        flow = pair.open()
        core.close(flow)
        assert not core.send(flow, b"x")
        core.close(flow)
        pair.to_agent()
        pair.to_forward()
        pair.to_agent()
        assert not core.send(flow, b"x")
        core.close(flow)
        pair.agent.opened(flow, BOUND)
        assert not core.outbox
    assert len(pair.forward) == len(pair.agent) == 0


def test_what_waits_for_a_flow_that_the_peer_has_ended_is_dropped_and_told(pair: Pair) -> None:
    flow = pair.open()
    pair.agent.close(flow)
    records = pair.agent.outbox.take()
    assert all(pair.forward.send(flow, b"x") for _ in range(5))
    assert [pair.forward.receive(*record) for record in records] == [FlowEnded(flow, None, "")]
    assert pair.dropped == {flow: 5}
    assert pair.forward.outbox.take() == [closing(flow)]


def test_the_largest_datagram_passes_and_a_larger_one_is_lost(pair: Pair) -> None:
    flow = pair.open()
    for core, carry in ((pair.forward, pair.to_agent), (pair.agent, pair.to_forward)):
        assert core.send(flow, bytes(MAX_DATAGRAM))
        assert carry() == [FlowData(flow, bytes(MAX_DATAGRAM))]
        assert not core.send(flow, bytes(MAX_DATAGRAM + 1))
        assert core.send(flow, b"")
        assert carry() == [FlowData(flow, b"")]


def test_misuse_is_our_own_error(pair: Pair) -> None:
    flow = pair.forward.open(TARGET)
    pair.to_agent()
    with pytest.raises(LocalProtocolError):
        pair.agent.send(flow, b"before the answer")
    pair.agent.opened(flow, BOUND)
    with pytest.raises(LocalProtocolError):
        pair.agent.opened(flow, BOUND)


def test_a_host_that_no_name_can_be_takes_no_number(pair: Pair) -> None:
    for host in ("x" * (HOST_CEILING + 1), "a b", "häuschen"):
        with pytest.raises(Failure) as failure:
            pair.forward.open(HostPort(host, 53))
        assert failure.value.reason is Reason.NAME_NOT_RESOLVED
    assert len(pair.forward) == 0
    assert not pair.forward.outbox


# Numbers


def test_a_number_is_free_again_when_both_closes_have_passed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "MAX_FLOWS", 1)

    def assert_taken() -> None:
        with pytest.raises(Failure) as failure:
            pair.forward.open(TARGET)
        assert failure.value.reason is Reason.LIMIT

    flow = pair.open()
    pair.forward.close(flow)
    assert_taken()  # neither has left
    pair.to_agent()
    assert_taken()  # the agent's has not come
    pair.to_forward()
    flow = pair.open()
    pair.agent.close(flow)
    pair.to_forward()
    assert_taken()  # the agent's has come, ours has not left
    pair.to_agent()
    pair.open()


def test_an_agent_takes_a_number_again_only_when_its_own_close_has_left(pair: Pair) -> None:
    flow = pair.open()
    pair.forward.close(flow)
    pair.to_agent()
    assert len(pair.agent) == 1
    with pytest.raises(RemoteProtocolError):
        pair.agent.receive(*opening(flow))
    pair.agent.outbox.take()
    assert pair.agent.receive(*opening(flow)) == FlowRequested(flow, TARGET)


def test_numbers_go_round(pair: Pair) -> None:
    stays = pair.open()
    pair.forward._next = NUMBERS - 2
    used = []
    for _ in range(4):
        used.append(pair.open())
        pair.forward.close(used[-1])
        pair.to_agent()
        pair.to_forward()
    assert used == [NUMBERS - 2, NUMBERS - 1, stays + 1, stays + 2]


def test_ten_thousand_opens_are_a_thousand_flows_and_told_failures(pair: Pair) -> None:
    for _ in range(MAX_FLOWS):
        pair.forward.open(TARGET)
    for _ in range(10_000 - MAX_FLOWS):
        with pytest.raises(Failure) as failure:
            pair.forward.open(TARGET)
        assert failure.value.reason is Reason.LIMIT
    assert len(pair.to_agent()) == len(pair.agent) == len(pair.forward) == MAX_FLOWS


def test_an_agent_that_is_asked_for_one_flow_more_cuts_the_tunnel(pair: Pair) -> None:
    for number in range(MAX_FLOWS):
        pair.agent.receive(*opening(number))
    with pytest.raises(RemoteProtocolError):
        pair.agent.receive(*opening(MAX_FLOWS))
    assert len(pair.agent) == MAX_FLOWS


def test_a_forward_proxy_that_opens_and_closes_without_reading_fills_no_memory(pair: Pair) -> None:
    for number in range(NUMBERS):
        try:
            pair.agent.receive(*opening(number))
            pair.agent.receive(*closing(number))
        except RemoteProtocolError:
            break
    assert number == MAX_FLOWS
    assert len(pair.agent.outbox._control) == MAX_FLOWS


def test_an_agent_that_refuses_what_has_not_been_sent_fills_no_memory(pair: Pair) -> None:
    for _ in range(10_000):
        try:
            flow = pair.forward.open(TARGET)
        except Failure:
            break
        assert pair.forward.receive(*closing(flow)) == FlowEnded(flow, None, "")
    assert len(pair.forward) == MAX_FLOWS
    assert len(pair.forward.outbox._control) == 2 * MAX_FLOWS


# Fairness


def test_a_quiet_flow_beside_a_thousand_floods_is_heard_with_the_next_datagrams(pair: Pair) -> None:
    quiet = pair.open()
    for flow in [pair.forward.open(TARGET) for _ in range(MAX_FLOWS - 1)]:
        while pair.forward.send(flow, bytes(1200)):
            pass
    pair.forward.outbox.take(PADDED_CEILING * MAX_FLOWS)  # the opens
    pair.forward.outbox.take()
    assert pair.forward.send(quiet, b"move")
    within = pair.forward.outbox.take((MAX_FLOWS + 1) * 1202)
    assert dgram(quiet, b"move") in within
    assert quiet not in pair.dropped


# Breaches

TO_FORWARD = {
    "a datagram of no flow": [dgram(9)],
    "a datagram before the answer": [dgram(0)],
    "an answer to nothing": [opened(9)],
    "two answers": [opened(0), opened(0)],
    "an end of no flow": [closing(9)],
    "two ends": [opened(0), closing(0), closing(0)],
    "a datagram behind the end": [opened(0), closing(0), dgram(0)],
    "an answer behind the end": [closing(0), opened(0)],
    "a request's form": [(OPEN, FlowOpen(0, "x" * HOST_CEILING, 1).encode()[: PADDED_CEILING - 1])],
}
TO_AGENT = {
    "a datagram of no flow": [dgram(9)],
    "an end of no flow": [closing(9)],
    "two requests": [opening(0), opening(0)],
    "two ends": [opening(0), closing(0), closing(0)],
    "a datagram behind the end": [opening(0), closing(0), dgram(0)],
    "a host that no name can be": [(OPEN, b"\0\0\3a b\0\x35".ljust(PAD_BLOCK, b"\0"))],
}
FORMS = {
    "too short a datagram": [(DGRAM, b"\0")],
    "too long a datagram": [dgram(0, bytes(MAX_DATAGRAM + 1))],
    "no record of a flow": [(RecordType.DATA, b"\0\0x")],
    "an open without padding": [(OPEN, b"\0\0\0\0\0")],
    "an end without padding": [(CLOSE, b"\0\0\0\0")],
}


def feed(core: ForwardFlows | AgentFlows, records: list[Record]) -> None:
    for record in records[:-1]:
        core.receive(*record)
    with pytest.raises(RemoteProtocolError):
        core.receive(*records[-1])


@pytest.mark.parametrize("records", FORMS.values(), ids=FORMS)
def test_a_record_of_wrong_form_is_a_breach_on_an_open_flow(pair: Pair, records: list[Record]) -> None:
    assert pair.open() == 0
    feed(pair.forward, records)
    feed(pair.agent, records)


@pytest.mark.parametrize("records", TO_FORWARD.values(), ids=TO_FORWARD)
def test_a_forward_proxy_cuts_an_agent_that_says(pair: Pair, records: list[Record]) -> None:
    assert pair.forward.open(TARGET) == 0
    feed(pair.forward, records)


@pytest.mark.parametrize("records", TO_FORWARD.values(), ids=TO_FORWARD)
def test_and_does_so_too_for_a_flow_that_it_has_closed(pair: Pair, records: list[Record]) -> None:
    assert pair.forward.open(TARGET) == 0
    pair.forward.close(0)
    feed(pair.forward, records)


@pytest.mark.parametrize("records", TO_AGENT.values(), ids=TO_AGENT)
def test_an_agent_cuts_a_forward_proxy_that_says(pair: Pair, records: list[Record]) -> None:
    feed(pair.agent, records)


ANYTHING = st.one_of(
    st.builds(lambda flow, kind: kind(flow), st.integers(0, 4), st.sampled_from([dgram, opening, opened, closing])),
    st.tuples(st.sampled_from(FLOW_RECORDS), st.binary(max_size=PADDED_CEILING)),
    st.tuples(st.sampled_from(list(RecordType)), st.binary(max_size=8)),
)


def work(pair: Pair, core: ForwardFlows | AgentFlows, step: str) -> None:
    """Do what the users of an end do, whatever its peer says."""
    match step:
        case "open" if core is pair.forward:
            pair.forward.open(TARGET)
        case "open":
            for flow in [flow for flow, state in core._flows.items() if not state.may_send]:
                pair.agent.opened(flow, BOUND)
        case "send":
            for flow in [flow for flow, state in core._flows.items() if state.may_send]:
                assert core.send(flow, b"x") is not core._flows[flow].closed
        case "close":
            for flow in core._flows:
                core.close(flow)
        case "take":
            core.outbox.take()


@given(
    records=st.lists(ANYTHING, max_size=30),
    steps=st.lists(st.sampled_from(["open", "send", "close", "take", "wait"]), min_size=30, max_size=30),
)
@settings(deadline=None)
def test_garbage_is_a_protocol_error_and_nothing_else(records: list[Record], steps: list[str]) -> None:
    pair = Pair()
    for core in (pair.forward, pair.agent):
        for (kind, body), step in zip(records, steps, strict=False):
            work(pair, core, step)
            try:
                core.receive(kind, body)
            except RemoteProtocolError:
                break
            assert fits(kind, len(body))


# Both ends, in any order of events


class Tunnel(RuleBasedStateMachine):
    """Two honest ends with few numbers, so that each is used again and again, and records under way as long as can be.

    Every flow has a serial in front of its datagrams: whoever hears of a number must mean the same flow by it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(flows, "MAX_FLOWS", 3)
        self.patch.setattr(flows, "NUMBERS", 4)
        self.pair = Pair()
        self.to_agent: deque[Record] = deque()
        self.to_forward: deque[Record] = deque()
        self.serial = 0
        self.sent = 0
        self.forward_means: dict[int, int] = {}  # the serials of the flows that each end's user has
        self.agent_means: dict[int, int] = {}
        self.not_ready: set[int] = set()
        self.heard: dict[tuple[str, int], list[int]] = {}

    def teardown(self) -> None:
        try:
            for flow in list(self.forward_means):
                self.pair.forward.close(flow)
            for _ in range(4):
                self.leave(limit=1 << 30)
                while self.to_agent or self.to_forward:
                    self.arrive(many=1)
            assert len(self.pair.forward) == len(self.pair.agent) == 0
            assert not self.pair.forward.outbox
            assert not self.pair.agent.outbox
        finally:
            self.patch.undo()

    def payload(self, serial: int, size: int) -> bytes:
        self.sent += 1
        return serial.to_bytes(4, "big") + self.sent.to_bytes(4, "big") + bytes(size)

    @rule()
    def forward_opens(self) -> None:
        self.serial += 1
        try:
            flow = self.pair.forward.open(HostPort(f"n{self.serial}", 1))
        except Failure:
            assert len(self.pair.forward) == flows.MAX_FLOWS
            return
        assert flow not in self.forward_means
        self.forward_means[flow] = self.serial

    @precondition(lambda self: self.forward_means)
    @rule(data=st.data(), size=st.sampled_from([0, 1200, 60_000]))
    def forward_sends(self, data: st.DataObject, size: int) -> None:
        flow = data.draw(st.sampled_from(sorted(self.forward_means)))
        self.pair.forward.send(flow, self.payload(self.forward_means[flow], size))

    @precondition(lambda self: self.forward_means)
    @rule(data=st.data())
    def forward_closes(self, data: st.DataObject) -> None:
        flow = data.draw(st.sampled_from(sorted(self.forward_means)))
        del self.forward_means[flow]
        self.pair.forward.close(flow)
        assert not self.pair.forward.send(flow, b"")

    @precondition(lambda self: self.not_ready)
    @rule(data=st.data())
    def agent_opens(self, data: st.DataObject) -> None:
        flow = data.draw(st.sampled_from(sorted(self.not_ready)))
        self.not_ready.discard(flow)
        self.pair.agent.opened(flow, HostPort(f"n{self.agent_means[flow]}", 2))

    @precondition(lambda self: set(self.agent_means) - self.not_ready)
    @rule(data=st.data(), size=st.sampled_from([0, 1200, 60_000]))
    def agent_sends(self, data: st.DataObject, size: int) -> None:
        flow = data.draw(st.sampled_from(sorted(set(self.agent_means) - self.not_ready)))
        self.pair.agent.send(flow, self.payload(self.agent_means[flow], size))

    @precondition(lambda self: self.agent_means)
    @rule(data=st.data())
    def agent_closes(self, data: st.DataObject) -> None:
        flow = data.draw(st.sampled_from(sorted(self.agent_means)))
        self.not_ready.discard(flow)
        self.pair.agent.close(flow, Reason.LIMIT, f"n{self.agent_means.pop(flow)}")

    @rule(limit=st.sampled_from([1, 1300, 100_000]))
    def leave(self, limit: int) -> None:
        self.to_agent += self.pair.forward.outbox.take(limit)
        self.to_forward += self.pair.agent.outbox.take(limit)

    @rule(many=st.integers(1, 5))
    def arrive(self, many: int) -> None:
        for _ in range(many):
            if self.to_agent:
                self.agent_hears(self.pair.agent.receive(*self.to_agent.popleft()))
            if self.to_forward:
                self.forward_hears(self.pair.forward.receive(*self.to_forward.popleft()))

    def agent_hears(self, event: FlowRequested | FlowEnded | FlowData | None) -> None:
        match event:
            case FlowRequested(flow, target):
                assert flow not in self.agent_means
                self.agent_means[flow] = int(target.host[1:])
                self.not_ready.add(flow)
            case FlowEnded(flow, reason, _):
                assert reason is None
                del self.agent_means[flow]
                self.not_ready.discard(flow)
            case FlowData(flow, payload):
                self.note("agent", self.agent_means[flow], payload)

    def forward_hears(self, event: FlowReady | FlowEnded | FlowData | None) -> None:
        match event:
            case FlowReady(flow, bound):
                assert bound.host == f"n{self.forward_means[flow]}"
            case FlowEnded(flow, reason, detail):
                assert reason is Reason.LIMIT
                assert detail == f"n{self.forward_means.pop(flow)}"
            case FlowData(flow, payload):
                self.note("forward", self.forward_means[flow], payload)

    def note(self, end: str, serial: int, payload: bytes) -> None:
        assert int.from_bytes(payload[:4], "big") == serial
        number = int.from_bytes(payload[4:8], "big")
        heard = self.heard.setdefault((end, serial), [0])
        assert number > heard[-1]
        heard.append(number)

    @invariant()
    def the_ends_are_bounded(self) -> None:
        for core in (self.pair.forward, self.pair.agent):
            assert len(core) <= flows.MAX_FLOWS
            assert len(core.outbox._control) <= 2 * flows.MAX_FLOWS

    @invariant()
    def the_ends_know_their_flows(self) -> None:
        assert set(self.forward_means) <= set(self.pair.forward._flows)
        assert set(self.agent_means) <= set(self.pair.agent._flows)


TestTunnel = Tunnel.TestCase
TestTunnel.settings = settings(deadline=None, stateful_step_count=60)

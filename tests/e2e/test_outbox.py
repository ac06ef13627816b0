"""The queue never blocks or outgrows its ceilings, and is fair: a quiet flow loses nothing to floods, and waits one turn of theirs."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuunel.e2e.outbox import DATAGRAM_COST, FLOW_CEILING, QUANTUM, TOTAL_CEILING, Outbox
from tuunel.e2e.wire import FLOW_NUMBER, MAX_DATAGRAM, RecordType

OPEN, CLOSE, DGRAM = RecordType.FLOW_OPEN, RecordType.FLOW_CLOSE, RecordType.DGRAM
LARGEST = bytes(MAX_DATAGRAM)
PACKET = bytes(QUANTUM - DATAGRAM_COST)  # as much as one turn pays for


class Queue:
    """An outbox and what it told."""

    def __init__(self) -> None:
        self.dropped: Counter[int] = Counter()
        self.closed: list[int] = []
        self.outbox = Outbox(dropped=lambda flow, _: self.dropped.update([flow]), closed=self.closed.append)

    def put(self, *flows: int, payload: bytes = b"x") -> list[bool]:
        return [self.outbox.datagram(flow, payload) for flow in flows]

    def flood(self, *flows: int, payload: bytes = bytes(1200)) -> int:
        """Give each flow in turn datagrams until none takes another; how many were queued and are queued still."""
        before, taken = sum(self.dropped.values()), 0
        while any(results := self.put(*flows, payload=payload)):
            taken += sum(results)
        return taken - (sum(self.dropped.values()) - before)

    def take_all(self) -> list[tuple[RecordType, bytes]]:
        records = []
        while self.outbox:
            records += self.outbox.take()
        return records

    def order(self) -> list[int]:
        """The flows of all that waits, in the order in which it leaves."""
        return [int.from_bytes(body[:FLOW_NUMBER], "big") for _, body in self.take_all()]


@pytest.fixture
def queue() -> Queue:
    return Queue()


# Order


def test_an_empty_queue_has_nothing_to_send(queue: Queue) -> None:
    assert not queue.outbox
    assert queue.outbox.take() == []


def test_a_datagram_leaves_behind_the_number_of_its_flow(queue: Queue) -> None:
    assert queue.outbox.datagram(0x1234, b"hello")
    assert queue.outbox.take() == [(DGRAM, b"\x12\x34hello")]
    assert not queue.outbox


def test_opens_leave_before_every_datagram(queue: Queue) -> None:
    queue.put(1, 1)
    queue.outbox.control(2, OPEN, b"open 2")
    queue.outbox.control(1, OPEN, b"open 1")
    assert [kind for kind, _ in queue.take_all()] == [OPEN, OPEN, DGRAM, DGRAM]


def test_a_close_leaves_behind_the_datagrams_of_its_flow_and_waits_for_no_other(queue: Queue) -> None:
    queue.put(1, 2, 2, 1, 2, 2, payload=PACKET)
    queue.outbox.control(1, CLOSE, b"\0\1close")
    queue.outbox.control(3, CLOSE, b"\0\3close")
    assert queue.closed == []
    kinds = [(kind, body[1]) for kind, body in queue.take_all()]
    assert kinds == [(CLOSE, 3), (DGRAM, 1), (DGRAM, 2), (DGRAM, 1), (CLOSE, 1), (DGRAM, 2), (DGRAM, 2), (DGRAM, 2)]
    assert queue.closed == [3, 1]


def test_a_flow_keeps_its_order(queue: Queue) -> None:
    for number in range(100):
        for flow in (1, 2, 3):
            assert queue.outbox.datagram(flow, bytes([number]))
    bodies = [body for _, body in queue.take_all()]
    for flow in (1, 2, 3):
        assert [body[-1] for body in bodies if body[1] == flow] == list(range(100))


def test_forgetting_a_flow_drops_its_datagrams_and_sends_its_close(queue: Queue) -> None:
    queue.put(1, 2, 1)
    queue.outbox.control(1, CLOSE, b"\0\1close")
    queue.outbox.forget(1)
    queue.outbox.forget(9)
    assert queue.dropped == {1: 2}
    assert [(kind, body[1]) for kind, body in queue.take_all()] == [(CLOSE, 1), (DGRAM, 2)]


# Turns


def test_flows_take_turns(queue: Queue) -> None:
    queue.put(1, 1, 1, 1, 2, 2, 3, payload=PACKET)
    assert queue.order() == [1, 2, 3, 1, 2, 1, 1]


def test_large_datagrams_wait_until_they_are_paid_for(queue: Queue) -> None:
    queue.put(1, payload=LARGEST)
    queue.put(*[2] * 80, payload=PACKET)
    before = queue.order().index(1)
    assert abs(before * QUANTUM - MAX_DATAGRAM) <= QUANTUM


def test_a_turn_of_empty_datagrams_ends_too(queue: Queue) -> None:
    queue.flood(1, payload=b"")
    queue.put(2)
    assert queue.order().index(2) == QUANTUM // DATAGRAM_COST


def test_flows_get_equal_shares_of_bytes_whatever_their_datagrams_are(queue: Queue) -> None:
    sizes = {1: MAX_DATAGRAM, 2: 30_000, 3: 1200, 4: 100}
    sent: Counter[int] = Counter()
    while sum(sent.values()) < 50 * MAX_DATAGRAM:
        for flow, size in sizes.items():
            queue.flood(flow, payload=bytes(size))
        for _, body in queue.outbox.take(QUANTUM):
            sent[body[1]] += len(body) - FLOW_NUMBER
    counted = {flow: sent[flow] + DATAGRAM_COST * (sent[flow] // size) for flow, size in sizes.items()}
    share = sum(counted.values()) / 4
    assert all(abs(each - share) <= MAX_DATAGRAM for each in counted.values())


def test_a_quiet_flow_waits_for_one_turn_of_each_flood(queue: Queue) -> None:
    queue.flood(*range(20), payload=LARGEST)
    queue.outbox.take(30_000)
    queue.put(99)
    order = queue.order()
    assert order.index(99) <= 20  # one datagram of each at most, and not their whole queues


def test_take_gives_about_the_limit_and_one_record_at_least(queue: Queue) -> None:
    queue.put(*[1] * 100, payload=bytes(1000 - FLOW_NUMBER - DATAGRAM_COST))
    assert len(queue.outbox.take(10_000)) == 10
    assert len(queue.outbox.take(10_001)) == 11
    assert len(queue.outbox.take(1)) == 1
    queue.outbox.forget(1)
    assert queue.flood(2, 3, payload=b"") > 2000
    assert len(queue.outbox.take()) < 1000  # empty datagrams take time too


# Ceilings


@pytest.mark.parametrize("size", [0, 1, 1200, 1472, 9000, MAX_DATAGRAM])
def test_one_flow_holds_its_ceiling_and_not_one_more(queue: Queue, size: int) -> None:
    assert queue.flood(1, payload=bytes(size)) == FLOW_CEILING // (size + DATAGRAM_COST) >= 1
    assert queue.put(1, payload=bytes(size)) == [False]
    queue.outbox.take(1)
    assert queue.put(1, 1, payload=bytes(size)) == [True, False]
    assert not queue.dropped


HALF = bytes(FLOW_CEILING // 2 - DATAGRAM_COST)  # two fill a flow to the byte


@pytest.mark.parametrize("more", [0, 1])
def test_the_ceilings_are_kept_to_the_byte(queue: Queue, more: int) -> None:
    assert queue.put(0, payload=HALF) == [True]
    assert queue.put(0, payload=HALF + bytes(more)) == [not more]
    queue.flood(*range(15), payload=HALF)
    assert queue.put(15, payload=HALF) == [True]
    assert queue.put(16, payload=HALF + bytes(more)) == [True]
    assert sum(queue.dropped.values()) == more


@pytest.mark.parametrize("flows", [16, 17, 100, 1024])
@pytest.mark.parametrize("size", [0, 1200, MAX_DATAGRAM])
def test_all_flows_together_hold_the_total_and_not_one_more(queue: Queue, flows: int, size: int) -> None:
    queue.flood(*range(flows), payload=bytes(size))
    held = sum(len(body) - FLOW_NUMBER + DATAGRAM_COST for _, body in queue.take_all())
    assert held <= TOTAL_CEILING
    assert queue.flood(*range(flows), payload=bytes(size)) > 0  # and there is room again


def test_in_a_full_queue_the_fullest_flow_makes_room_and_hears_of_it(queue: Queue) -> None:
    assert queue.put(0, payload=b"old" + HALF[3:]) == [True]
    assert 1 + queue.flood(*range(16), payload=HALF) == TOTAL_CEILING // (FLOW_CEILING // 2)
    assert queue.put(16, payload=bytes(1000)) == [True]
    assert queue.dropped == {0: 1}  # all are equally full, and one had to be it
    assert queue.put(*range(1, 16), 17, payload=HALF) == [False] * 15 + [True]
    assert queue.dropped == {0: 1, 1: 1}
    assert [body[2:5] for _, body in queue.take_all() if body[:2] == b"\0\0"] == [b"old"]  # the newest was dropped


def test_a_flow_above_its_share_of_a_full_queue_takes_nothing_from_others(queue: Queue) -> None:
    queue.flood(*range(64), payload=bytes(1200))
    queue.dropped.clear()
    assert queue.put(*range(64), payload=bytes(1200)) == [False] * 64
    assert not queue.dropped


@given(
    floods=st.lists(st.integers(0, MAX_DATAGRAM), min_size=1, max_size=60),
    quiet=st.integers(0, 20_000),
)
@settings(deadline=None)
def test_a_flow_within_its_share_loses_nothing_to_any_flood(floods: list[int], quiet: int) -> None:
    queue = Queue()
    queue.flood(*range(len(floods)))
    share = TOTAL_CEILING // (len(floods) + 1)
    quiet = min(quiet, share - DATAGRAM_COST)
    assert queue.put(999, payload=bytes(quiet)) == [True]
    for flow, size in enumerate(floods):
        queue.flood(flow, payload=bytes(size))
    assert 999 not in queue.dropped
    assert queue.order().count(999) == 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 5), st.sampled_from([0, 1, 1200, 40_000, MAX_DATAGRAM])),
        st.tuples(st.just("flood"), st.integers(0, 40), st.sampled_from([1200, 40_000, MAX_DATAGRAM])),
        st.tuples(st.just("forget"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("take"), st.just(0), st.integers(1, 200_000)),
    ),
    max_size=40,
)


@given(steps=STEPS)
@settings(deadline=None)
def test_every_datagram_leaves_once_in_the_order_of_its_flow_or_is_told_as_lost(steps: list[tuple[str, int, int]]) -> None:
    queue, serial, refused = Queue(), 0, 0
    accepted: Counter[int] = Counter()
    left: list[tuple[int, int]] = []

    def put(flow: int, size: int) -> bool:
        nonlocal serial
        serial += 1
        taken = queue.outbox.datagram(flow, serial.to_bytes(4, "big") + bytes(max(0, min(size, MAX_DATAGRAM - 4))))
        accepted[flow] += taken
        return taken

    def take(limit: int) -> None:
        for kind, body in queue.outbox.take(limit):
            assert kind is DGRAM
            left.append((int.from_bytes(body[:2], "big"), int.from_bytes(body[2:6], "big")))

    for step, flow, size in steps:
        match step:
            case "put":
                refused += not put(flow, size)
            case "flood":
                while put(flow, size):
                    pass
            case "forget":
                queue.outbox.forget(flow)
            case "take":
                take(size)
        assert queue.outbox._waiting == sum(lane.size for lane in queue.outbox._lanes.values()) <= TOTAL_CEILING
        assert all(0 < lane.size <= FLOW_CEILING for lane in queue.outbox._lanes.values())
    while queue.outbox:
        take(1)
    for flow in accepted:
        numbers = [number for each, number in left if each == flow]
        assert numbers == sorted(set(numbers))
        assert len(numbers) + queue.dropped[flow] == accepted[flow]
    assert queue.outbox._waiting == 0

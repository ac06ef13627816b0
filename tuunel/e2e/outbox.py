"""What one end of a UDP tunnel has to send and has not sealed yet: opens and closes are never lost, datagrams share what room there is.

Source: docs/spec/records.md section 6 (queues).
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tuunel.e2e.wire import FLOW_NUMBER, RecordType

FLOW_CEILING: Final = 128 * 1024  #: bytes waiting in one flow: two of the largest datagrams, or a hundred of a packet each
TOTAL_CEILING: Final = 2 * 1024 * 1024  #: bytes waiting in a tunnel: a second of a line of 16 Mbit/s; older datagrams help nobody
DATAGRAM_COST: Final = 64  #: counted beside a datagram's payload, because an empty one takes memory and time too
QUANTUM: Final = 1472 + DATAGRAM_COST  #: a flow's turn: a datagram that fits an Ethernet packet goes at once, a larger one waits some turns


@dataclass(slots=True)
class _Lane:
    """The datagrams of one flow that wait, and the body of the FLOW_CLOSE behind them."""

    datagrams: deque[bytes] = field(default_factory=deque)
    size: int = 0
    credit: int = QUANTUM
    closing: bytes | None = None


class Outbox:
    """A queue that neither blocks nor grows without end; what leaves it must be sent, in that order.

    `dropped` is called with the flow and the size of each datagram that was queued and will not be sent, `closed` with the flow of each
    FLOW_CLOSE that leaves.
    """

    def __init__(self, *, dropped: Callable[[int, int], object], closed: Callable[[int], object]) -> None:
        self._dropped = dropped
        self._closed = closed
        self._control: deque[tuple[int, RecordType, bytes]] = deque()
        self._lanes: OrderedDict[int, _Lane] = OrderedDict()  # of the flows that have datagrams waiting; the first has its turn
        self._waiting = 0

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._control or self._lanes)

    def control(self, flow: int, kind: RecordType, body: bytes) -> None:
        """Queue a FLOW_OPEN, or the FLOW_CLOSE that follows the flow's own datagrams. Bounded by the caller's flows."""
        lane = self._lanes.get(flow)
        if lane is not None and kind is RecordType.FLOW_CLOSE:
            lane.closing = body
        else:
            self._control.append((flow, kind, body))

    def datagram(self, flow: int, payload: bytes) -> bool:
        """Queue a datagram; False when there is no room for it.

        In a full queue a flow that keeps to its equal share makes room: the newest datagram of the fullest flow is dropped.
        """
        lane = self._lanes.get(flow)
        cost = _cost(payload)
        size = cost + (lane.size if lane else 0)
        if size > FLOW_CEILING:
            return False
        if self._waiting + cost > TOTAL_CEILING and not self._make_room(cost, size, flows=len(self._lanes) + (lane is None)):
            return False
        if lane is None:
            lane = self._lanes[flow] = _Lane()
        lane.datagrams.append(payload)
        self._count(lane, cost)
        return True

    def forget(self, flow: int) -> None:
        """Drop the flow's datagrams; a FLOW_CLOSE behind them goes out at once."""
        while flow in self._lanes:
            self._drop_newest(flow)

    def forget_all(self) -> None:
        """Drop every datagram."""
        for flow in list(self._lanes):
            self.forget(flow)

    def take(self, limit: int = 65536) -> list[tuple[RecordType, bytes]]:
        """Take the next records off the queue: the first, and more until they count `limit` bytes, as many as one write should have.

        Opens and closes come first. Flows with datagrams take turns of QUANTUM (deficit round robin), so that neither many datagrams
        nor large ones keep other flows waiting for long.
        """
        records: list[tuple[RecordType, bytes]] = []
        while self and limit > 0:
            records.append(self._next())
            limit -= _cost(records[-1][1])
        return records

    def _next(self) -> tuple[RecordType, bytes]:
        if not self._control:
            return RecordType.DGRAM, self._next_datagram()
        flow, kind, body = self._control.popleft()
        if kind is RecordType.FLOW_CLOSE:
            self._closed(flow)
        return kind, body

    def _next_datagram(self) -> bytes:
        flow, lane = next(iter(self._lanes.items()))
        while lane.credit < _cost(lane.datagrams[0]):
            lane.credit += QUANTUM
            self._lanes.move_to_end(flow)
            flow, lane = next(iter(self._lanes.items()))
        payload = lane.datagrams.popleft()
        cost = _cost(payload)
        lane.credit -= cost
        self._count(lane, -cost)
        self._settle(flow, lane)
        return flow.to_bytes(FLOW_NUMBER, "big") + payload

    def _make_room(self, cost: int, size: int, *, flows: int) -> bool:
        """Make room for `cost` in a full queue, on behalf of one of `flows` flows that would hold `size` with it."""
        if size > TOTAL_CEILING // flows:
            return False
        while self._waiting + cost > TOTAL_CEILING:
            # The others hold more than their shares: the fullest is one of them.
            fullest, _ = max(self._lanes.items(), key=lambda item: item[1].size)
            self._drop_newest(fullest)
        return True

    def _drop_newest(self, flow: int) -> None:
        lane = self._lanes[flow]
        payload = lane.datagrams.pop()
        self._count(lane, -_cost(payload))
        self._settle(flow, lane)
        self._dropped(flow, len(payload))

    def _count(self, lane: _Lane, change: int) -> None:
        lane.size += change
        self._waiting += change

    def _settle(self, flow: int, lane: _Lane) -> None:
        """A lane without datagrams is none; what closes its flow goes out next."""
        if lane.datagrams:
            return
        del self._lanes[flow]
        if lane.closing is not None:
            self._control.append((flow, RecordType.FLOW_CLOSE, lane.closing))


def _cost(data: bytes) -> int:
    return len(data) + DATAGRAM_COST

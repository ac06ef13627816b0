"""Long lines: the queue by itself, and the whole of it where network namespaces can be made."""

from pathlib import Path

import pytest

from bench.delay.delayqueue import DelayQueue
from bench.delay.network import long_lines
from bench.peers import PeerMissing
from bench.systems.raw import Raw
from bench.systems.system import Transport
from bench.workloads.bulk import move
from bench.workloads.connected import connected


def test_packets_leave_in_their_order_and_not_before_their_time() -> None:
    queue = DelayQueue(0.5)
    assert queue.next is None
    assert queue.due(0.0) is None
    queue.put(b"one", 1.0)
    queue.put(b"two", 1.25)
    assert queue.next == 1.5
    assert queue.due(1.49) is None
    assert queue.due(1.5) == b"one"
    assert queue.due(1.5) is None
    assert queue.due(9.0) == b"two"
    assert queue.next is None


def test_an_app_and_a_service_are_two_lines_apart() -> None:
    try:
        with long_lines(5) as places, connected(Raw(), Transport.TCP, "bench.apps.tcp_distant", places) as running:
            networks = {Path(f"/proc/{running.roles[role].processes[0].pid}/ns/net").readlink() for role in ("app", "service")}
            assert len(networks) == 2
            first_bytes = running.app.ask({"connections": 2, "pause": 0})["first_bytes"]
            assert all(seconds >= 2 * 0.020 for seconds in first_bytes)  # a round trip for TCP, one for the answer
            assert move(running.app, 1, "up", 0.1)[0] > 0
            assert move(running.app, 1, "down", 0.1)[0] > 0
    except PeerMissing as reason:
        pytest.skip(str(reason))  # a right that a machine gives or not


def test_who_may_not_make_networks_is_told_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(PeerMissing, match="need root"), long_lines(5):
        pass

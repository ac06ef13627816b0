"""The app and the service of the UDP workloads, as real processes without a system between them; and how a trial is judged."""

import socket
import struct

import pytest

from bench.apps import datagram
from bench.process import Process, ProcessFailed, python
from bench.systems.raw import Raw
from bench.systems.system import Transport
from bench.workloads.connected import connected
from bench.workloads.udp_latency import UdpLatency
from bench.workloads.udp_rate import RateTrial, attempt


def trial(*, sent: int = 1000, in_time: int = 1000, asked: float = 1000) -> RateTrial:
    return RateTrial(asked, sent, 1.0, in_time, 0.999, {})


def test_a_datagram_is_stamped_in_place_and_has_the_size_asked_for() -> None:
    made = datagram.write(datagram.COUNT, 7, 123, size=1200)
    assert len(made) == 1200
    assert datagram.read(made) == (datagram.COUNT, 7, 123)
    datagram.stamp(made, datagram.ECHO, 8, 456)
    assert datagram.read(made) == (datagram.ECHO, 8, 456)


def test_what_is_shorter_than_a_header_is_no_datagram() -> None:
    with pytest.raises(struct.error):
        datagram.read(datagram.write(datagram.ECHO, size=0)[:-1])


def test_a_rate_holds_below_one_percent_of_loss() -> None:
    assert trial(in_time=991).held
    assert not trial(in_time=990).held
    assert not trial(in_time=0).held
    assert not trial(sent=0, in_time=0).held


def test_the_delivered_rate_is_that_of_the_arrivals() -> None:
    assert trial().delivered_rate == pytest.approx(1000)
    assert trial(in_time=1).delivered_rate == 0


def test_a_sender_that_falls_behind_is_exhausted() -> None:
    assert not trial(sent=960).exhausted
    assert trial(sent=940).exhausted


def test_every_datagram_of_a_slow_trial_arrives_and_is_counted_once() -> None:
    with connected(Raw(), Transport.UDP, "bench.apps.udp_sender") as route:
        first = attempt(route, 1, 500, 0.2)
        second = attempt(route, 2, 500, 0.2)
    assert 90 <= first.sent <= 101
    assert first.in_time == first.sent
    assert second.in_time == second.sent
    assert set(first.cpu) == {"app", "service"}
    assert all(seconds > 0 for seconds in first.cpu.values())


def test_a_late_datagram_and_one_of_an_earlier_trial_do_not_count() -> None:
    with Process(python("bench.apps.udp_service", "127.0.0.1")) as service, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", int(service.line())))
        sock.settimeout(10)
        for number in (2, 1):
            sock.send(datagram.write(datagram.COUNT, number, sent_ns=0))
        sock.send(b"short")
        sock.send(datagram.write(datagram.REPORT, 2))
        assert b'"trial": 2, "in_time": 0, "late": 1,' in sock.recv(1000)


def test_the_latency_of_raw_loopback_is_measured() -> None:
    made = UdpLatency().measure(Raw(), quick=True)
    assert 0 < made.figures["p50_us"] <= made.figures["p99_us"]


def test_a_process_that_ends_is_told_with_its_last_words() -> None:
    with (
        Process(["sh", "-c", "echo no such file >&2; exit 3"]) as process,
        pytest.raises(ProcessFailed, match=r"no such file \(ended with 3\)"),
    ):
        process.answer()

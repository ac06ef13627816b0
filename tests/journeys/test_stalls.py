"""Links that stall, for long or in one direction alone: who can go on does, the others end by a reset, and nobody hangs."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.journeys.figures import figure
from tests.journeys.lab import AGENT, RELAY, Lab
from tests.journeys.processes import until
from tests.journeys.restarts import SOON, carries
from tests.journeys.targets import Target, echo, hold, pour, read_exactly, read_to_end

pytestmark = [pytest.mark.real, pytest.mark.soak, pytest.mark.timeout(1200)]

ENDED = 45.0  #: seconds
STALL = 60.0
PAUSE = 600.0


def ends(sock: socket.socket) -> tuple[str, float]:
    """Read until it ends: how, and after how many seconds."""
    began = time.monotonic()
    sock.settimeout(4 * ENDED)
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return "reset", time.monotonic() - began
    return "end", time.monotonic() - began


@pytest.mark.parametrize(("source", "destination"), [(AGENT, RELAY), (RELAY, AGENT)], ids=["from the agent", "to the agent"])
def test_one_way_loss(lab: Lab, source: str, destination: str) -> None:
    with lab.target(hold) as idle, lab.target(pour) as pouring, lab.target(echo) as echoing:
        with lab.open(idle.port) as resting, lab.open(pouring.port) as working, ThreadPoolExecutor() as threads:
            read_exactly(working.sock, 100_000)
            lab.network.drop(source=source, destination=destination)
            try:
                found = [threads.submit(ends, each.sock) for each in (resting, working)]
                for name, end in zip(("idle", "working"), found, strict=True):
                    how, after = end.result()
                    figure(f"one-way loss, {source} to {destination}, {name} tunnel", f"{how} after {after:.1f} s")
                    assert (how, after < ENDED) == ("reset", True)
            finally:
                lab.network.heal()
        until(lambda: carries(lambda: lab.open(echoing.port)), "the agent is back", SOON, 0.05)


def test_a_link_that_stalls_for_a_minute_and_recovers(lab: Lab) -> None:
    """Tunnels end by a reset; and when the link is well again everybody is back by himself."""
    with lab.target(hold) as idle, lab.target(pour) as pouring, lab.target(echo) as echoing:
        with lab.open(idle.port) as resting, lab.open(pouring.port) as working, ThreadPoolExecutor() as threads:
            read_exactly(working.sock, 100_000)
            began = time.monotonic()
            lab.network.cut_off("agent")
            try:
                found = [threads.submit(ends, each.sock) for each in (resting, working)]
                for end in found:
                    assert end.result()[0] == "reset"
                time.sleep(max(0.0, began + STALL - time.monotonic()))  # the stall itself
            finally:
                lab.network.heal()
        began = time.monotonic()
        until(lambda: carries(lambda: lab.open(echoing.port)), "the agent is back", SOON, 0.05)
        figure(f"back after a stall of {STALL:.0f} s", f"{time.monotonic() - began:.2f} s")


def test_a_reader_that_pauses_for_ten_minutes_loses_nothing(lab: Lab) -> None:
    wanted = bytes(range(256)) * 100_000

    def send_all(sock: socket.socket, _target: Target) -> None:
        sock.settimeout(2 * PAUSE)
        sock.sendall(wanted)
        sock.shutdown(socket.SHUT_WR)

    with lab.target(send_all) as target, lab.open(target.port) as opened:
        time.sleep(PAUSE)  # the pause itself
        opened.sock.settimeout(60)
        got = read_to_end(opened.sock)
        figure(f"read after a pause of {PAUSE:.0f} s", f"{len(got)} of {len(wanted)} bytes")
        assert got == wanted

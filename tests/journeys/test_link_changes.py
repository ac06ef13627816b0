"""The link changes under live tunnels: those that can go on do, the others end by a reset, and everybody is back by himself."""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.journeys.lab import AGENT, LAPTOP, PORT, RELAY, Lab, inside
from tests.journeys.processes import until
from tests.journeys.restarts import SOON, carries, until_offline
from tests.journeys.targets import echo, hold, read_exactly

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


def still_carries(sock: socket.socket) -> bool:
    """Whether an open connection to an echo goes on; that it was reset is the only other answer that may be given."""
    sock.settimeout(SOON)
    try:
        sock.sendall(b"still?")
        return read_exactly(sock, 6) == b"still?"
    except ConnectionResetError:
        return False


@contextlib.contextmanager
def behind_a_nat(lab: Lab, *, loose: bool) -> Iterator[None]:
    """The agent's connections are made anew through a NAT."""
    lab.network.masquerade(loose=loose)
    try:
        lab.agent.process.kill()
        lab.agent = lab.world.agent(None, machine=lab.agent.machine)
        yield
    finally:
        lab.network.stop_masquerading()
        lab.agent.process.kill()
        lab.agent = lab.world.agent(None, machine=lab.agent.machine)


@pytest.mark.parametrize(
    "loose", [pytest.param(True, id="takes up the unknown"), pytest.param(False, id="drops the unknown", marks=pytest.mark.soak)]
)
def test_a_nat_that_forgets(lab: Lab, *, loose: bool) -> None:
    """The agent's packets come from other ports then, or not at all: its connections are lost, and made anew without anybody's help."""
    with behind_a_nat(lab, loose=loose), lab.target(echo) as target:
        until(lambda: carries(lambda: lab.open(target.port)), "the tunnel works")
        lab.agent.process.forget()
        lab.network.forget_connections()
        until_offline(lab.agent.process)
        until(lambda: carries(lambda: lab.open(target.port)), "the tunnel works again", SOON, 0.05)


def test_an_interface_that_goes_down_and_up(lab: Lab) -> None:
    """A tunnel outlives it, and the agent waits for no pause: it tries as soon as there is a way."""
    with lab.target(echo) as target, lab.open(target.port) as opened:
        lab.agent.process.forget()
        lab.network.unplug("agent")
        try:
            until_offline(lab.agent.process)
        finally:
            lab.network.plug("agent")
        assert still_carries(opened.sock)
        until(lambda: carries(lambda: lab.open(target.port)), "the tunnel works again", SOON, 0.05)


@pytest.mark.parametrize("machine", [pytest.param("agent", marks=pytest.mark.soak), "laptop"])
def test_a_new_source_address(lab: Lab, machine: str) -> None:
    """A live tunnel cannot go on without its address; a new one is there at once."""
    old, new = (AGENT, "10.2.0.77") if machine == "agent" else (LAPTOP, "10.1.0.77")
    with lab.target(echo) as target, lab.target(hold) as holding, lab.open(holding.port):
        began = time.monotonic()
        lab.network.set_address(machine, new)
        try:
            until(lambda: carries(lambda: lab.open(target.port)), "the tunnel works by the new address", 2 * SOON, 0.05)
            assert time.monotonic() - began < 2 * SOON
        finally:
            lab.network.set_address(machine, old)
        until(lambda: carries(lambda: lab.open(target.port)), "the tunnel works by the old address again", 2 * SOON, 0.05)


@pytest.mark.soak
def test_a_black_hole_is_told_as_one(lab: Lab) -> None:
    """What accepts, keeps open and delivers nothing at the relay's address is given up, and is no reason to give up for good."""
    lab.agent.process.forget()
    lab.relay.process.kill()
    with inside("relay"):
        hole = socket.create_server((RELAY, PORT))  # the kernel accepts, and nobody ever reads
    with hole:
        while "did not answer" not in lab.agent.process.told("relay")["detail"]:
            pass
    with lab.target(echo) as target:
        lab.start_relay()
        until(lambda: carries(lambda: lab.open(target.port)), "the tunnel works again", SOON, 0.05)

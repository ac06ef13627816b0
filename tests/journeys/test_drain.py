"""A relay that is told to stop says so to everybody, and lets what is under way finish."""

import socket

import pytest

from tests.journeys import doors
from tests.journeys.processes import until
from tests.journeys.targets import Target, echo, read_exactly, read_to_end, serving
from tests.journeys.world import Trio, World
from tuunel.errors import ANSWERS, Reason

pytestmark = pytest.mark.real


def count_down(sock: socket.socket, _target: Target) -> None:
    """Send a byte for each that comes; at the end say goodbye and end."""
    while byte := sock.recv(1):
        sock.sendall(byte)
    sock.sendall(b"goodbye")
    sock.shutdown(socket.SHUT_WR)


def test_a_relay_drains(own_world: World) -> None:
    relay = own_world.relay(options=["--drain", "60"])
    agent = own_world.agent(relay.link)
    laptop = own_world.laptop(str(agent.invite))
    three = Trio(own_world, relay, agent, laptop, own_world.proxy(laptop))
    with serving(count_down) as target, serving(echo) as other:
        with doors.socks5(three.proxy.address, "home.tuunel", target.port) as under_way:
            relay.process.terminate()
            for process in (agent.process, three.proxy.process):
                told = process.told("relay")
                while told["state"] != "offline":
                    told = process.told("relay")
                assert ANSWERS[Reason.SHUTDOWN].message in told["detail"]
            with doors.socks5(three.proxy.address, "home.tuunel", other.port) as refused:
                assert refused.answer.code == ANSWERS[Reason.RELAY_UNREACHABLE].socks
            for _ in range(10):
                under_way.sock.sendall(b"x")
                assert read_exactly(under_way.sock, 1) == b"x"
            assert relay.process.alive()
            under_way.sock.shutdown(socket.SHUT_WR)
            assert read_to_end(under_way.sock) == b"goodbye"
            assert relay.process.wait() == 0  # long before its time is over: the last tunnel has ended
        own_world.relay(relay.machine, port=relay.port)

        def works() -> bool:
            with doors.socks5(three.proxy.address, "home.tuunel", other.port) as opened:
                return opened.answer.code == 0

        until(works, "everybody is back", 5, 0.05)

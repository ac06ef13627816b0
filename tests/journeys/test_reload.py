"""SIGHUP on a machine in use: what is edited counts, and no tunnel notices."""

import json
import signal
import socket

import pytest

from tests.journeys import doors
from tests.journeys.processes import Running, until
from tests.journeys.targets import echo, read_exactly, serving
from tests.journeys.verdicts import ask_http_connect
from tests.journeys.world import Machine, Trio
from tuunel.errors import Reason

pytestmark = pytest.mark.real


def reloaded(process: Running, machine: Machine, text: str) -> str:
    """Write the machine's settings, have the process read them, and return what it says of it: the next notice about settings."""
    (machine.home / "config.toml").write_text(text)
    process.signal(signal.SIGHUP)
    while "settings" not in (said := str(process.told("notice")["text"])):
        pass  # a relay says at its start how many connections it has room for
    return said


def still_works(sock: socket.socket) -> bool:
    sock.sendall(b"still here")
    return read_exactly(sock, 10) == b"still here"


def test_routes_and_other_destinations_change_under_a_living_tunnel(own_trio: Trio) -> None:
    proxy, laptop = own_trio.proxy, own_trio.laptop
    with serving(echo) as target, doors.socks5(proxy.address, "home.tuunel", target.port) as opened:
        assert reloaded(proxy.process, laptop, '[proxy]\nother = "refuse"\n') == "settings read again: proxy.other"
        assert ask_http_connect(proxy, "127.0.0.1", target.port).reason is Reason.REFUSED_BY_SETTING
        with_route = '[proxy]\nother = "refuse"\nroute = ["127.0.0.0/8=home"]\n'
        assert reloaded(proxy.process, laptop, with_route) == "settings read again: proxy.route"
        with doors.socks5(proxy.address, "127.0.0.1", target.port) as routed:
            assert still_works(routed.sock)
        (laptop.home / "config.toml").write_text("[proxy]\nroute = 5\n")
        proxy.process.signal(signal.SIGHUP)
        assert "stay as they were" in proxy.process.told("alarm")["text"]
        assert ask_http_connect(proxy, "example.com", 80).reason is Reason.REFUSED_BY_SETTING
        assert still_works(opened.sock)


def test_an_allowed_client_comes_and_goes_under_a_living_tunnel(own_trio: Trio) -> None:
    agent, stranger = own_trio.agent, own_trio.world.machine()
    with serving(echo) as target, doors.socks5(own_trio.proxy.address, "home.tuunel", target.port) as opened:
        stranger_id = stranger.ask("devices")["device_id"]
        stranger.ask("devices", "add", agent.device_id, "--relay", own_trio.relay.new_link(), "--name", "home")
        assert stranger.nc("home", target.port, stdin=b"?").returncode != 0
        assert reloaded(agent.process, agent.machine, f'[agent]\nallow = ["{stranger_id}"]\n') == "settings read again: agent.allow"
        # The relay must hear of it as well: it decides who may knock.
        until(lambda: stranger.nc("home", target.port, stdin=b"in").stdout == b"in", "the stranger is let in", interval=0.2)
        reloaded(agent.process, agent.machine, "")
        assert stranger.nc("home", target.port, stdin=b"?").returncode != 0
        assert still_works(opened.sock)


def test_a_relay_opens_enrolment_under_a_living_tunnel(own_trio: Trio) -> None:
    relay, used_up = own_trio.relay, own_trio.relay.new_link()
    first, second = own_trio.world.machine(), own_trio.world.machine()

    def enrols(machine: Machine) -> bool:
        added = machine.tuunel("devices", "add", own_trio.agent.device_id, "--relay", used_up, "--name", "home", check=False)
        return added.returncode == 0

    with serving(echo) as target, doors.socks5(own_trio.proxy.address, "home.tuunel", target.port) as opened:
        assert enrols(first)
        assert not enrols(second)
        told = reloaded(relay.process, relay.machine, '[relay]\nadvertise = "elsewhere"\nopen-enrolment = true\n')
        assert told == "settings read again: relay.open-enrolment"  # --advertise was given on the command line
        assert enrols(second)
        assert still_works(opened.sock)


def test_a_grants_file_that_is_edited_counts_and_reaches_the_relay(own_trio: Trio) -> None:
    agent, walker = own_trio.agent, own_trio.walker
    walker_id = walker.ask("devices")["device_id"]
    file = agent.machine.home / "grants.json"
    whole = file.read_text()

    def again(text: str) -> None:
        file.write_text(text)
        agent.process.signal(signal.SIGHUP)

    def reaches(port: int) -> bool:
        return walker.nc("home", port, stdin=b"in").stdout == b"in"

    book = json.loads(whole)
    book["grants"] = [grant for grant in book["grants"] if grant["device"] != walker_id]
    with serving(echo) as target, doors.socks5(own_trio.proxy.address, "home.tuunel", target.port) as opened:
        assert reaches(target.port)
        again(json.dumps(book))
        agent.process.told("notice")
        until(lambda: not reaches(target.port), "the client is kept out", interval=0.2)
        assert still_works(opened.sock)
        again(whole)
        until(lambda: reaches(target.port), "the client is let in again, by the relay too", interval=0.2)
        assert still_works(opened.sock)
        again("{")
        assert "grants.json" in agent.process.told("alarm")["text"]

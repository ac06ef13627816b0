"""The relay is blind: of targets, ports, aliases and payload, nothing is in what it receives, its memory, its files and its logs."""

import contextlib
import re
import secrets
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Address

import pytest

from tests.journeys import doors
from tests.journeys.datagrams import answering, associated
from tests.journeys.processes import run, tuunel_argv
from tests.journeys.targets import Handler, Target, read_exactly, serving
from tests.journeys.wiretap import Wiretap, found_in_memory, wiretap
from tests.journeys.world import LOOPBACK, Agent, Machine, Proxy, Relay, World, port_of
from tuunel.address import ip6_label

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is read through /proc"),
]

SIZE = 64  # bytes of a canary
TIMES = 4096  # of one in a row


@dataclass
class Canaries:
    """What only the two ends may know, each unlike anything else in the world."""

    alias: str = field(default_factory=lambda: f"alias{secrets.token_hex(12)}")
    target: str = field(default_factory=lambda: str(IPv6Address(0xFD << 120 | secrets.randbits(120))))
    up: bytes = field(default_factory=lambda: secrets.token_hex(SIZE // 2).encode())
    down: bytes = field(default_factory=lambda: secrets.token_hex(SIZE // 2).encode())
    datagram: bytes = field(default_factory=lambda: secrets.token_hex(SIZE // 2).encode())
    ports: list[int] = field(default_factory=list)

    def pattern(self) -> re.Pattern[bytes]:
        texts = [self.alias.encode(), self.target.encode(), ip6_label(IPv6Address(self.target)).encode(), self.up, self.down, self.datagram]
        return re.compile(b"|".join([*texts, *(rb"(?<!\d)%d(?!\d)" % port for port in self.ports)]))


@dataclass
class Scene:
    tap: Wiretap
    relay: Relay
    agent: Agent
    laptop: Machine
    proxy: Proxy
    canaries: Canaries


@pytest.fixture
def scene(own_world: World) -> Iterator[Scene]:
    """Relay, agent and proxy, with a tap on every connection to the relay."""
    with wiretap() as tap:
        machine = own_world.machine()
        process = own_world.watch(machine.start("relay", "serve", "--listen", f"{LOOPBACK}:0", "--advertise", f"{LOOPBACK}:{tap.port}"))
        ready = process.ready()
        tap.relay_port = port_of(ready["listen"])
        relay = Relay(machine, process, tap.relay_port, ready["link"])
        agent = own_world.agent(relay.link)
        canaries = Canaries()
        assert agent.invite
        laptop = own_world.laptop(agent.invite, canaries.alias)
        proxy = own_world.proxy(laptop)
        yield Scene(tap, relay, agent, laptop, proxy, canaries)


def answer_with(down: bytes, times: int) -> Handler:
    def handler(sock: socket.socket, _target: Target) -> None:
        read_exactly(sock, SIZE)
        sock.sendall(down * times)
        sock.shutdown(socket.SHUT_WR)

    return handler


@contextlib.contextmanager
def target_at(canary_ports: list[int], unseen: set[bytes], handler: Handler) -> Iterator[Target]:
    """A target whose port, as text, is not in the relay's memory by chance."""
    with contextlib.ExitStack() as stack:
        while True:
            target = stack.enter_context(serving(handler))
            if target.port > 9999 and str(target.port).encode() not in unseen:
                canary_ports.append(target.port)
                yield target
                return


def use_everything(scene: Scene) -> None:
    """TCP through SOCKS, HTTP and nc, a target that nobody has, UDP, and canaries in a row."""
    canaries, proxy = scene.canaries, scene.proxy.address
    host = f"{canaries.alias}.tuunel"
    chance = found_in_memory(scene.relay.process.pid, re.compile(rb"(?<!\d)\d{5}(?!\d)"))
    with target_at(canaries.ports, chance, answer_with(canaries.down, TIMES)) as target:
        for way in (doors.socks5, doors.http_connect, doors.socks4a):
            with way(proxy, host, target.port) as opened:
                opened.sock.sendall(canaries.up)
                assert read_exactly(opened.sock, SIZE * TIMES) == canaries.down * TIMES
        done = run(tuunel_argv("nc", host, str(target.port)), scene.laptop.env, stdin=canaries.up)
        assert done.stdout == canaries.down * TIMES
        with doors.socks5(proxy, f"{ip6_label(IPv6Address(canaries.target))}.ip6.{host}", target.port) as refused:
            assert refused.answer.code != 0
    with answering(lambda _: canaries.datagram[::-1]) as server, associated(proxy) as association:
        assert association.ask(host, server.port, canaries.datagram) == canaries.datagram[::-1]


def test_nothing_that_the_relay_gets_holds_or_writes_tells_a_target_or_a_byte(scene: Scene) -> None:
    use_everything(scene)
    canaries, secret = scene.canaries, scene.canaries.pattern()
    # the search finds what is there: at both ends
    assert {canaries.alias.encode(), str(canaries.ports[0]).encode()} <= found_in_memory(scene.proxy.process.pid, secret)
    assert canaries.target.encode() in found_in_memory(scene.agent.process.pid, secret)

    assert scene.tap.connections > 4
    assert len(scene.tap.heard) > 4 * SIZE * TIMES
    assert secret.findall(scene.tap.heard) == []
    assert found_in_memory(scene.relay.process.pid, secret) == set()
    scene.relay.process.terminate()
    scene.relay.process.wait()
    files = [path for path in scene.relay.machine.home.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files)
    said = scene.relay.process.rest()
    assert '"event": "closed"' in said
    written = [*(path.read_bytes() for path in files), said.encode(), scene.relay.process.errors().encode()]
    assert [secret.findall(text) for text in written if secret.search(text)] == []

"""Guarded addresses as targets of datagrams, under every spelling: the rules of `test_ssrf.py` hold for each UDP flow."""

import socket
from collections.abc import Hashable, Sequence
from ipaddress import IPv4Address, IPv6Address

import pytest

from tests.test_ssrf import GENERAL, GUARDED, METADATA, THIS_MACHINE, Guest, Resolver, guest, resolver, spellings
from tests.world import until
from tuunel import dial as dialling
from tuunel.address import HostPort
from tuunel.events import ConnectionClosed, ConnectionOpened

pytestmark = pytest.mark.anyio

__all__ = ["resolver"]

PORT = 53


@pytest.fixture
def sent_to(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every address that a flow's socket was connected to."""
    made: list[tuple[str, int]] = []
    connect_to = dialling._connect_datagrams

    def connect_and_note(address: IPv4Address | IPv6Address, port: int) -> socket.socket:
        made.append((str(address), port))
        return connect_to(address, port)

    monkeypatch.setattr(dialling, "_connect_datagrams", connect_and_note)
    return made


async def ends(asked: Guest, hosts: Sequence[str], port: int) -> dict[str, str]:
    """How each flow ended to which one datagram was sent."""
    seen = len(asked.proxy.seen(ConnectionOpened))
    targets = [HostPort(host.strip("[]"), port) for host in hosts]
    async with asked.proxy.role._associate(door="socks5", local=True, deliver=lambda *_: True) as datagrams:
        for target in targets:
            datagrams.send(target, b"x")
        datagrams.flush()
        flows = {event.id: event.target for event in asked.proxy.seen(ConnectionOpened)[seen:]}
        await until(lambda: flows.keys() <= {event.id for event in asked.proxy.seen(ConnectionClosed)})
    return {flows[event.id]: event.reason for event in asked.proxy.seen(ConnectionClosed) if event.id in flows}


async def test_no_spelling_of_the_metadata_service_gets_a_datagram(resolver: Resolver, sent_to: list[tuple[str, int]]) -> None:
    async with guest(*GENERAL) as asked:
        answers = await ends(asked, spellings(METADATA), PORT)
        assert set(answers.values()) == {"POLICY_DENIED"}, answers
        assert len(answers) == len(spellings(METADATA))
        assert not sent_to


async def test_a_name_that_resolves_to_a_guarded_address_gets_none_either(resolver: Resolver, sent_to: list[tuple[str, int]]) -> None:
    async with guest(*(target for target in GENERAL if target != "169.254.0.0/16")) as asked:
        hosts = [resolver.names(f"name{number}.example", [address]) for number, address in enumerate(GUARDED)]
        answers = await ends(asked, hosts, PORT)
        assert set(answers.values()) == {"POLICY_DENIED"}, answers
        assert sorted(set(resolver.asked)) == sorted(hosts)
        assert not sent_to


async def test_a_name_is_looked_up_once_for_each_flow_and_judged_each_time(resolver: Resolver, sent_to: list[tuple[str, int]]) -> None:
    async with guest("*") as asked:
        port = asked.world.datagram_target()
        host = resolver.names("name.example", ["127.0.0.1"], [str(METADATA)])
        heard: list[bytes] = []

        def deliver(_: Hashable, data: bytes) -> bool:
            heard.append(data)
            return True

        async with asked.proxy.role._associate(door="socks5", local=True, deliver=deliver) as datagrams:
            datagrams.send(HostPort(host, port), b"x")
            datagrams.flush()
            await until(lambda: heard)
        assert await ends(asked, [host], port) == {f"{host}:{port}/udp": "POLICY_DENIED"}
        assert sent_to == [("127.0.0.1", port)]


@pytest.mark.parametrize("listen", ["127.0.0.1", "::"])
async def test_no_spelling_lets_a_datagram_reach_a_port_of_tuunel_itself(
    listen: str, resolver: Resolver, sent_to: list[tuple[str, int]]
) -> None:
    async with guest("*", "internet", beside=listen) as asked:
        assert asked.beside
        port = asked.beside.role._addresses[0].port
        answers = await ends(asked, THIS_MACHINE, port)
        assert set(answers.values()) == {"POLICY_DENIED"}, answers
        assert not [place for place in sent_to if place[1] == port]

"""A flow is older than the port that it leads to: what becomes tuunel's own, or is taken back, is closed to flows that are open, too."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.test_reverseflows import Client, Setting, setting
from tests.world import Running, until
from tuunel import pairing
from tuunel.address import HostPort
from tuunel.agent import Agent
from tuunel.errors import Reason
from tuunel.events import ConnectionOpened, Ready
from tuunel.links import parse_invite

pytestmark = pytest.mark.anyio


def free_port() -> int:
    """A port with nobody at it, TCP or UDP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Owner:
    """Who runs the agent that the guest is let in to, and has access of his own to another one."""

    here: Setting
    other: Running[Agent]

    def reached(self) -> list[str]:
        """What the other agent was asked for."""
        return [event.target for event in self.other.seen(ConnectionOpened)]


@asynccontextmanager
async def owner_and_guest(**invite: object) -> AsyncIterator[tuple[Owner, Client]]:
    async with setting(**invite) as here:
        link = (await here.roles.relay.until(Ready)).link
        other = await here.world.agent(link)
        answer = await other.role._make_invite({})
        await pairing.pair(here.roles.agent.home, parse_invite(answer["invite"]), "other")
        async with here.client() as client:
            yield Owner(here, other), client


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
async def test_a_silent_flow_does_not_become_a_way_into_the_owners_forward(host: str) -> None:
    async with owner_and_guest() as (owner, guest):
        port = free_port()
        secret = owner.here.world.datagram_target(lambda _: [b"the owner's"])
        flow = await guest.open(HostPort(host, port))
        await until(lambda: flow in guest.opened)
        await owner.here.world.forward(owner.here.roles.agent.home, f"{port}:other.tuunel:{secret}/udp")
        await guest.send(flow, b"let me in")
        await until(lambda: flow in guest.ended or guest.received[flow])
        assert guest.received[flow] == []
        assert guest.ended[flow].reason is Reason.POLICY_DENIED
        assert "tuunel's own port" in guest.ended[flow].detail
        assert owner.reached() == []
        await guest.works(owner.here.world.datagram_target())

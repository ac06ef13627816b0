"""What `doctor` says of relays: real ones, and what stands in their place."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.world import World, trio, world
from tuunel.address import HostPort
from tuunel.checkrelay import check_relays
from tuunel.devices import Devices
from tuunel.events import Ready
from tuunel.finding import Finding, Verdict
from tuunel.identity import IdentityKey
from tuunel.links import RelayLink, parse_link
from tuunel.rawstream import RawStream
from tuunel.settings import Home

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def knowing(relay: RelayLink, *, enrolled: bool, made: World) -> AsyncIterator[Home]:
    """A machine with a key that knows this relay."""
    home = made.home()
    home.ensure()
    IdentityKey.load_or_create(home.identity_key)
    Devices(home.devices_file).remember_relay(relay, enrolled=enrolled)
    yield home


async def only(home: Home) -> Finding:
    (finding,) = await check_relays(home)
    return finding


async def test_a_relay_that_is_there_and_its_clock() -> None:
    async with world() as made:
        roles = await trio(made)
        relay, clock = await check_relays(roles.home)
        assert (relay.state, clock.state) == (Verdict.OK, Verdict.OK)
        assert "pinned" in relay.what


async def test_every_relay_is_asked_and_one_that_is_gone_is_told() -> None:
    async with world() as made:
        roles = await trio(made)
        Devices(roles.home.devices_file).remember_relay(RelayLink(HostPort("127.0.0.1", 1), bytes(32)), enrolled=True)
        gone, here, _ = await check_relays(roles.home)
        assert (gone.state, here.state) == (Verdict.WRONG, Verdict.OK)
        assert "127.0.0.1:1" in gone.what
        assert "refused" in gone.what
        assert "tuunel relay serve" in gone.fix


async def test_a_name_that_nobody_knows() -> None:
    async with world() as made:
        link = RelayLink(HostPort(f"{'x' * 64}.invalid", 7443), bytes(32))  # longer than any label: no name server is asked
        async with knowing(link, enrolled=True, made=made) as home:
            finding = await only(home)
    assert finding.state is Verdict.WRONG
    assert "name server" in finding.fix


async def test_another_relay_in_its_place() -> None:
    async with world() as made:
        link = parse_link((await (await made.relay()).until(Ready)).link or "")
        async with knowing(RelayLink(link.address, bytes(32)), enrolled=True, made=made) as home:
            finding = await only(home)
    assert (finding.check, finding.state) == ("relay", Verdict.WRONG)
    assert "not the one that is pinned" in finding.what


@pytest.mark.parametrize(("enrolled", "state"), [(False, Verdict.OK), (True, Verdict.WRONG)])
async def test_a_relay_that_does_not_know_this_machine(enrolled: bool, state: Verdict) -> None:
    async with world() as made:
        link = parse_link((await (await made.relay()).until(Ready)).link or "")
        async with knowing(RelayLink(link.address, link.pin), enrolled=enrolled, made=made) as home:
            finding = await only(home)
    assert finding.state is state


async def test_something_that_is_no_relay() -> None:
    async def web_server(stream: RawStream) -> None:
        await stream.receive()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + bytes(2000))
        await stream.aclose()

    async with world() as made:
        link = RelayLink(HostPort("127.0.0.1", await made.target(web_server)), bytes(32))
        async with knowing(link, enrolled=True, made=made) as home:
            finding = await only(home)
    assert finding.state is Verdict.WRONG
    assert "tuunel relay" in finding.fix

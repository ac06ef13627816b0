"""The agent's role: its first word, its book and its relay, and how it ends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.world import PATIENCE, Trio, World, echo, pool_of, trio, until, world
from tuunel.address import HostPort
from tuunel.agent import Agent
from tuunel.devices import Devices
from tuunel.earlybytes import EarlyBytes
from tuunel.errors import Failure, ListenError, Reason, UsageError
from tuunel.events import Ready, RelayStateChanged
from tuunel.identity import IdentityKey
from tuunel.links import RelayLink, parse_invite, parse_link
from tuunel.rawstream import receive_chunk, send_bytes

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def three() -> AsyncIterator[tuple[World, Trio]]:
    async with world() as made:
        yield made, await trio(made)


async def test_its_first_word_has_an_invite_only_while_nobody_is_paired() -> None:
    async with three() as (made, roles):
        first = await roles.agent.until(Ready)
        assert first.invite
        assert str(parse_invite(first.invite).device) == first.device_id
        await roles.agent.kill()
        again = await (await made.agent(None, roles.agent.home)).until(Ready)  # no link is needed
        assert (again.device_id, again.invite) == (first.device_id, None)


async def test_an_agent_without_a_relay_says_what_it_needs() -> None:
    async with world() as made:
        home = made.home()
        with pytest.raises(UsageError, match="relay"):
            Agent(home, link=None, allow=(), admit_enrolled=False, emit=lambda _: None)


async def test_a_machine_that_is_enrolled_at_one_relay_needs_no_link() -> None:
    async with three() as (made, roles):
        back = await (await made.agent(None, roles.home)).until(Ready)  # an invite has enrolled it
        assert back.device_id == str(IdentityKey.load(roles.home.identity_key).device_id)
        assert back.invite
        assert parse_invite(back.invite).relay.pin == Devices(roles.home.devices_file).relays()[0].id


async def test_a_machine_that_is_enrolled_at_two_relays_must_be_told_which() -> None:
    async with three() as (_, roles):
        for port in (1, 2):
            Devices(roles.home.devices_file).remember_relay(
                RelayLink(HostPort("relay.example", port), bytes([port] * 32)), enrolled=port == 1
            )
        with pytest.raises(UsageError, match=r"several relays \(relay\.example:1, 127\.0\.0\.1:\d+\)") as caught:
            Agent(roles.home, link=None, allow=(), admit_enrolled=False, emit=lambda _: None)
        assert "tuunel relay link" in caught.value.advice
        assert not (roles.home.root / "agent.json").exists()


async def test_devices_that_are_allowed_need_no_invite() -> None:
    async with world() as made:
        relay = await made.relay()
        link = (await relay.until(Ready)).link
        home = made.home()
        home.ensure()
        client = IdentityKey.load_or_create(home.identity_key).device_id
        agent = await made.agent(link, allow=[client])
        assert (await agent.until(Ready)).invite is None
        assert [grant.device for grant in agent.role._grants.grants(0)] == [client]


async def test_a_second_agent_of_the_same_home_does_not_start() -> None:
    async with three() as (made, roles):
        second = made.start(roles.agent.home, lambda emit: Agent(roles.agent.home, link=None, allow=(), admit_enrolled=False, emit=emit))
        await second.over.wait()
        assert isinstance(second.error, ExceptionGroup)
        assert second.error.subgroup(ListenError)
        assert not roles.agent.over.is_set()


async def test_stop_lets_what_is_carried_finish_and_drops_what_waits() -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        async with pool_of(roles.home, warm=2) as pool:
            tunnel, _ = await pool.connect(roles.device, HostPort("", port))
            await until(lambda: len(roles.agent.role._tunnels._idle) == 2)
            roles.agent.role.stop()
            await until(lambda: not roles.agent.role._tunnels._idle)
            await send_bytes(tunnel, pool._buffers, b"still here")
            assert await receive_chunk(tunnel, pool._buffers) == b"still here"
            assert not roles.agent.over.is_set()
            await tunnel.write_eof()
            assert await receive_chunk(tunnel, pool._buffers) == b""
            await tunnel.aclose()
            with anyio.fail_after(PATIENCE):
                await roles.agent.over.wait()
            assert roles.agent.error is None


async def test_invites_have_bounds_and_are_told_with_their_end() -> None:
    async with three() as (_, roles):
        answer = await roles.agent.role._make_invite({"targets": ["printer.lan:631"], "uses": 3, "name": "guest"})
        assert (answer["uses"], answer["targets"]) == (3, ["printer.lan:631"])
        listed = await roles.agent.role._list_clients({})
        assert [invite["uses"] for invite in listed["invites"] if invite["name"] == "guest"] == [3]
        before = len(listed["invites"])
        for bad in ({"uses": 0.5e9}, {"targets": ["no pattern!"]}, {"for": -1}):
            with pytest.raises(UsageError):
                await roles.agent.role._make_invite(bad)
        assert len((await roles.agent.role._list_clients({}))["invites"]) == before


async def test_an_agent_that_is_offline_makes_no_invite() -> None:
    async with three() as (_, roles):
        await roles.relay.kill()
        await roles.agent.until(RelayStateChanged, lambda event: event.state == "offline")
        with pytest.raises(Failure) as caught:
            await roles.agent.role._make_invite({})
        assert caught.value.reason is Reason.RELAY_UNREACHABLE
        (relay,) = roles.agent.role._facts()["relays"]
        assert relay["state"] != "online"


async def test_the_relay_is_no_target_by_any_of_its_names() -> None:
    async with three() as (_, roles):
        relay = parse_link((await roles.relay.until(Ready)).link or "").address
        async with pool_of(roles.home) as pool:
            for host in ("127.0.0.1", "::ffff:127.0.0.1"):
                with pytest.raises(Failure) as caught:
                    await pool.connect(roles.device, HostPort(host, relay.port))
                assert caught.value.reason is Reason.POLICY_DENIED


async def test_what_waits_at_the_relay_is_replaced_as_it_is_used() -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        async with pool_of(roles.home) as pool:
            for number in range(8):
                tunnel, _ = await pool.connect(roles.device, HostPort("", port), EarlyBytes(bytes([number])))
                assert await receive_chunk(tunnel, pool._buffers) == bytes([number])
                tunnel.reset()

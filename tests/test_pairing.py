"""Coming to know a device: by its invite, or by its ID alone; an invite that fails leaves no device behind."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import pytest

from tests.world import Trio, World, device_of, echo, pool_of, trio, world
from tuunel import pairing
from tuunel.address import HostPort
from tuunel.devices import Devices
from tuunel.earlybytes import EarlyBytes
from tuunel.errors import Failure, Reason, Speaker, UsageError
from tuunel.events import Ready
from tuunel.identity import DeviceID, IdentityKey
from tuunel.links import Invite, parse_invite, parse_link
from tuunel.rawstream import receive_chunk
from tuunel.relay.store import Store

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def three() -> AsyncIterator[tuple[World, Trio]]:
    async with world() as made:
        yield made, await trio(made)


async def new_invite(roles: Trio, **options: object) -> Invite:
    return parse_invite((await roles.agent.role._make_invite(options))["invite"])


async def test_pairing_remembers_the_device_and_grants_access() -> None:
    async with three() as (made, roles):
        home = made.home()
        device = await pairing.pair(home, await new_invite(roles), "den")
        assert device_of(home, "DEN") == device
        port = await made.target(echo)
        async with pool_of(home) as pool:
            tunnel, _ = await pool.connect(device, HostPort("", port), EarlyBytes(b"x"))
            assert await receive_chunk(tunnel, pool._buffers) == b"x"


async def test_the_relay_lets_a_machine_through_from_the_moment_that_its_pairing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the relay's disk is: what the agent has to say of a used-up invite is longer on its way than the next OPEN."""
    drop = Store.drop_token

    async def slow(store: Store, device: DeviceID, token_hash: bytes) -> None:
        await anyio.sleep(0.3)
        await drop(store, device, token_hash)

    monkeypatch.setattr(Store, "drop_token", slow)
    async with three() as (_, roles), pool_of(roles.home) as pool:
        (await pool.open(roles.device)).reset()


async def test_without_a_name_the_device_names_itself() -> None:
    async with three() as (made, roles):
        device = await pairing.pair(made.home(), await new_invite(roles), None)
        assert device.name


async def test_an_invite_is_used_once_but_the_one_who_used_it_may_ask_again() -> None:
    async with three() as (made, roles):
        invite, home = await new_invite(roles), made.home()
        first = await pairing.pair(home, invite, "den")
        assert await pairing.pair(home, invite, "den") == first
        other = made.home()
        with pytest.raises(Failure) as caught:
            await pairing.pair(other, invite, "den")
        assert (caught.value.reason, caught.value.speaker) in {
            (Reason.INVITE_INVALID, Speaker.AGENT),
            (Reason.PEER_UNAVAILABLE, Speaker.RELAY),  # the relay knows already that it is used up
            (Reason.ENROLMENT_REQUIRED, Speaker.RELAY),
        }
        assert Devices(other.devices_file).devices() == []


async def test_a_wrong_secret_opens_nothing() -> None:
    async with three() as (made, roles):
        invite, home = await new_invite(roles), made.home()
        with pytest.raises(Failure):
            await pairing.pair(home, replace(invite, secret=bytes(16)), "den")
        assert Devices(home.devices_file).devices() == []
        await pairing.pair(home, invite, "den")  # and the attempt has not used it up


async def test_another_relays_key_is_not_trusted_and_nothing_is_remembered() -> None:
    async with three() as (made, roles):
        invite, home = await new_invite(roles), made.home()
        with pytest.raises(Failure) as caught:
            await pairing.pair(home, replace(invite, relay=replace(invite.relay, pin=bytes(32))), "den")
        assert caught.value.reason is Reason.RELAY_UNTRUSTED
        assert Devices(home.devices_file).relays() == []


async def test_a_name_that_cannot_be_had_costs_no_invite() -> None:
    async with three() as (made, roles):
        invite = await new_invite(roles)
        stranger = IdentityKey.generate().device_id
        home = made.home()
        home.ensure()
        Devices(home.devices_file).remember_relay(invite.relay, enrolled=True)
        Devices(home.devices_file).add("den", stranger, invite.relay.pin)
        with pytest.raises(UsageError):
            await pairing.pair(home, invite, "den")
        await pairing.pair(made.home(), invite, "den")


async def test_a_device_that_admits_this_machine_needs_no_invite() -> None:
    async with three() as (made, roles):
        link = parse_link((await roles.relay.until(Ready)).link or "")
        home = made.home()
        device = await pairing.add_device(home, roles.device.id, link, "den")
        assert device_of(home, "den") == device
        async with pool_of(home) as pool:
            with pytest.raises(Failure) as caught:  # this one's agent does not
                await pool.connect(device, HostPort("", 80))
        assert caught.value.reason in {Reason.NOT_PAIRED, Reason.PEER_UNAVAILABLE}

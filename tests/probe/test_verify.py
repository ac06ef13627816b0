"""verify: whom a name means here, whether a device or a client, told by the running agent or by its book."""

import hmac
import time
from pathlib import Path

import pytest
from anyio import to_thread

from tests.world import trio, world
from tuunel.address import HostPort
from tuunel.devices import Devices
from tuunel.errors import Failure, Reason, UsageError
from tuunel.events import Ready
from tuunel.grants import Grants
from tuunel.identity import IdentityKey
from tuunel.links import RelayLink
from tuunel.probe.verify import verify
from tuunel.settings import Home
from tuunel.verification import verification

HOME_ID, CLIENT_ID = (IdentityKey.from_private_value(value).device_id for value in (7, 8))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path)
    made.ensure()
    devices = Devices(made.devices_file)
    devices.remember_relay(RelayLink(HostPort("relay.example", 7443), bytes(32), None), enrolled=True)
    devices.add("home", HOME_ID, bytes(32))
    return made


def admit(home: Home, name: str) -> None:
    secret, now = bytes(16), int(time.time())
    grants = Grants(home.grants_file)
    grants.make_invite(secret, ["*"], uses=1, expires=now + 60, name=name, now=now)
    invite = grants.open_invites(now)[0]
    grants.redeem(invite.id, hmac.digest(invite.proof_key, b"t3", "sha256"), b"t3", CLIENT_ID, label="", now=now)


def test_a_device_and_a_client_are_known_by_name_in_any_case(home: Home) -> None:
    admit(home, "Ann")
    own = IdentityKey.load_or_create(home.identity_key).device_id
    done = verify(home, "HOME.tuunel")
    assert (done.peer.kind, done.peer.device, done.digits) == ("device", HOME_ID, verification(own, HOME_ID))
    done = verify(home, "ann")
    assert (done.peer.kind, done.peer.device, done.digits) == ("client", CLIENT_ID, verification(own, CLIENT_ID))


def test_an_id_needs_no_name(home: Home) -> None:
    assert verify(home, str(HOME_ID)).peer.name == "home"
    assert verify(home, CLIENT_ID.compact).peer.kind == "unnamed"


def test_a_name_that_means_two_machines_is_refused(home: Home) -> None:
    admit(home, "home")
    with pytest.raises(UsageError, match="device and of another client"):
        verify(home, "home")


def test_a_name_that_means_nobody_is_answered_with_the_nearest(home: Home) -> None:
    admit(home, "annabel")
    for typo, right in (("hone", "home"), ("anabel", "annabel")):
        with pytest.raises(Failure, match=f"did you mean '{right}'") as caught:
            verify(home, typo)
        assert caught.value.reason is Reason.UNKNOWN_NAME
    with pytest.raises(Failure, match="typo"):
        verify(home, str(HOME_ID)[:-1] + "a")


def test_this_machine_itself_is_nobody_to_compare_with(home: Home) -> None:
    own = verify(home, "home").own
    with pytest.raises(UsageError, match="itself"):
        verify(home, str(own))


@pytest.mark.anyio
async def test_the_running_agent_knows_whom_its_command_line_admits() -> None:
    async with world() as made:
        relay = await made.relay()
        link = (await relay.until(Ready)).link
        agent = await made.agent(link, allow=[CLIENT_ID])
        done = await to_thread.run_sync(verify, agent.home, str(CLIENT_ID).partition("-")[0])
        assert (done.peer.kind, done.peer.device) == ("client", CLIENT_ID)
        roles = await trio(made)
        (grant,) = roles.agent.role._grants.grants(int(time.time()))
        here = await to_thread.run_sync(verify, roles.home, "home")
        there = await to_thread.run_sync(verify, roles.agent.home, grant.name)
        assert here.digits == there.digits

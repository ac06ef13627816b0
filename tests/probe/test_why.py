"""why: the parts of the way in order, the first broken one last, and several relays one after the other."""

import anyio
import pytest

from tests.world import PATIENCE, Trio, echo, trio, world
from tuunel.address import HostPort
from tuunel.devices import Device, KnownRelay
from tuunel.errors import Failure, NotRunning, Reason, TuunelError
from tuunel.probe import why as module
from tuunel.probe.why import Hop, Why
from tuunel.routing import ThroughDevice
from tuunel.settings import Home

pytestmark = pytest.mark.anyio

CLOSED = 1  # a port that nobody listens on in any test
TO_AGENT = ["enrolment", "relay", "pin", "login", "device", "tunnel", "admission"]


async def walked(home: Home, host: str, port: int) -> tuple[list[Hop], TuunelError | None]:
    told: list[Hop] = []
    why = Why(home, HostPort(host, port), told.append)
    with anyio.fail_after(3 * PATIENCE):
        broken = await why.walk()
    assert told == why.hops
    return told, broken


def names(hops: list[Hop]) -> list[str]:
    return [hop.name for hop in hops]


async def test_all_of_a_way_that_works() -> None:
    async with world() as made:
        roles = await trio(made)
        await made.proxy(roles.home)
        hops, broken = await walked(roles.home, "home.tuunel", await made.target(echo))
        assert broken is None
        assert names(hops) == ["proxy", "name", *TO_AGENT, "policy", "target"]
        assert all(hop.ok for hop in hops)


async def test_without_a_proxy_the_rest_is_walked_and_the_proxy_is_what_is_missing() -> None:
    async with world() as made:
        roles = await trio(made)
        hops, broken = await walked(roles.home, "home.tuunel", await made.target(echo))
        assert isinstance(broken, NotRunning)
        assert [hop.ok for hop in hops] == [None] + [True] * (len(hops) - 1)
        hops, broken = await walked(roles.home, "home.tuunel", CLOSED)
        assert isinstance(broken, Failure)
        assert broken.reason is Reason.CONNECTION_REFUSED
        assert (hops[-1].name, hops[-1].ok, hops[-1].error) == ("target", False, broken)


async def test_names_at_the_agent_and_its_policy_are_told_apart() -> None:
    async with world() as made:
        roles = await trio(made)
        for host, last, reason in (
            ("no-such-host.invalid.home.tuunel", "lookup", Reason.NAME_NOT_RESOLVED),
            ("169.254.169.254.home.tuunel", "policy", Reason.POLICY_DENIED),
            ("localhost.home.tuunel", "target", Reason.CONNECTION_REFUSED),
        ):
            hops, broken = await walked(roles.home, host, CLOSED)
            assert isinstance(broken, Failure)
            assert (hops[-1].name, hops[-1].ok, broken.reason) == (last, False, reason)
        assert names(hops)[-3:] == ["lookup", "policy", "target"]


async def test_names_outside_tuunel_say_how_they_would_go() -> None:
    async with world() as made:
        roles = await trio(made)
        port = await made.target(echo)
        hops, broken = await walked(roles.home, "127.0.0.1", port)
        assert isinstance(broken, NotRunning)
        assert names(hops) == ["proxy"]
        proxy = await made.proxy(roles.home, routes=["127.0.0.0/8=home"], other="refuse")
        hops, broken = await walked(roles.home, "127.0.0.1", port)
        assert broken is None
        assert "route 127.0.0.0/8=home" in hops[1].said
        assert names(hops)[-1] == "target"
        hops, broken = await walked(roles.home, "192.0.2.1", port)
        assert isinstance(broken, Failure)
        assert broken.reason is Reason.REFUSED_BY_SETTING
        assert names(hops) == ["proxy", "route"]
        await proxy.kill()
        proxy = await made.proxy(roles.home, other="via:home")
        hops, broken = await walked(roles.home, "127.0.0.1", port)
        assert broken is None
        assert hops[1].said == "it goes through the device home, by --other"
        await proxy.kill()
        await made.proxy(roles.home)
        hops, broken = await walked(roles.home, "127.0.0.1", port)
        assert broken is None
        assert [(hop.name, hop.ok) for hop in hops] == [("proxy", True), ("route", True), ("target", True)]


async def test_a_relay_that_is_gone_is_told_and_the_next_one_is_walked_by(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as made:
        roles = await trio(made)
        (good,) = roles.device.relays
        gone = KnownRelay(bytes(32), HostPort("127.0.0.1", 1), enrolled=True)
        both = Device("home", roles.device.id, (gone, good))
        monkeypatch.setattr(module, "resolve_name", lambda devices, host: (both, ""))
        hops, broken = await walked(roles.home, "home.tuunel", await made.target(echo))
        assert isinstance(broken, NotRunning)
        assert [(hop.name, hop.ok) for hop in hops[2:5]] == [("enrolment", True), ("relay", False), ("relay", True)]
        assert hops[-1].ok


async def test_a_relay_of_another_key_or_of_no_name() -> None:
    async with world() as made:
        roles = await trio(made)
        (good,) = roles.device.relays
        for relay, last, reason in (
            (KnownRelay(bytes(32), good.address, enrolled=True), "pin", Reason.RELAY_UNTRUSTED),
            (KnownRelay(good.id, HostPort("no-such-relay.invalid", 1), enrolled=True), "dns", Reason.RELAY_UNREACHABLE),
            (KnownRelay(good.id, HostPort("127.0.0.1", 1), enrolled=True), "relay", Reason.RELAY_UNREACHABLE),
        ):
            hops, broken = await walked_by(roles, relay)
            assert isinstance(broken, Failure)
            assert (hops[-1].name, hops[-1].ok, broken.reason) == (last, False, reason)


async def walked_by(roles: Trio, relay: KnownRelay) -> tuple[list[Hop], TuunelError | None]:
    why = Why(roles.home, HostPort("home.tuunel", 1), lambda _: None)
    try:
        await why._through(ThroughDevice(Device("home", roles.device.id, (relay,)), ""))
    except module._BrokenError as broken:
        return why.hops, broken.error
    raise AssertionError


async def test_a_silent_server_in_the_relays_place(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as made:
        roles = await trio(made)

        port = await made.target(lambda stream: stream.aclose())
        (good,) = roles.device.relays
        hops, broken = await walked_by(roles, KnownRelay(good.id, HostPort("127.0.0.1", port), enrolled=True))
        assert isinstance(broken, Failure)
        assert [hop.name for hop in hops][-2:] == ["relay", "pin"]
        assert broken.reason is Reason.RELAY_UNREACHABLE

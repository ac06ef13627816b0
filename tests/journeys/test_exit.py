"""Exit through a device: what is no .tuunel name leaves through the agent, and its grant decides how far."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.journeys import doors
from tests.journeys.datagrams import associated
from tests.journeys.house import ECHO_PORT, LAN_HOST, LAN_PAGE, PUBLIC_HOST, PUBLIC_NETWORK, ROUTER, House
from tests.journeys.peers import program
from tests.journeys.processes import run
from tests.journeys.verdicts import ask_http, ask_http_connect, ask_nc, socks_codes
from tests.journeys.world import LOOPBACK, Machine, Proxy, World
from tuunel.errors import ANSWERS, Reason, Speaker

pytestmark = pytest.mark.real

PUBLIC_NAME = "www.public.example"  # only the agent's machine knows it


@dataclass(frozen=True)
class Traveller:
    """A laptop that sends through `home` all that goes anywhere, as far as its invite lets it."""

    laptop: Machine
    proxy: Proxy


def traveller(world: World, house: House, *options: str) -> Traveller:
    laptop = world.laptop(house.agent.new_invite(*options))
    return Traveller(laptop, world.proxy(laptop, "--other", "via:home"))


@pytest.fixture(scope="module")
def own() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.fixture(scope="module")
def at_home(own: World, house: House) -> Traveller:
    """With the default grant, `*`."""
    return Traveller(house.walker, own.proxy(house.walker, "--other", "via:home"))


@pytest.fixture(scope="module")
def abroad(own: World, house: House) -> Traveller:
    """With a grant for the Internet and nothing else."""
    return traveller(own, house, "--target", "internet")


@pytest.fixture(scope="module")
def routed(own: World, house: House) -> Proxy:
    """With both grants, and a proxy that sends only some places through `home`, and nothing elsewhere."""
    laptop = own.laptop(house.agent.new_invite("--target", "*", "--target", "internet"))
    routes = [f"{PUBLIC_NETWORK}=home", "*.public.example=home", f"{LAN_HOST}/32=home", "*.lan=home"]
    return own.proxy(laptop, "--other", "refuse", *(word for route in routes for word in ("--route", route)))


ROUTED, NOT_ROUTED = (PUBLIC_HOST, PUBLIC_NAME, LAN_HOST, "printer.lan"), (ROUTER, "printer")


def page(proxy: Proxy, scheme: str, host: str) -> bytes:
    at = f"{scheme}://{LOOPBACK}:{proxy.port}"
    return run([program("curl"), "-sSf", "--noproxy", "", "--proxy", at, f"http://{host}:8080/"]).stdout


@pytest.mark.parametrize("scheme", ["socks5h", "http"])
@pytest.mark.parametrize("host", [LAN_HOST, "printer.lan"])
def test_the_default_grant_reaches_the_network_around_the_agent(at_home: Traveller, scheme: str, host: str) -> None:
    assert page(at_home.proxy, scheme, host) == LAN_PAGE


@pytest.mark.parametrize("host", [PUBLIC_HOST, PUBLIC_NAME])
def test_the_default_grant_is_not_the_internet_and_the_refusal_says_how_to_get_it(at_home: Traveller, host: str) -> None:
    for verdict in (ask_http_connect(at_home.proxy, host, 8080), ask_http(at_home.proxy, host, 8080)):
        assert (verdict.reason, verdict.speaker) == (Reason.POLICY_DENIED, Speaker.AGENT)
        assert "internet" in verdict.said
    assert socks_codes(at_home.proxy, host, 8080) == (ANSWERS[Reason.POLICY_DENIED].socks, 0x5B)
    told = ask_nc(at_home.laptop, f"{host}.home.tuunel", 8080)
    assert told.reason is Reason.POLICY_DENIED
    assert "internet" in told.said


@pytest.mark.parametrize("scheme", ["socks5h", "http"])
@pytest.mark.parametrize("host", [PUBLIC_HOST, PUBLIC_NAME])
def test_a_grant_of_the_internet_opens_it(abroad: Traveller, scheme: str, host: str) -> None:
    assert page(abroad.proxy, scheme, host) == LAN_PAGE


@pytest.mark.parametrize("host", [LAN_HOST, "printer.lan", "127.0.0.1", "localhost"])
def test_a_grant_of_the_internet_opens_nothing_else(abroad: Traveller, host: str) -> None:
    verdict = ask_http_connect(abroad.proxy, host, 8080)
    assert (verdict.reason, verdict.speaker) == (Reason.POLICY_DENIED, Speaker.AGENT)


def test_a_laptop_that_pairs_once_more_may_go_where_both_invites_lead(own: World, house: House) -> None:
    guest = traveller(own, house)
    assert ask_http_connect(guest.proxy, PUBLIC_HOST, 8080).reason is Reason.POLICY_DENIED
    guest.laptop.ask("pair", house.agent.new_invite("--target", "internet"), "--name", "home")
    for host in (PUBLIC_HOST, LAN_HOST):
        assert page(guest.proxy, "socks5h", host) == LAN_PAGE


def test_a_route_takes_only_what_it_names(routed: Proxy) -> None:
    for host in ROUTED:
        assert page(routed, "socks5h", host) == LAN_PAGE
    for host in NOT_ROUTED:
        verdict = ask_http_connect(routed, host, 8080)
        assert (verdict.reason, verdict.speaker) == (Reason.REFUSED_BY_SETTING, Speaker.LOCAL)


def test_an_exit_device_that_is_not_known_is_told_at_once(own: World) -> None:
    proxy = own.proxy(own.machine(), "--other", "via:nowhere")
    with doors.socks5(proxy.address, PUBLIC_HOST, 8080) as opened:
        assert opened.answer.code == ANSWERS[Reason.UNKNOWN_NAME].socks


class TestDatagrams:
    """UDP leaves the same way, and policy is asked for each flow."""

    def test_the_default_grant_reaches_the_network_around_the_agent_and_not_the_internet(self, at_home: Traveller) -> None:
        with associated(at_home.proxy.address) as association:
            association.send(PUBLIC_HOST, ECHO_PORT, b"not granted")
            for host in (LAN_HOST, "printer.lan", f"{LAN_HOST}.home.tuunel"):
                assert association.ask(host, ECHO_PORT, b"granted") == b"granted"

    def test_a_grant_of_the_internet_opens_it_and_nothing_else(self, abroad: Traveller) -> None:
        with associated(abroad.proxy.address) as association:
            association.send(LAN_HOST, ECHO_PORT, b"not granted")
            for host in (PUBLIC_HOST, PUBLIC_NAME):
                assert association.ask(host, ECHO_PORT, b"granted") == b"granted"

    def test_a_route_takes_only_what_it_names(self, routed: Proxy) -> None:
        with associated(routed.address) as association:
            for host in NOT_ROUTED:
                association.send(host, ECHO_PORT, b"no route")
            for host in ROUTED:
                assert association.ask(host, ECHO_PORT, b"via home") == b"via home"

"""Where a destination goes."""

from pathlib import Path

import pytest

from tuunel.address import HostPort
from tuunel.devices import Devices
from tuunel.errors import Failure, Reason, UsageError
from tuunel.identity import IdentityKey
from tuunel.links import RelayLink
from tuunel.routing import Route, Routing, ThroughDevice, resolve_name

HOME = IdentityKey.from_private_value(0xA6E47).device_id
LAB = IdentityKey.from_private_value(0x1AB).device_id


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    book = Devices(tmp_path / "devices.json")
    book.remember_relay(RelayLink(HostPort("127.0.0.1", 7443), bytes(32), None), enrolled=True)
    book.add("home", HOME, bytes(32))
    book.add("lab", LAB, bytes(32))
    return book


def through(decision: ThroughDevice | None) -> tuple[str, str] | None:
    return decision and (decision.device.name, decision.host)


def routing(devices: Devices, *routes: str, other: str = "direct") -> Routing:
    return Routing(devices, other, [Route.parse(text) for text in routes])


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("home.tuunel", ("home", "")),
        ("HOME.Tuunel.", ("home", "")),
        ("192.168.1.10.home.tuunel", ("home", "192.168.1.10")),
        ("printer.lan.home.tuunel", ("home", "printer.lan")),
        ("fd00--1.ip6.home.tuunel", ("home", "fd00::1")),
    ],
)
def test_tuunel_names_go_through_their_device(devices: Devices, host: str, expected: tuple[str, str]) -> None:
    assert through(routing(devices, "*.tuunel.example=lab").decide(host)) == expected


@pytest.mark.parametrize("other", ["direct", "refuse", "via:lab"])
@pytest.mark.parametrize("host", ["nowhere.tuunel", "tuunel", "x..tuunel", "-.tuunel"])
def test_what_is_under_tuunel_never_goes_anywhere_else(devices: Devices, host: str, other: str) -> None:
    with pytest.raises(Failure) as caught:
        routing(devices, other=other).decide(host)
    assert caught.value.reason in {Reason.UNKNOWN_NAME, Reason.NOT_PAIRED}


def test_the_first_route_that_fits_wins_and_the_name_stays(devices: Devices) -> None:
    table = routing(devices, "wiki.lab.example.com=home", "*.lab.example.com=lab", "192.168.1.0/24=home", "fd00::/8=lab")
    assert through(table.decide("wiki.lab.example.com")) == ("home", "wiki.lab.example.com")
    assert through(table.decide("Other.LAB.example.com.")) == ("lab", "other.lab.example.com")
    assert through(table.decide("192.168.1.77")) == ("home", "192.168.1.77")
    assert through(table.decide("fd00::1")) == ("lab", "fd00::1")
    assert table.decide("lab.example.com") is None  # an asterisk stands for a label
    assert table.decide("xlab.example.com") is None
    assert table.decide("192.168.2.1") is None


def test_other_destinations(devices: Devices) -> None:
    assert routing(devices).decide("example.org") is None
    with pytest.raises(Failure) as caught:
        routing(devices, other="refuse").decide("example.org")
    assert caught.value.reason is Reason.REFUSED_BY_SETTING
    assert through(routing(devices, other="via:lab").decide("Example.org")) == ("lab", "example.org")


def test_a_route_to_an_unknown_device_says_so(devices: Devices) -> None:
    with pytest.raises(Failure) as caught:
        routing(devices, "*.x.example=hme").decide("a.x.example")
    assert caught.value.reason is Reason.UNKNOWN_NAME


def test_routes_that_lead_nowhere_are_told_before_they_are_used(devices: Devices) -> None:
    hme, via = routing(devices, "*.x.example=hme", "10.0.0.0/8=home", other="via:laab").unusable()
    assert hme.startswith("--route *.x.example=hme leads nowhere yet: ")
    assert "did you mean 'home'?" in hme
    assert via.startswith("--other via:laab leads nowhere yet: ")
    assert "did you mean 'lab'?" in via
    assert routing(devices, "10.0.0.0/8=home", other="via:lab").unusable() == []
    assert routing(devices, other="refuse").unusable() == []


@pytest.mark.parametrize(
    "text",
    ["", "=", "a=", "=home", "home", "*=home", "*.=home", "a.*.b=home", "**.b=home", "10.0.0.0/33=home", "x.tuunel=home", "tuunel=home"],
)
def test_what_is_no_route(text: str) -> None:
    with pytest.raises((UsageError, Failure)):
        Route.parse(text)


@pytest.mark.parametrize("other", ["", "via", "via:", "Direct", "home"])
def test_what_is_no_way_for_other_destinations(devices: Devices, other: str) -> None:
    with pytest.raises(UsageError):
        Routing(devices, other)


def test_a_name_that_is_not_under_tuunel_is_unknown(devices: Devices) -> None:
    with pytest.raises(Failure) as caught:
        resolve_name(devices, "example.org")
    assert caught.value.reason is Reason.UNKNOWN_NAME

"""Whom this machine can reach: aliases, device IDs, and an answer that helps when a name is unknown."""

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuunel import statefile
from tuunel.address import HostPort, parse_tuunel_name
from tuunel.devices import Device, Devices, KnownRelay, check_alias
from tuunel.errors import Failure, Reason, Speaker, StateError, UsageError
from tuunel.identity import IdentityKey
from tuunel.links import RelayLink

HOME, OFFICE = (IdentityKey.from_private_value(value).device_id for value in (1, 2))
ONE = RelayLink(HostPort("one.example", 7443), b"\x01" * 32, b"t" * 16)
TWO = RelayLink(HostPort("2001:db8::2", 7443), b"\x02" * 32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "devices.json"


@pytest.fixture
def devices(path):
    book = Devices(path)
    book.remember_relay(ONE, enrolled=True)
    book.add("home", HOME, ONE.pin)
    return book


def known(link: RelayLink, *, enrolled: bool = True) -> KnownRelay:
    return KnownRelay(link.pin, link.address, enrolled)


def refusal(call, *arguments) -> Failure:
    with pytest.raises(Failure) as caught:
        call(*arguments)
    assert caught.value.speaker is Speaker.LOCAL
    return caught.value


# remembering


def test_a_machine_knows_nobody_at_first(path):
    book = Devices(path)
    assert book.devices() == []
    assert book.relays() == []
    assert not path.exists()


def test_what_was_added_is_there_after_a_restart(devices, path):
    assert Devices(path).devices() == [Device("home", HOME, (known(ONE),))]
    assert Devices(path).relays() == [known(ONE)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_enrolment_token_is_kept(devices, path):
    assert (b"t" * 16).hex() not in path.read_text()
    assert "tttt" not in path.read_text()


def test_a_running_process_sees_what_another_one_writes(devices, path):
    assert refusal(devices.resolve, "office").reason is Reason.UNKNOWN_NAME
    Devices(path).add("office", OFFICE, ONE.pin)
    assert devices.resolve("office").id == OFFICE
    Devices(path).forget("office")
    assert refusal(devices.resolve, "office").reason is Reason.UNKNOWN_NAME


def test_a_relay_that_moved_gets_its_new_address_everywhere(devices):
    devices.remember_relay(RelayLink(HostPort("new.example", 443), ONE.pin), enrolled=False)
    assert devices.relays() == [KnownRelay(ONE.pin, HostPort("new.example", 443), enrolled=True)]
    assert devices.resolve("home").relays[0].address == HostPort("new.example", 443)


def test_the_relay_remembered_last_comes_first(devices):
    devices.remember_relay(TWO, enrolled=True)
    assert devices.relays() == [known(TWO), known(ONE)]


def test_adding_again_adds_the_relay_and_asks_there_first(devices):
    devices.remember_relay(TWO, enrolled=True)
    assert devices.add("HOME", HOME, TWO.pin).relays == (known(TWO), known(ONE))
    assert devices.add("home", HOME, ONE.pin).relays == (known(ONE), known(TWO))
    assert len(devices.devices()) == 1


def test_a_name_is_not_given_to_another_device_silently(devices):
    with pytest.raises(UsageError, match="another device"):
        devices.add("home", OFFICE, ONE.pin)
    assert devices.resolve("home").id == HOME


def test_a_name_can_be_checked_before_it_is_given(devices):
    for name, device in (("home", OFFICE), ("ip6", HOME)):
        with pytest.raises(UsageError):
            devices.check_free(name, device)
    devices.check_free("HOME", HOME)
    devices.check_free("office", OFFICE)
    assert [device.name for device in devices.devices()] == ["home"]


def test_a_device_may_have_two_names(devices):
    devices.add("attic", HOME, ONE.pin)
    assert [device.name for device in devices.devices()] == ["home", "attic"]
    assert devices.resolve("attic").id == devices.resolve("home").id == HOME


def test_a_relay_must_be_remembered_first(devices):
    with pytest.raises(ValueError):
        devices.add("office", OFFICE, TWO.pin)


# names


@pytest.mark.parametrize("name", ["home", "HOME", "Home"])
def test_an_alias_is_found_in_any_case(devices, name):
    assert devices.resolve(name) == Device("home", HOME, (known(ONE),))


def test_a_device_id_is_found_in_both_spellings_and_any_case(devices):
    for text in (str(HOME), HOME.compact, str(HOME).upper(), HOME.compact.upper()):
        assert devices.resolve(text) == Device("home", HOME, (known(ONE),))


def test_a_device_id_needs_no_alias_and_is_asked_for_at_every_enrolled_relay(devices):
    devices.remember_relay(TWO, enrolled=False)
    assert devices.resolve(str(OFFICE)) == Device(str(OFFICE), OFFICE, (known(ONE),))
    devices.remember_relay(TWO, enrolled=True)
    assert devices.resolve(str(OFFICE)).relays == (known(TWO), known(ONE))
    assert devices.resolve(str(HOME)).relays == (known(ONE), known(TWO))
    assert devices.resolve("home").relays == (known(ONE),)


def test_a_device_id_under_tuunel_comes_through_the_name_reader(devices):
    name = parse_tuunel_name(f"{OFFICE}.tuunel")
    assert name is not None
    assert devices.resolve(name.name).id == OFFICE


def test_without_enrolment_it_is_not_paired(path):
    book = Devices(path)
    assert refusal(book.resolve, str(HOME)).reason is Reason.NOT_PAIRED
    book.remember_relay(ONE, enrolled=False)
    book.add("home", HOME, ONE.pin)
    assert refusal(book.resolve, "home").reason is Reason.NOT_PAIRED
    assert refusal(book.resolve, str(HOME)).reason is Reason.NOT_PAIRED


def test_an_unknown_name_is_answered_with_the_nearest(devices):
    failure = refusal(devices.resolve, "hmoe")
    assert failure.reason is Reason.UNKNOWN_NAME
    assert "did you mean 'home'?" in failure.detail
    assert "did you mean" not in refusal(devices.resolve, "zebra").detail


def test_a_typo_in_a_device_id_is_told_as_one(devices):
    failure = refusal(devices.resolve, OFFICE.compact[:-1] + HOME.compact[-2])
    assert failure.reason is Reason.UNKNOWN_NAME
    assert "typo" in failure.detail


def test_an_unknown_name_is_shown_without_its_control_characters(devices):
    assert "\x1b" not in str(refusal(devices.resolve, "\x1b[31m"))


@pytest.mark.parametrize(
    "name", ["", " ", "ip6", "IP6", "-a", "a-", "a.b", "a_b", "a b", "ä", "a" * 64, "home.tuunel", "a\n b", str(HOME), HOME.compact]
)
def test_what_cannot_be_an_alias_is_a_usage_error(devices, name):
    for call in (lambda: devices.add(name, HOME, ONE.pin), lambda: devices.rename("home", name), lambda: check_alias(name)):
        with pytest.raises(UsageError):
            call()
    assert [device.name for device in devices.devices()] == ["home"]


@pytest.mark.parametrize("name", ["a", "7", "home-2", "A" * 63, " home\n"])
def test_an_alias_is_one_dns_label(name):
    alias = check_alias(name)
    assert parse_tuunel_name(f"{alias}.tuunel").name == alias


# renaming and forgetting


def test_renaming(devices):
    devices.rename("HOME", "Attic")
    assert devices.resolve("attic").id == HOME
    assert refusal(devices.resolve, "home").reason is Reason.UNKNOWN_NAME
    devices.rename("attic", "attic")
    devices.add("office", OFFICE, ONE.pin)
    with pytest.raises(UsageError, match="another device"):
        devices.rename("office", "attic")


def test_forgetting_keeps_the_relay(devices):
    devices.forget("Home")
    assert devices.devices() == []
    assert devices.relays() == [known(ONE)]


def test_an_unknown_name_cannot_be_renamed_or_forgotten(devices):
    for call in (lambda: devices.forget("hom"), lambda: devices.rename("hom", "x")):
        with pytest.raises(UsageError, match="did you mean 'home'"):
            call()


# a name from a label


@pytest.mark.parametrize(
    ("label", "alias"),
    [
        ("Ann's NAS", "ann-s-nas"),
        ("nas.lan", "nas-lan"),
        ("", "device"),
        ("\x1b\u202e", "device"),
        ("ip6", "device"),
        ("home", "home-2"),
        (str(OFFICE), "device"),
        ("x" * 500, "x" * 63),
    ],
)
def test_a_label_becomes_a_free_alias(devices, label, alias):
    assert devices.free_alias(label) == alias


@given(st.text(max_size=100))
def test_every_label_becomes_an_alias_that_can_be_added(label):
    alias = Devices(Path("/nonexistent/devices.json")).free_alias(label)
    assert check_alias(alias) == alias


def test_a_free_alias_stays_within_its_ceiling(devices):
    devices.add("x" * 63, HOME, ONE.pin)
    assert devices.free_alias("x" * 63) == "x" * 61 + "-2"


# the file


@pytest.mark.parametrize(
    "damage",
    [
        {"devices": [{}]},
        {"relays": [{"id": "00", "address": "h:1", "enrolled": True}]},
        {"relays": [{"id": "zz" * 32, "address": "h:1", "enrolled": True}]},
        {"relays": [{"id": "00" * 32, "address": "h", "enrolled": True}]},
        {"devices": [{"name": "ip6", "device": str(HOME), "relays": []}]},
        {"devices": [{"name": "home", "device": str(HOME)[:-1], "relays": []}]},
    ],
)
def test_a_damaged_book_is_told(path, damage):
    statefile.write_json(path, 1, damage)
    with pytest.raises(StateError, match="damaged"):
        Devices(path).resolve("home")

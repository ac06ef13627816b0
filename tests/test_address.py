"""Addresses read back as they were written; every name under .tuunel is recognised, and none slips past as a foreign name."""

import contextlib
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuunel.address import HostPort, TuunelName, ip6_label, parse_tuunel_name
from tuunel.errors import Failure, Reason, UsageError

# host:port


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("relay.example.net:7443", "relay.example.net", 7443),
        ("192.0.2.7:1", "192.0.2.7", 1),
        ("localhost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65535),
        ("[2001:DB8:0:0::7]:80", "2001:db8::7", 80),
        ("my_host-1.lan.:80", "my_host-1.lan.", 80),
        ("PUBLIC-NAME:7443", "PUBLIC-NAME", 7443),
    ],
)
def test_host_and_port(text, host, port):
    assert HostPort.parse(text) == HostPort(host, port)
    assert HostPort.parse(str(HostPort(host, port))) == HostPort(host, port)


@pytest.mark.parametrize(
    ("text", "host"), [("relay.example.net", "relay.example.net"), ("::1", "::1"), ("[::1]", "::1"), ("2001:db8::7", "2001:db8::7")]
)
def test_the_port_may_be_missing_where_there_is_a_default(text, host):
    assert HostPort.parse(text, 7443) == HostPort(host, 7443)
    with pytest.raises(UsageError):
        HostPort.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "", ":80", "host:", "host:65536", "host:-1", "host:+1", "host: 1", "host:1_0", "host:٣", "host:000080", "host:http",
        "::1:80x:", "[::1", "[::1]80", "[::1]:", "[host]:80", "[127.0.0.1]:80", "ho st:80", "host/path:80", "user@host:80",
        "http://host:80", "-host:80", "host\n:80", "höst:80", f"{'a' * 254}:80",
    ],
)  # fmt: skip
def test_what_is_no_address_is_a_usage_error(text):
    with pytest.raises(UsageError):
        HostPort.parse(text)


def test_the_longest_host_is_read():
    assert HostPort.parse(f"{'a' * 253}:80").host == "a" * 253


def test_the_agents_own_localhost_has_no_host():
    assert str(HostPort("", 22)) == ":22"
    assert str(HostPort("::1", 22)) == "[::1]:22"


# names under .tuunel


@pytest.mark.parametrize(
    ("host", "name", "target"),
    [
        ("home.tuunel", "home", ""),
        ("HOME.Tuunel.", "home", ""),
        ("192.168.1.10.home.tuunel", "home", "192.168.1.10"),
        ("nas.home.tuunel", "home", "nas"),
        ("a.b.c.lan.home.tuunel", "home", "a.b.c.lan"),
        ("my_printer.home.tuunel", "home", "my_printer"),
        ("0--1.ip6.home.tuunel", "home", "::1"),
        ("fd00--1.ip6.home.tuunel", "home", "fd00::1"),
        ("00fd--1.ip6.home.tuunel", "home", "fd::1"),
        ("2001-db8-1-2-3-4-5-6.ip6.home.tuunel.", "home", "2001:db8:1:2:3:4:5:6"),
        ("mrupz-3btpu.tuunel", "mrupz-3btpu", ""),
        ("10.tuunel", "10", ""),
        ("tuunel.home.tuunel", "home", "tuunel"),
        ("ip6.nas.home.tuunel", "home", "ip6.nas"),
    ],
)
def test_names_are_taken_apart(host, name, target):
    assert parse_tuunel_name(host) == TuunelName(name, target)


@pytest.mark.parametrize(
    "host", ["", "example.com", "tuunel.com", "home.tuunel.example.com", "nottuunel", "127.0.0.1", "::1", ".", "xtuunel."]
)
def test_other_names_are_not_ours(host):
    assert parse_tuunel_name(host) is None


@pytest.mark.parametrize(
    "host",
    [
        "tuunel", ".tuunel", "..tuunel", "a..home.tuunel", "home.tuunel..", "ip6.tuunel", "0--1.ip6.tuunel", "-a.tuunel", "a-.home.tuunel",
        "a b.tuunel", "a\0.tuunel", "höme.tuunel", "a" * 64 + ".tuunel",
        "a." * 124 + "tuunel", "999.1.1.1.home.tuunel", "1.2.3.home.tuunel", "192.168.1.home.tuunel", "0x7f.home.tuunel", "ip6.home.tuunel",
        "zz--1.ip6.home.tuunel", "a.0--1.ip6.home.tuunel", "fd--1.ip6.home.tuunel", "1-2-3.ip6.home.tuunel", "--1.ip6.home.tuunel",
    ],
)  # fmt: skip
def test_a_malformed_name_of_ours_is_an_unknown_name_and_never_a_foreign_one(host):
    with pytest.raises(Failure) as caught:
        parse_tuunel_name(host)
    assert caught.value.reason is Reason.UNKNOWN_NAME
    assert caught.value.detail


@pytest.mark.parametrize("host", ["home\u3002tuunel", "home\uff0etuunel", "HOME\uff61TUUNEL\uff0e", "home.\uff54uunel", "home.tu\uff55nel"])
def test_what_idna_would_fold_into_a_name_of_ours_is_ours(host):
    assert parse_tuunel_name(host) == TuunelName("home", "")


def test_a_label_that_idna_would_refuse_is_answered_with_the_right_one():
    with pytest.raises(Failure, match=r"write 00fd--1\.ip6"):
        parse_tuunel_name("fd--1.ip6.home.tuunel")


@pytest.mark.parametrize(
    ("address", "label"),
    [
        ("::1", "0--1"),
        ("fd00::1", "fd00--1"),
        ("fd::1", "00fd--1"),
        ("::", "0--0"),
        ("fd00::", "fd00--0"),
        ("ab::", "00ab--0"),
        ("::ffff:1.2.3.4", "0--ffff-102-304"),
    ],
)
def test_labels_for_ipv6(address, label):
    assert ip6_label(IPv6Address(address)) == label


@given(st.ip_addresses(v=6))
def test_every_ipv6_address_has_a_label_that_ssh_and_idna_accept(address):
    label = ip6_label(address)
    assert label[0] in "0123456789abcdef"
    assert label[-1] in "0123456789abcdef"
    assert label[2:4] != "--"
    assert len(label) <= 63
    found = parse_tuunel_name(f"{label}.ip6.home.tuunel")
    assert found is not None
    assert IPv6Address(found.host) == address


@given(st.ip_addresses(v=4))
def test_every_ipv4_address_can_be_named(address):
    found = parse_tuunel_name(f"{address}.home.tuunel")
    assert found is not None
    assert IPv4Address(found.host) == address


@pytest.mark.parametrize("zone", ["", "a b", "x\ny", "\x1b[2J", "a" * 16, "\u0661"])
def test_what_names_no_interface_is_no_zone(zone):
    with pytest.raises(UsageError):
        HostPort.parse(f"[fe80::1%{zone}]:80")
    assert HostPort.parse("[fe80::1%eth0.5]:80").host == "fe80::1%eth0.5"


def test_an_address_with_a_zone_has_no_label():
    with pytest.raises(UsageError):
        ip6_label(IPv6Address("fe80::1%eth0"))


@given(st.text(max_size=40))
def test_no_text_breaks_the_reader(text):
    with contextlib.suppress(Failure):
        parse_tuunel_name(text)
    with pytest.raises(Failure) if not text.strip(".") else contextlib.suppress(Failure):
        assert parse_tuunel_name(f"{text}.tuunel") is not None
    with contextlib.suppress(UsageError):
        HostPort.parse(text, 1)

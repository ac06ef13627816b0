"""What may be dialled: each rule of docs/spec/policy.md, and the ways around it that must not exist."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuunel.errors import Failure, Reason, Speaker, UsageError
from tuunel.policy import GUARDED as GUARDED_BY_CODE
from tuunel.policy import MAX_PATTERN, MAX_UNIX_PATH, Surroundings, allowed_addresses, allowed_unix, parse_target_pattern

LAN = Surroundings(networks=tuple(map(ip_network, ("127.0.0.0/8", "192.168.7.0/24", "203.0.113.0/28", "2001:db8:7::/64", "fe80::/64"))))
RELAY = (ip_address("198.51.100.9"), 7443)


def permits(patterns, address, *, port=80, host="", around=LAN):
    """Tell whether one address may be dialled; the answer must be the very address, or a well-formed denial."""
    wanted = ip_address(address)
    try:
        assert allowed_addresses(patterns, host, port, [wanted], around) == [wanted]
    except Failure as failure:
        denial = (failure.reason, failure.speaker)
    else:
        return True
    assert denial == (Reason.POLICY_DENIED, Speaker.AGENT)
    return False


def mapped(address):
    return str(IPv6Address(0xFFFF << 32 | int(IPv4Address(address))))


def nat64(address):
    return str(IPv6Address(0x64FF9B << 96 | int(IPv4Address(address))))


def six_to_four(address):
    return str(IPv6Address(0x2002 << 112 | int(IPv4Address(address)) << 80 | 1))


def compatible(address):
    return str(IPv6Address(int(IPv4Address(address))))


# the default


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "::1", "10.1.2.3", "172.16.0.1", "172.31.255.254", "192.168.1.10", "192.168.7.20", "fc00::1", "fd00::1",
        "203.0.113.5", "2001:db8:7::5", "::ffff:127.0.0.1", "::ffff:192.168.1.10",
    ],
)  # fmt: skip
def test_the_default_is_this_machine_and_the_networks_around_it(address):
    assert permits(["*"], address)
    assert not permits(["internet"], address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8", "172.15.0.1", "172.32.0.1", "192.169.0.1", "203.0.113.16", "100.64.0.1", "2001:db8:8::5", "2606:4700::1",
        "::ffff:8.8.8.8",
        "fec0::1",
    ],
)  # fmt: skip
def test_the_rest_is_internet(address):
    assert not permits(["*"], address)
    assert permits(["internet"], address)
    assert permits(["*", "internet"], address)


def test_a_prefix_of_length_0_on_an_interface_does_not_make_the_internet_local():
    around = Surroundings(networks=(ip_network("0.0.0.0/0"), ip_network("::/0")))
    assert not permits(["*"], "8.8.8.8", around=around)
    assert not permits(["*"], "2606:4700::1", around=around)
    assert permits(["*"], "10.0.0.1", around=around)


def test_no_pattern_allows_nothing():
    assert not permits([], "127.0.0.1")


# never, unless named

GUARDED = [
    "169.254.1.1", "169.254.169.254", "169.254.170.2", "169.254.170.23", "fe80::1", "febf::1",
    "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16",
    "224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1",
    "255.255.255.255", "192.168.7.255", "192.168.7.0", "203.0.113.15", "203.0.113.0",
    "0.0.0.0", "0.0.1.0", "0.255.255.255", "::", "64:ff9b:1::a00:1",
]  # fmt: skip
GUARDED_RANGES = [
    ip_network(each) for each in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "224.0.0.0/4", "ff00::/8", "0.0.0.0/8", "64:ff9b:1::/48")
]
GENERAL = ["*", "internet", "0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "8000::/1", "name.lab", "*.lab"]


@pytest.mark.parametrize("address", [*GUARDED, *(mapped(each) for each in GUARDED if "." in each and ":" not in each)])
def test_no_general_pattern_opens_a_guarded_address(address):
    assert not permits(GENERAL, address, host="name.lab")


@pytest.mark.parametrize("wrap", [nat64, six_to_four, compatible])
@pytest.mark.parametrize("address", [each for each in GUARDED if ":" not in each])
def test_no_translation_hides_a_guarded_address(wrap, address):
    assert not permits(GENERAL, wrap(address), host="name.lab")


@pytest.mark.parametrize("address", GUARDED)
def test_its_own_address_opens_a_guarded_one_and_nothing_beside_it(address):
    assert permits([address], address)
    port = f"[{address}]:80" if ":" in address else f"{address}:80"
    assert permits([port], address)
    assert not permits([port], address, port=81)
    assert not any(permits([address], other) for other in GUARDED if other != address)


def test_a_range_inside_the_guarded_one_opens_it_and_a_larger_one_does_not():
    assert permits(["169.254.0.0/16"], "169.254.1.1")
    assert permits(["169.254.1.0/24:80"], "169.254.1.1")
    assert not permits(["169.254.0.0/15"], "169.254.1.1")
    assert permits(["fe80::/10"], "fe80::1")
    assert not permits(["fe00::/7"], "fe80::1")


@pytest.mark.parametrize("address", ["169.254.169.254", "169.254.170.2", "169.254.170.23"])
def test_the_link_local_range_does_not_open_the_metadata_in_it(address):
    assert not permits(["169.254.0.0/16", f"{address.rpartition('.')[0]}.0/24"], address)
    assert permits([address], address)


def test_a_range_of_private_addresses_does_not_open_the_metadata_in_it():
    assert not permits(["fd00::/8", "fc00::/7"], "fd00:ec2::254")


def test_a_zone_hides_nothing():
    for address in ("fe80::1%eth0", "::1%lo", "fd00:ec2::254%1"):
        assert permits(["*"], address) is (address == "::1%lo")
    around = Surroundings(listeners=((ip_address("::1"), 1080),))
    assert not permits(["*"], "::1%lo", port=1080, around=around)


def test_a_name_never_opens_a_guarded_address():
    assert permits(["metadata.lab:80"], "192.168.1.1", host="metadata.lab")
    assert not permits(["metadata.lab:80"], "169.254.169.254", host="metadata.lab")


# the relay, and our own doors


def test_the_relays_port_is_closed_and_its_other_ports_are_not():
    around = Surroundings(networks=LAN.networks, relay=(RELAY,))
    assert not permits(
        ["*", "internet", "198.51.100.0/24", "198.51.100.9", "198.51.100.9:7000-8000"], "198.51.100.9", port=7443, around=around
    )
    assert permits(["internet"], "198.51.100.9", port=443, around=around)
    assert permits(["internet"], "198.51.100.10", port=7443, around=around)
    assert permits(["198.51.100.9:7443"], "198.51.100.9", port=7443, around=around)


@pytest.mark.parametrize("wrap", [mapped, nat64, six_to_four, compatible])
def test_no_other_form_reaches_the_relays_port_or_ours(wrap):
    around = Surroundings(relay=(RELAY,), listeners=((ip_address("127.0.0.1"), 1080),))
    everything = ["*", "internet", "0.0.0.0/0", "::/0", "name.lab"]
    assert not permits(everything, wrap("198.51.100.9"), port=7443, host="name.lab", around=around)
    assert not permits(everything, wrap("127.0.0.1"), port=1080, host="name.lab", around=around)


def test_the_relay_may_be_told_in_a_mapped_form():
    around = Surroundings(relay=((ip_address(mapped("198.51.100.9")), 7443),), listeners=((ip_address(mapped("127.0.0.1")), 1080),))
    assert not permits(["internet"], "198.51.100.9", port=7443, around=around)
    assert not permits(["*"], "127.0.0.1", port=1080, around=around)


@pytest.mark.parametrize(
    ("listener", "address", "closed"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::1", False),
        ("::1", "::1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "192.168.7.20", True),
        ("::", "127.0.0.1", True),
        ("::", "2001:db8:7::5", True),
        ("::ffff:0.0.0.0", "127.0.0.1", True),
    ],
)
def test_what_tuunel_listens_on_is_closed(listener, address, closed):
    around = Surroundings(networks=LAN.networks, listeners=((ip_address(listener), 1080),))
    assert permits(["*", "localhost", "127.0.0.0/8"], address, port=1080, around=around) is not closed
    assert permits(["*"], address, port=1081, around=around)


def test_an_own_listener_opens_only_to_address_and_port_together():
    around = Surroundings(listeners=((ip_address("127.0.0.1"), 1080),))
    for pattern in ("127.0.0.1", "127.0.0.1:1000-2000", "127.0.0.0/31:1080", "*:1080", "localhost"):
        assert not permits([pattern], "127.0.0.1", port=1080, around=around)
    for pattern in ("127.0.0.1:1080", "127.0.0.1:80,1080", "localhost:1080"):
        assert permits([pattern], "127.0.0.1", port=1080, around=around)


# translated addresses


@pytest.mark.parametrize("wrap", [nat64, six_to_four])
def test_a_translated_address_needs_both_its_faces_allowed(wrap):
    assert permits(["internet"], wrap("8.8.8.8"))
    assert not permits(["internet"], wrap("10.0.0.1"))
    assert not permits(["internet"], wrap("127.0.0.1"))
    assert not permits(["*"], wrap("10.0.0.1"))
    assert not permits(["8.8.8.8"], wrap("8.8.8.8"))
    assert permits(["8.8.8.8", f"{wrap('8.8.8.8')}/128"], wrap("8.8.8.8"))
    assert permits(["name.lab"], wrap("8.8.8.8"), host="name.lab")


def test_what_was_given_is_what_is_returned_in_its_order():
    given_addresses = [ip_address(text) for text in ("::ffff:10.0.0.1", "8.8.8.8", "fd00::1", "10.0.0.2", "169.254.169.254", "::1%lo")]
    answer = allowed_addresses(["*"], "many.lab", 80, given_addresses, LAN)
    assert list(map(str, answer)) == list(map(str, (given_addresses[0], given_addresses[2], given_addresses[3], given_addresses[5])))


# names and ports


@pytest.mark.parametrize(
    ("pattern", "host", "covered"),
    [
        ("nas.lab", "nas.lab", True),
        ("NAS.lab.", "nas.LAB.", True),
        ("nas.lab", "x.nas.lab", False),
        ("nas.lab", "nas.lab.evil.com", False),
        ("*.lab", "nas.lab", True),
        ("*.lab", "a.b.lab", True),
        ("*.lab", "lab", False),
        ("*.lab", "evillab", False),
        ("*.lab", ".lab", False),
        ("*.lab", "::1%.lab", False),
        ("*.lab", "127.0.0.1%x.lab", False),
        ("*.lab", "a\0.lab", False),
        ("*.lab", "a b.lab", False),
        ("*.lab", "a\u3002lab", False),
        ("nas.lab", "", False),
        ("nas.lab", "8.8.8.8", False),
    ],
)
def test_a_name_pattern_matches_the_name_asked_for(pattern, host, covered):
    assert permits([pattern], "8.8.8.8", host=host) is covered


def test_a_range_matches_the_resolved_address_under_any_name():
    assert permits(["192.168.1.0/24:22"], "192.168.1.10", port=22, host="anything.example")
    assert permits(["192.168.1.0/24:22"], "192.168.1.10", port=22, host="192.168.1.10")
    assert not permits(["192.168.1.0/24:22"], "192.168.2.10", port=22)
    assert not permits(["192.168.1.0/24:22"], "192.168.1.10", port=23)


def test_localhost_is_the_agents_own_under_any_spelling():
    for host in ("", "localhost", "127.0.0.1"):
        assert permits(["localhost:22"], "127.0.0.1", port=22, host=host)
        assert permits(["localhost:22"], "::1", port=22, host=host)
    assert not permits(["localhost:22"], "127.0.0.2", port=22)
    assert not permits(["localhost:22"], "192.168.1.1", port=22, host="localhost")


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("*:443", [443], [80, 444]),
        ("internet:80,443", [80, 443], [81, 442]),
        ("nas.lab:1000-2000", [1000, 1500, 2000], [999, 2001]),
        ("nas.lab:22,8000-8001,443", [22, 443, 8000, 8001], [23, 7999, 8002]),
        ("nas.lab", [1, 65535], []),
        ("[fd00::/8]:80", [80], [81]),
    ],
)
def test_ports(pattern, inside, outside):
    parsed = parse_target_pattern(pattern)
    assert all(parsed.covers_port(port) for port in inside)
    assert not any(parsed.covers_port(port) for port in outside)


@pytest.mark.parametrize(
    "pattern",
    [
        "*", "internet", "*:22", "localhost:22", "nas.lab:80", "*.lab:443", "192.168.1.0/24", "192.168.1.0/24:22,80-90", "10.0.0.1",
        "fd00::1", "fd00::/8", "[fd00::1]:80", "[fd00::/8]:80", "xn--nxasmq6b.lab", "a_b:1",
    ],
)  # fmt: skip
def test_patterns_keep_their_spelling(pattern):
    assert str(parse_target_pattern(f" {pattern.upper()} ")) == pattern


@pytest.mark.parametrize(
    "pattern",
    [
        "", ":", ":80", "*:", "**", "*lab", "*.", "*.*", "*.*.lab", "a.*.lab", "lab*", "/", "http://a",
        "nas.lab:", "nas.lab:0", "nas.lab:65536", "nas.lab:http", "nas.lab:80-", "nas.lab:-80", "nas.lab:90-80", "nas.lab:80,",
        "nas.lab:\u0663", "nas.lab:8 0", "nas lab", "n\u00e4s.lab", "-a.lab", "a..lab",
        "192.168.1.5/24", "192.168.1.0/33", "192.168.1",
        "300.1.1.1", "0x7f000001", "2130706433", "a.1", "*.1", "10.0.0.0/", "10.0.0.0/255.0",
        "fd00::1:80x", "[fd00::1", "[fd00::1]80", "[nas.lab]:80", "[10.0.0.1]:80", "::ffff:10.0.0.1", "::ffff:0:0/96",
        "fe80::1%eth0",
        "a" * (MAX_PATTERN + 1), "a" * 254, "a" * 64,
    ],
)  # fmt: skip
def test_what_is_no_pattern_is_a_usage_error(pattern):
    with pytest.raises(UsageError):
        parse_target_pattern(pattern)


def test_a_range_with_host_bits_is_answered_with_the_right_one():
    with pytest.raises(UsageError) as caught:
        parse_target_pattern("192.168.1.5/24:22")
    assert "192.168.1.0/24" in caught.value.advice


@given(st.text(max_size=60) | st.text(max_size=60).map("unix:/".__add__))
def test_no_text_breaks_the_reader(text):
    try:
        pattern = parse_target_pattern(text)
    except UsageError:
        return
    assert parse_target_pattern(str(pattern)) == pattern


# unix sockets


def opens(patterns, path):
    try:
        allowed_unix(patterns, path)
    except Failure as failure:
        denial = (failure.reason, failure.speaker)
    else:
        return True
    assert denial == (Reason.POLICY_DENIED, Speaker.AGENT)
    return False


def test_a_unix_socket_opens_to_the_pattern_that_names_it_and_to_no_other():
    assert opens(["*", "unix:/run/docker.sock"], "/run/docker.sock")
    everything = ["*", "internet", "localhost", "127.0.0.1", "0.0.0.0/0", "*.lab", "run", "unix:/run", "unix:/run/docker", "unix:/*"]
    assert not opens(everything, "/run/docker.sock")


@pytest.mark.parametrize(
    "path",
    ["/run/Docker.sock", "/run//docker.sock", "/run/./docker.sock", "/var/../run/docker.sock", "run/docker.sock", "/run/docker.sock/", ""],
)
def test_only_the_very_path_is_the_one_that_is_named(path):
    assert not opens(["unix:/run/docker.sock"], path)


def test_a_unix_pattern_opens_no_address():
    assert not permits(["unix:/127.0.0.1"], "127.0.0.1", host="/127.0.0.1")


def test_a_path_keeps_its_case():
    assert str(parse_target_pattern(" UNIX:/Run/X:80.sock ")) == "unix:/Run/X:80.sock"
    assert opens(["unix:/Run/X"], "/Run/X")


@pytest.mark.parametrize(
    "path",
    [
        "", "run/x", "@x", "/", "/run/", "//run", "/run//x", "/./x", "/run/..", "/../x", "/r un", "/r\u00fcn", "/a\0", "/a\tb",
        "/" + MAX_UNIX_PATH * "x",
    ],
)  # fmt: skip
def test_what_is_no_path_is_a_usage_error(path):
    with pytest.raises(UsageError):
        parse_target_pattern(f"unix:{path}")


def test_the_longest_path_is_taken():
    longest = "/" + (MAX_UNIX_PATH - 1) * "x"
    assert opens([f"unix:{longest}"], longest)


# the answer


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1", nat64("8.8.8.8"), "::ffff:8.8.8.8"])
@pytest.mark.parametrize("patterns", [["*"], ["nas.lab", "*:22"]])
def test_a_denial_of_a_public_address_says_that_the_star_is_not_the_internet(address, patterns):
    with pytest.raises(Failure, match=r"'\*' does not include the Internet, a grant of 'internet' would"):
        allowed_addresses(patterns, "x", 80, [ip_address(address)], LAN)


@pytest.mark.parametrize(
    ("patterns", "address"), [(["nas.lab"], "8.8.8.8"), (["*:22"], "192.168.7.2"), (["internet:22"], "8.8.8.8"), (["*"], "169.254.1.1")]
)
def test_a_denial_for_another_reason_does_not_speak_of_the_internet(patterns, address):
    with pytest.raises(Failure) as caught:
        allowed_addresses(patterns, "x", 80, [ip_address(address)], LAN)
    assert "Internet" not in caught.value.detail


def test_port_0_is_nobodys():
    assert not permits(["*", "127.0.0.1"], "127.0.0.1", port=0)


def test_a_denial_names_the_targets_and_the_rule_and_stays_short():
    with pytest.raises(Failure, match=r"it grants nas\.lab:80, 10\.0\.0\.0/8") as caught:
        allowed_addresses(["nas.lab:80", "10.0.0.0/8"], "x", 80, [ip_address("8.8.8.8")], LAN)
    assert "8.8.8.8" not in caught.value.detail
    with pytest.raises(Failure, match=r"cloud metadata|link-local") as caught:
        allowed_addresses(["*"] * 100, "x", 80, [ip_address("169.254.169.254")], LAN)
    assert len(caught.value.detail) <= 200
    with pytest.raises(Failure, match="Internet") as caught:
        allowed_addresses(["*"] * 100, "x", 80, [ip_address("8.8.8.8")], LAN)
    assert len(caught.value.detail) <= 200
    with pytest.raises(Failure, match="a unix socket only") as caught:
        allowed_unix(["*"] * 100, "/x")
    assert len(caught.value.detail) <= 200
    with pytest.raises(Failure, match="grants nothing"):
        allowed_addresses([], "x", 80, [], LAN)


# properties


ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@given(
    st.ip_addresses(v=4), st.sampled_from([["*"], ["internet"], ["*", "internet"], ["10.0.0.0/8"], ["0.0.0.0/0"]]), st.integers(1, 65535)
)
def test_a_mapped_address_is_treated_as_what_it_is(address, patterns, port):
    assert permits(patterns, mapped(address), port=port) is permits(patterns, str(address), port=port)


@given(ADDRESSES, st.integers(1, 65535))
def test_local_and_internet_share_nothing(address, port):
    assert not (permits(["*"], str(address), port=port) and permits(["internet"], str(address), port=port))


@given(st.sampled_from(GUARDED_RANGES).flatmap(lambda network: st.ip_addresses(network=network)), st.integers(1, 65535))
def test_every_guarded_address_is_closed_to_every_general_pattern(address, port):
    assert not permits(GENERAL, str(address), port=port, host="name.lab")


@given(st.lists(ADDRESSES, max_size=6), st.sampled_from([["*"], ["internet"], ["name.lab"], ["::/0"]]))
def test_each_address_is_judged_alone(addresses, patterns):
    alone = [address for address in addresses if permits(patterns, str(address), host="name.lab")]
    try:
        together = allowed_addresses(patterns, "name.lab", 80, addresses, LAN)
    except Failure:
        together = []
    assert together == alone


def test_the_spec_lists_every_guarded_range():
    page = (Path(__file__).parents[1] / "docs" / "spec" / "policy.md").read_text(encoding="utf-8")
    assert [str(network) for _, network in GUARDED_BY_CODE if str(network).removesuffix("/32").removesuffix("/128") not in page] == []

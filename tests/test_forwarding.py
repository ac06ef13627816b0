"""What can be forwarded, and how everything else is refused: docs/spec/forward.md."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuunel.address import HostPort
from tuunel.errors import Failure, Reason, TuunelError, UsageError
from tuunel.forwarding import DEFAULT_BIND, Destination, Forwarding, parse_forwardings, read_destination
from tuunel.policy import MAX_UNIX_PATH

DOCKER = "/run/docker.sock"


@pytest.mark.parametrize(
    ("text", "listen", "to"),
    [
        ("8080:home.tuunel:80", HostPort("127.0.0.1", 8080), Destination("home.tuunel", 80)),
        ("2222:192.168.1.10.home.tuunel:22", HostPort("127.0.0.1", 2222), Destination("192.168.1.10.home.tuunel", 22)),
        ("0.0.0.0:8080:home.tuunel:80", HostPort("0.0.0.0", 8080), Destination("home.tuunel", 80)),
        ("[::1]:8080:home.tuunel:80", HostPort("::1", 8080), Destination("home.tuunel", 80)),
        ("[::]:0:home.tuunel:80", HostPort("::", 0), Destination("home.tuunel", 80)),
        ("localhost:8080:nas.lan.home.tuunel:80", HostPort("localhost", 8080), Destination("nas.lan.home.tuunel", 80)),
        ("0:fd00--1.ip6.home.tuunel:80", HostPort("127.0.0.1", 0), Destination("fd00--1.ip6.home.tuunel", 80)),
        ("5353:home.tuunel:53/udp", HostPort("127.0.0.1", 5353), Destination("home.tuunel", 53, udp=True)),
        ("/run/x.sock:home.tuunel:5432", "/run/x.sock", Destination("home.tuunel", 5432)),
        (f"8081:home.tuunel:unix:{DOCKER}", HostPort("127.0.0.1", 8081), Destination("home.tuunel", 0, DOCKER)),
        (f"/run/x.sock:home.tuunel:unix:{DOCKER}", "/run/x.sock", Destination("home.tuunel", 0, DOCKER)),
        ("[::1]:1:home.tuunel:unix:/a:b", HostPort("::1", 1), Destination("home.tuunel", 0, "/a:b")),
        ("80:HOME.Tuunel.:80", HostPort("127.0.0.1", 80), Destination("home.tuunel", 80)),
    ],
)
def test_what_can_be_meant(text: str, listen: HostPort | str, to: Destination) -> None:
    assert Forwarding.parse(text) == Forwarding(listen, to)


def test_without_an_address_only_this_machine_is_listened_on() -> None:
    assert DEFAULT_BIND == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "told", "advice"),
    [
        ("", "does not say on which port", "8080:home.tuunel:80"),
        ("8080", "names no port", "8080:home.tuunel:80"),
        ("8080:", "names no port", ""),
        ("8080:80", "names no port", ""),
        ("8080:home.tuunel", "names no port", ""),
        ("8080:home.tuunel:", "names no port", ""),
        ("8080:home.tuunel:x", "needs a port", ""),
        ("8080:home.tuunel:65536", "needs a port", ""),
        ("8080:home.tuunel:-1", "needs a port", ""),
        ("8080:home.tuunel:\u0661", "needs a port", ""),
        ("8080:home.tuunel:0", "nothing listens on port 0", ""),
        ("65536:home.tuunel:80", "needs a port", ""),
        ("8080:home.tuunel:80:90", "needs a port", ""),
        # a missing port in front
        ("home.tuunel:80", "does not say where to listen", "80:home.tuunel:80"),
        ("home.tuunel", "does not say where to listen", "PORT:home.tuunel"),
        ("x:y:home.tuunel:80", "on which port", ""),
        ("0.0.0.0:home.tuunel:80", "on which port", ""),
        # protocols
        ("8080:home.tuunel:80/tcp", "unknown protocol", "/udp"),
        ("8080:home.tuunel:80/", "unknown protocol", "/udp"),
        ("8080:home.tuunel:80/UDP", "unknown protocol", "/udp"),
        ("8080:home.tuunel:80/udp/udp", "unknown protocol", "/udp"),
        ("/run/x.sock:home.tuunel:53/udp", "carries no UDP", "listen on a port"),
        (f"5353:home.tuunel:unix:{DOCKER}/udp", "carries no UDP", "/udp"),
        # targets that are not behind a device
        ("8080:home:80", "not a .tuunel name", "home.tuunel"),
        ("8080:example.com:80", "not a .tuunel name", "example.com.NAME.tuunel"),
        ("8080:127.0.0.1:80", "not a .tuunel name", "127.0.0.1.NAME.tuunel"),
        ("8080::80", "no address", ""),
        ("8080:b\u00fccher.home.tuunel:80", "no address", ""),
        # places to listen
        ("home:8080:home.tuunel:80", "no address to listen on", "localhost"),
        ("999.0.0.1:8080:home.tuunel:80", "no address to listen on", "localhost"),
        ("*:8080:home.tuunel:80", "no address", ""),
        ("::1:8080:home.tuunel:80", "on which port", ""),
        ("[::1:8080:home.tuunel:80", "no end of its IPv6 address", "[ADDRESS]:PORT"),
        ("[127.0.0.1]:8080:home.tuunel:80", "not IPv6", ""),
        ("[::1]:home.tuunel:80", "on which port", ""),
        ("[fe80::1%eth0]:80:home.tuunel:80", "no address to listen on", ""),
        ("run/x.sock:home.tuunel:80", "no place to listen on", "begins with /"),
        ("./x.sock:home.tuunel:80", "no place to listen on", "begins with /"),
        # unix sockets of the device
        ("8081:home.tuunel:unix:docker.sock", "no path", "unix:/run/docker.sock"),
        ("8081:home.tuunel:unix:", "no path", "unix:/run/docker.sock"),
        ("8081:home.tuunel:unix:/run/../docker.sock", "no path", "without detours"),
        ("8081:home.tuunel:unix:/a b", "no spaces", ""),
        ("8081:home.tuunel:unix:/\u00e4", "ASCII", ""),
        ("8081:home.tuunel:unix:/" + "x" * MAX_UNIX_PATH, "at most 107", ""),
        (f"8081:192.168.1.10.home.tuunel:unix:{DOCKER}", "another machine", "NAME.tuunel"),
        (f"8081:home:unix:{DOCKER}", "not a .tuunel name", "home.tuunel"),
    ],
)
def test_what_cannot_is_refused_with_a_remedy(text: str, told: str, advice: str) -> None:
    with pytest.raises(UsageError) as raised:
        Forwarding.parse(text)
    assert told in str(raised.value)
    assert advice in raised.value.advice


@pytest.mark.parametrize("host", ["..tuunel", "tuunel", "-.home.tuunel", "999.1.1.1.home.tuunel", "x.ip6.home.tuunel"])
def test_a_malformed_name_goes_nowhere(host: str) -> None:
    with pytest.raises((Failure, UsageError)) as raised:
        Forwarding.parse(f"8080:{host}:80")
    assert isinstance(raised.value, UsageError) or raised.value.reason is Reason.UNKNOWN_NAME


def test_the_longest_path_of_a_unix_socket() -> None:
    path = "/" + "x" * (MAX_UNIX_PATH - 1)
    assert read_destination(f"home.tuunel:unix:{path}").path == path


@pytest.mark.parametrize("text", ["home.tuunel:80", "home.tuunel:53/udp", f"home.tuunel:unix:{DOCKER}"])
def test_a_destination_is_shown_as_it_is_written(text: str) -> None:
    assert str(read_destination(text)) == text


def test_the_same_place_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="same place"):
        parse_forwardings(["8080:home.tuunel:80", "127.0.0.1:8080:lab.tuunel:80"])
    with pytest.raises(UsageError, match="same place"):
        parse_forwardings(["/run/x:home.tuunel:80", "/run/x:home.tuunel:81"])


def test_different_places_are_not() -> None:
    several = ["8080:home.tuunel:80", "8080:home.tuunel:80/udp", "[::1]:8080:home.tuunel:80", "0:home.tuunel:80", "0:home.tuunel:81"]
    assert len(parse_forwardings(several)) == 5


def test_nothing_to_forward_is_told() -> None:
    with pytest.raises(UsageError, match="nothing to forward"):
        parse_forwardings([])


@given(st.text(alphabet="0189:/[].%*-_ udpixhometl\x00\u0661\uff0e", max_size=60))
def test_garbage_is_refused_and_nothing_else_happens(text: str) -> None:
    try:
        forwarding = Forwarding.parse(text)
    except TuunelError:
        return
    assert forwarding.to.host.endswith(".tuunel")
    assert (forwarding.to.port == 0) == bool(forwarding.to.path)

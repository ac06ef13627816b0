"""UDP through SOCKS5 (RFC 1928 section 7): a client written from the RFC, PySocks, and dig."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest
import socks

from tests.journeys import doors
from tests.journeys.datagrams import (
    LARGEST,
    Association,
    DatagramTarget,
    answering,
    associated,
    bound,
    echo_datagrams,
    read_udp,
    shout,
    udp_header,
)  # fmt: skip
from tests.journeys.dns import NAMES, dig, dns_server
from tests.journeys.processes import until
from tests.journeys.sockets import flows_to, udp_sockets
from tests.journeys.world import LOOPBACK, Trio, World

pytestmark = pytest.mark.real


@pytest.fixture
def association(trio: Trio) -> Iterator[Association]:
    with associated(trio.proxy.address) as made:
        yield made


@pytest.fixture
def target() -> Iterator[DatagramTarget]:
    with answering(shout) as made:
        yield made


@pytest.mark.parametrize(
    ("host", "at"),
    [
        ("home.tuunel", LOOPBACK),
        ("HOME.tuunel.", LOOPBACK),
        ("127.0.0.2.home.tuunel", "127.0.0.2"),
        ("0--1.ip6.home.tuunel", "::1"),
    ],
)
def test_a_target_behind_the_agent(association: Association, host: str, at: str) -> None:
    with answering(shout, host=at) as target:
        assert association.ask(host, target.port, b"there and back") == b"THERE AND BACK"


@pytest.mark.parametrize(("host", "at"), [(LOOPBACK, LOOPBACK), ("::1", "::1"), ("127.0.0.2", "127.0.0.2")])
def test_what_is_no_tuunel_name_goes_directly(association: Association, host: str, at: str) -> None:
    with answering(shout, host=at) as target:
        assert association.ask(host, target.port, b"direct") == b"DIRECT"


def test_many_targets_share_an_association_and_each_answer_names_its_own(association: Association) -> None:
    """Answers cross each other: the header is what tells them apart."""
    with contextlib.ExitStack() as stack:
        targets = {}
        for number in range(20):
            made = stack.enter_context(answering(lambda data, number=number: b"%d says %b" % (number, data)))  # type: ignore[misc]
            targets[["home.tuunel", LOOPBACK, "127.0.0.1.home.tuunel"][number % 3], made.port] = number
        for host, port in targets:
            association.send(host, port, b"hello")
        answers = {(host, port): payload for host, port, payload in (association.receive() for _ in targets)}
    assert answers == {place: b"%d says hello" % number for place, number in targets.items()}


def test_datagrams_are_kept_apart_and_may_be_empty(association: Association) -> None:
    with answering(echo_datagrams) as target:
        for payload in (b"", b"one", b"", b"two"):
            assert association.ask("home.tuunel", target.port, payload) == payload


@pytest.mark.parametrize("host", ["home.tuunel", LOOPBACK])
def test_the_largest_datagram(association: Association, host: str) -> None:
    """What is left beside the header of what UDP can carry at all."""
    with answering(echo_datagrams) as target:
        payload = os.urandom(LARGEST - len(udp_header(host, target.port)))
        assert association.ask(host, target.port, payload) == payload


def test_an_answer_that_no_header_fits_before_is_lost_and_only_that(association: Association) -> None:
    with answering(lambda data: bytes(LARGEST) if data == b"too much" else data) as target:
        association.send("home.tuunel", target.port, b"too much")
        assert association.ask("home.tuunel", target.port, b"enough") == b"enough"


def test_an_address_that_was_declared_is_the_one_that_counts(trio: Trio, target: DatagramTarget) -> None:
    with associated(trio.proxy.address, declare=True) as association, contextlib.closing(bound()) as stranger:
        stranger.sendto(udp_header("home.tuunel", target.port) + b"me first", association.relay)
        assert association.ask("home.tuunel", target.port, b"me") == b"ME"
    assert target.received == 1


def test_the_first_datagrams_port_counts_when_none_was_declared(association: Association, target: DatagramTarget) -> None:
    assert association.ask("home.tuunel", target.port, b"first") == b"FIRST"
    with contextlib.closing(bound()) as stranger:
        stranger.sendto(udp_header("home.tuunel", target.port) + b"me too", association.relay)
        assert association.ask("home.tuunel", target.port, b"second") == b"SECOND"
        stranger.settimeout(0.1)
        with pytest.raises(TimeoutError):
            stranger.recv(100)
    assert target.received == 2


def test_the_association_ends_with_its_connection(trio: Trio, target: DatagramTarget) -> None:
    with associated(trio.proxy.address) as association:
        association.control.sendall(b"what is said here means nothing")
        assert association.ask("home.tuunel", target.port, b"open") == b"OPEN"
        assert flows_to(target.port) == 1
        association.control.close()
        until(lambda: association.relay[1] not in {row.local for row in udp_sockets()}, "the relay's port is closed")
        until(lambda: not flows_to(target.port), "the agent has closed the flow")


def test_pysocks(trio: Trio, target: DatagramTarget) -> None:
    with socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.set_proxy(socks.SOCKS5, LOOPBACK, trio.proxy.port, rdns=True)
        sock.settimeout(30)
        for payload in (b"one", b"two", b"three"):
            sock.sendto(payload, ("home.tuunel", target.port))
            answer, place = sock.recvfrom(65536)
            assert answer == payload.upper()
            assert place[1] == target.port


@contextlib.contextmanager
def bridge(association: Association, host: str, port: int) -> Iterator[int]:
    """A local UDP port for a client that knows nothing of SOCKS: what comes goes to the target, answers to who asked last."""
    with contextlib.closing(bound()) as local:
        clients: list[tuple[str, int]] = []

        def there() -> None:
            with contextlib.suppress(OSError):
                while True:
                    question, client = local.recvfrom(65536)
                    clients.append(client)
                    association.send(host, port, question)

        def back() -> None:
            with contextlib.suppress(OSError):
                while True:
                    local.sendto(read_udp(association.sock.recv(65536))[2], clients[-1])

        for work in (there, back):
            threading.Thread(target=work, daemon=True).start()
        yield local.getsockname()[1]
        for sock in (local, association.sock):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def test_dig_asks_a_name_server_behind_the_agent(association: Association) -> None:
    with dns_server() as server, bridge(association, "home.tuunel", server) as port:
        for name, address in NAMES.items():
            assert dig(port, name) == [address]
        assert len(dig(port, "long.example", "TXT")[0]) > 200


def test_both_loopbacks_serve_and_without_other_destinations_nothing_leaves(own_world: World, trio: Trio, target: DatagramTarget) -> None:
    proxy = own_world.proxy(trio.walker, "--other", "refuse", listen="localhost:0")
    for loopback in (LOOPBACK, "::1"):
        with associated((loopback, proxy.port)) as association:
            assert association.relay[0] == loopback
            association.send(LOOPBACK, target.port, b"refused")
            assert association.ask("home.tuunel", target.port, b"allowed") == b"ALLOWED"
    assert target.received == 2


def test_a_proxy_that_asks_for_a_password_asks_here_too(own_world: World, trio: Trio) -> None:
    password = trio.walker.home / "proxy-password"
    password.write_text("right\n")
    password.chmod(0o600)
    proxy = own_world.proxy(trio.walker, "--auth", "ann")
    password.unlink()
    with contextlib.closing(doors.connect(proxy.address)) as sock:
        sock.sendall(b"\x05\x01\x00")
        assert sock.recv(2) == b"\x05\xff"
    with answering(shout) as target, socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM) as app:
        app.set_proxy(socks.SOCKS5, LOOPBACK, proxy.port, rdns=True, username="ann", password="right")
        app.settimeout(30)
        app.sendto(b"let me in", ("home.tuunel", target.port))
        assert app.recvfrom(100)[0] == b"LET ME IN"

"""UDP associations over real sockets: who is heard, how answers are named, and when it is over. RFC 1928 section 7."""

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.doorway import Doorway, Echo, doorway
from tests.journeys import doors
from tests.journeys.datagrams import Association, associated, bound, read_reply, read_udp, udp_header
from tests.journeys.targets import read_exactly, read_to_end, reset
from tuunel.address import HostPort
from tuunel.datagrams import DatagramSocket
from tuunel.descriptors import raise_limit
from tuunel.frontdoor import Credentials
from tuunel.udpdoor import BURST, MAX_ASSOCIATIONS

GREETING = b"\x05\x01\x00"
ASSOCIATE = b"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"
LARGEST_IPV4 = 65_507
LARGEST_IPV6 = 65_527


@pytest.fixture
def way(anyio_backend: str) -> Iterator[Doorway]:
    with doorway(anyio_backend) as way:
        yield way


@pytest.fixture
def client(way: Doorway) -> Iterator[Association]:
    with associated(way.address) as client:
        yield client


def assert_deaf(relay: tuple[str, int]) -> None:
    """Nobody has that UDP port."""
    with contextlib.closing(bound(relay[0])) as sock:
        sock.connect(relay)
        sock.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)


class TestDatagrams:
    @pytest.mark.parametrize("host", ["home.tuunel", "HOME.Tuunel", "10.0.0.1", "fd00::1", "nas.home.tuunel"])
    @pytest.mark.parametrize("payload", [b"question", b"", bytes(range(256))])
    def test_they_reach_their_target_and_answers_name_it_as_the_client_did(
        self, way: Doorway, client: Association, host: str, payload: bytes
    ) -> None:
        assert client.ask(host, 53, payload) == payload
        (echo,) = way.echoes
        assert (echo.door, echo.local, echo.sent) == ("socks5", True, [(HostPort(host, 53), payload)])

    def test_an_address_that_was_spelt_as_a_name_is_answered_as_a_name(self, client: Association) -> None:
        question = b"\x00\x00\x00\x03\x0810.0.0.1\x00\x35hello"
        client.sock.sendto(question, client.relay)
        assert client.sock.recv(100) == question

    def test_one_association_has_many_targets(self, way: Doorway, client: Association) -> None:
        for number in range(1, 200):
            assert client.ask(f"host{number}.home.tuunel", number, b"%d" % number) == b"%d" % number
        assert len(way.echoes) == 1

    def test_the_largest_that_fits(self, way: Doorway, client: Association) -> None:
        payload = os.urandom(LARGEST_IPV4 - len(udp_header("10.0.0.1", 53)))
        assert client.ask("10.0.0.1", 53, payload) == payload
        name = "a" * 63 + ".home.tuunel"
        payload = payload[: LARGEST_IPV4 - len(udp_header(name, 53))]
        assert client.ask(name, 53, payload) == payload

    def test_an_answer_that_fits_no_datagram_is_lost_and_counted(self, way: Doorway, client: Association) -> None:
        client.ask("10.0.0.1", 53, b"first")
        (echo,) = way.echoes
        assert way.portal.call(echo.deliver, echo.key, bytes(LARGEST_IPV4)) is False
        assert way.udp.dropped == 1
        assert client.ask("10.0.0.1", 53, b"next") == b"next"

    def test_an_answer_before_any_question_goes_nowhere(self, way: Doorway, client: Association) -> None:
        assert way.portal.call(way.echoes[0].deliver, udp_header("10.0.0.1", 53), b"unasked") is False
        assert client.ask("10.0.0.1", 53, b"next") == b"next"

    @pytest.mark.parametrize(
        "malformed",
        [
            b"",
            b"\x00\x00\x00",
            udp_header("home.tuunel", 53)[:-1],
            udp_header("10.0.0.1", 0) + b"x",
            udp_header("", 53) + b"x",
            udp_header("a" * 254, 53) + b"x",
            udp_header("10.0.0.1", 53, fragment=1) + b"x",
            udp_header("10.0.0.1", 53, fragment=0x80) + b"x",
            b"\x00\x01" + udp_header("10.0.0.1", 53)[2:] + b"x",
            b"\x00\x00\x00\x02" + bytes(20),
        ],
    )
    def test_malformed_ones_and_fragments_are_dropped_and_counted(self, way: Doorway, client: Association, malformed: bytes) -> None:
        for time in (1, 2):
            client.sock.sendto(malformed, client.relay)
            assert client.ask("10.0.0.1", 53, b"good") == b"good"
            assert way.udp.dropped == time
        assert way.echoes[0].sent == [(HostPort("10.0.0.1", 53), b"good")] * 2

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
    @given(garbage=st.lists(st.binary(max_size=100), max_size=20))
    def test_garbage_ends_nothing(self, client: Association, garbage: list[bytes]) -> None:
        for data in garbage:
            client.sock.sendto(data, client.relay)
        client.sock.sendto(udp_header("the.end", 1), client.relay)
        while client.receive() != ("the.end", 1, b""):
            pass  # what happened to be well-formed


class TestStrangers:
    def test_another_port_is_not_heard_once_the_client_is_known(self, way: Doorway, client: Association) -> None:
        assert client.ask("10.0.0.1", 53, b"mine") == b"mine"
        with contextlib.closing(bound()) as stranger:
            stranger.sendto(udp_header("10.0.0.1", 53) + b"theirs", client.relay)
        assert client.ask("10.0.0.1", 53, b"mine") == b"mine"
        assert way.udp.dropped == 1
        assert way.echoes[0].sent == [(HostPort("10.0.0.1", 53), b"mine")] * 2

    @pytest.mark.parametrize("first", [True, False])
    def test_another_address_is_never_heard(self, way: Doorway, client: Association, first: bool) -> None:
        if not first:
            client.ask("10.0.0.1", 53, b"mine")
        with contextlib.closing(bound("127.0.0.2")) as stranger:
            stranger.sendto(udp_header("10.0.0.1", 53) + b"theirs", client.relay)
        assert client.ask("10.0.0.1", 53, b"mine") == b"mine"
        assert way.udp.dropped == 1
        assert (HostPort("10.0.0.1", 53), b"theirs") not in way.echoes[0].sent

    def test_an_address_with_the_clients_port_is_a_stranger_too(self, way: Doorway, client: Association) -> None:
        client.ask("10.0.0.1", 53, b"mine")
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as stranger:
            stranger.bind(("127.0.0.2", client.sock.getsockname()[1]))
            stranger.sendto(udp_header("10.0.0.1", 53) + b"theirs", client.relay)
        assert client.ask("10.0.0.1", 53, b"mine") == b"mine"
        assert way.udp.dropped == 1

    def test_a_declared_port_is_the_only_one(self, way: Doorway) -> None:
        with associated(way.address, declare=True) as client, contextlib.closing(bound()) as stranger:
            stranger.sendto(udp_header("10.0.0.1", 53) + b"theirs", client.relay)  # before the client says anything
            assert client.ask("10.0.0.1", 53, b"mine") == b"mine"
            assert way.udp.dropped == 1
            assert way.echoes[0].sent == [(HostPort("10.0.0.1", 53), b"mine")]

    def test_a_malformed_first_datagram_does_not_tell_the_clients_port(self, way: Doorway, client: Association) -> None:
        with contextlib.closing(bound()) as elsewhere:
            elsewhere.sendto(udp_header("10.0.0.1", 53, fragment=1) + b"x", client.relay)
        assert client.ask("10.0.0.1", 53, b"mine") == b"mine"

    def test_whoever_guessed_the_port_before_it_was_announced_is_not_the_client(
        self, way: Doorway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        announce = way.udp._own_ports.add

        with contextlib.closing(bound()) as stranger:

            def add(address: HostPort) -> None:
                for _ in range(3):
                    stranger.sendto(udp_header("10.0.0.1", 53) + b"theirs", (address.host, address.port))
                announce(address)

            monkeypatch.setattr(way.udp._own_ports, "add", add)
            with associated(way.address) as client:
                assert client.ask("10.0.0.1", 53, b"mine") == b"mine"
                assert way.udp.dropped == 3
                assert way.echoes[0].sent == [(HostPort("10.0.0.1", 53), b"mine")]

    def test_each_association_has_its_own_client(self, way: Doorway, client: Association) -> None:
        with associated(way.address) as other:
            assert other.relay != client.relay
            assert client.ask("10.0.0.1", 53, b"mine") == b"mine"
            assert other.ask("10.0.0.1", 53, b"other's") == b"other's"
            client.sock.sendto(udp_header("10.0.0.1", 53) + b"mine", other.relay)
            assert other.ask("10.0.0.1", 53, b"again") == b"again"
            assert [echo.sent[-1][1] for echo in way.echoes] == [b"mine", b"again"]


class TestTheEnd:
    def test_with_the_end_of_its_connection(self, way: Doorway, client: Association) -> None:
        client.ask("10.0.0.1", 53, b"x")
        client.control.shutdown(socket.SHUT_WR)
        assert read_to_end(client.control) == b""
        assert_deaf(client.relay)
        assert len(way.udp) == 0
        assert way.listening() == set()

    def test_with_a_reset_of_its_connection(self, way: Doorway, client: Association) -> None:
        client.ask("10.0.0.1", 53, b"x")
        reset(client.control)
        way.associations_end()
        assert_deaf(client.relay)

    def test_not_with_what_is_sent_on_it(self, client: Association) -> None:
        client.control.sendall(b"\x05\x03garbage" * 10_000)
        assert client.ask("10.0.0.1", 53, b"x") == b"x"

    def test_what_was_sent_ahead_of_it_is_not_lost(self, way: Doorway, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(DatagramSocket, "wait_readable", lambda _: anyio.sleep_forever())  # nobody has looked before
        with associated(way.address) as late:
            for number in range(100):
                late.sock.sendto(udp_header("10.0.0.1", 53) + b"%d" % number, late.relay)
        way.associations_end()
        assert [payload for _, payload in way.echoes[-1].sent] == [b"%d" % number for number in range(100)]

    def test_an_answer_that_comes_later_is_only_counted(self, way: Doorway, client: Association) -> None:
        client.ask("10.0.0.1", 53, b"x")
        client.control.close()
        way.associations_end()
        assert way.udp.dropped == 1

    def test_when_the_proxy_stops(self, anyio_backend: str) -> None:
        with contextlib.ExitStack() as stack, doorway(anyio_backend) as way:
            client = stack.enter_context(associated(way.address))
            assert client.ask("10.0.0.1", 53, b"x") == b"x"
        assert_deaf(client.relay)


class TestWhere:
    def test_over_ipv6(self, anyio_backend: str) -> None:
        with doorway(anyio_backend, host="::1") as way, associated(way.address) as client:
            assert client.relay[0] == "::1"
            assert client.ask("10.0.0.1", 53, b"x") == b"x"
            payload = os.urandom(LARGEST_IPV6 - len(udp_header("fd00::1", 53)))
            assert client.ask("fd00::1", 53, payload) == payload
            assert way.echoes[0].local

    def test_an_ipv4_client_of_a_dual_stack_door_is_given_an_ipv4_address(self, anyio_backend: str) -> None:
        with doorway(anyio_backend, host="::") as way, associated(("127.0.0.1", way.address[1])) as client:
            assert client.relay[0] == "127.0.0.1"
            assert client.ask("10.0.0.1", 53, b"x") == b"x"

    def test_at_the_address_that_the_client_has_connected_to(self, anyio_backend: str) -> None:
        with doorway(anyio_backend, host="0.0.0.0") as way, associated(("127.0.0.3", way.address[1])) as client:
            assert client.relay[0] == "127.0.0.3"

    def test_over_the_unix_socket_on_loopback(self, anyio_backend: str) -> None:
        with tempfile.TemporaryDirectory() as home:
            path = str(Path(home) / "proxy.sock")
            with doorway(anyio_backend, unix=path) as way, socket.socket(socket.AF_UNIX) as control, contextlib.closing(bound()) as sock:
                control.connect(path)
                control.sendall(GREETING + ASSOCIATE)
                assert read_exactly(control, 2) == b"\x05\x00"
                code, relay = read_reply(control)
                assert (code, relay[0]) == (0, "127.0.0.1")
                client = Association(control, sock, relay)
                assert client.ask("home.tuunel", 53, b"x") == b"x"
                assert way.echoes[0].local
                control.shutdown(socket.SHUT_WR)
                assert read_to_end(control) == b""
                assert_deaf(relay)

    def test_its_port_is_announced_before_the_client_learns_it(self, way: Doorway, client: Association) -> None:
        assert way.listening() == {client.relay[1]}
        with associated(way.address) as other:
            assert way.listening() == {client.relay[1], other.relay[1]}


class TestRefusals:
    def test_greeting_and_request_in_one_go(self, way: Doorway) -> None:
        with contextlib.closing(doors.connect(way.address)) as control:
            control.sendall(GREETING + ASSOCIATE + b"and more that means nothing")
            assert read_exactly(control, 2) == b"\x05\x00"
            assert read_reply(control)[0] == 0

    def test_byte_by_byte(self, way: Doorway) -> None:
        with contextlib.closing(doors.connect(way.address)) as control:
            control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in GREETING + ASSOCIATE:
                control.sendall(bytes([byte]))
            assert read_exactly(control, 2) == b"\x05\x00"
            assert read_reply(control)[0] == 0

    @pytest.mark.parametrize(
        ("said", "answer"),
        [
            (b"\x05\x01\x00" + ASSOCIATE, b"\x05\xff"),
            (b"\x05\x01\x02\x01\x03ann\x05wrong" + ASSOCIATE, b"\x05\x02\x01\x01"),
            (b"\x05\x01\x80" + ASSOCIATE, b"\x05\xff"),
        ],
    )
    def test_without_the_password_there_is_no_association(self, anyio_backend: str, said: bytes, answer: bytes) -> None:
        with doorway(anyio_backend, Credentials("ann", "secret")) as way, contextlib.closing(doors.connect(way.address)) as control:
            control.sendall(said)
            with contextlib.suppress(ConnectionResetError):
                assert read_to_end(control) == answer
            assert way.echoes == []
            assert way.listening() == set()

    def test_with_the_password_there_is_one(self, anyio_backend: str) -> None:
        with doorway(anyio_backend, Credentials("ann", "secret")) as way, contextlib.closing(doors.connect(way.address)) as control:
            control.sendall(b"\x05\x01\x02\x01\x03ann\x06secret" + ASSOCIATE)
            assert read_exactly(control, 4) == b"\x05\x02\x01\x00"
            assert read_reply(control)[0] == 0

    def test_more_than_there_may_be_are_told_the_limit(self, way: Doorway) -> None:
        raise_limit()
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(associated(way.address)) for _ in range(MAX_ASSOCIATIONS)]
            with contextlib.closing(doors.connect(way.address)) as control:
                control.sendall(GREETING + ASSOCIATE)
                assert read_to_end(control) == b"\x05\x00" + b"\x05\x01\x00\x01" + bytes(6)
            assert len(way.echoes) == MAX_ASSOCIATIONS
            leaving = clients.pop()
            leaving.control.shutdown(socket.SHUT_WR)
            assert read_to_end(leaving.control) == b""
            with associated(way.address) as client:
                assert client.ask("10.0.0.1", 53, b"x") == b"x"

    def test_a_port_that_cannot_be_announced_is_not_given_out(self, way: Doorway) -> None:
        in_the_way = way.home.run_dir / "proxy.listen.new"
        in_the_way.mkdir()
        with contextlib.closing(doors.connect(way.address)) as control:
            control.sendall(GREETING + ASSOCIATE)
            assert read_to_end(control) == b"\x05\x00" + b"\x05\x01\x00\x01" + bytes(6)
        assert way.echoes == []
        in_the_way.rmdir()
        with associated(way.address) as client:
            assert client.ask("10.0.0.1", 53, b"x") == b"x"


class TestFloods:
    def test_a_quiet_association_has_its_turn_between_two_bursts_of_a_flood(self, way: Doorway, client: Association) -> None:
        order: list[Echo] = []

        def note(echo: Echo) -> None:
            deliver = echo.deliver
            echo.deliver = lambda key, payload: (order.append(echo), deliver(key, payload))

        with associated(way.address) as quiet:
            for echo in way.echoes:
                note(echo)
            held, release = threading.Event(), threading.Event()

            def hold() -> None:
                held.set()
                assert release.wait(15)

            holding = way.portal.start_task_soon(hold)  # type: ignore[arg-type]
            assert held.wait(15)
            for _ in range(8 * BURST):
                client.send("10.0.0.1", 53, b"flood")
            quiet.send("10.0.0.1", 53, b"quiet")
            release.set()
            holding.result(15)
            assert quiet.receive() == ("10.0.0.1", 53, b"quiet")
            for _ in range(8 * BURST):
                client.receive()
        assert order.index(way.echoes[1]) <= 2 * BURST

    def test_it_answers_while_another_one_floods(self, way: Doorway, client: Association) -> None:
        over = threading.Event()

        def flood() -> None:
            with contextlib.closing(bound()) as sock:
                while not over.is_set():
                    sock.sendto(udp_header("10.0.0.1", 53) + bytes(1200), client.relay)

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            with associated(way.address) as quiet:
                for number in range(100):
                    assert quiet.ask("home.tuunel", 53, b"%d" % number) == b"%d" % number
        finally:
            over.set()
            flooding.join()


def test_the_header_of_an_answer_is_the_one_of_rfc_1928(client: Association) -> None:
    client.sock.sendto(bytes.fromhex("0000 00 01 0a000001 0035 68656c6c6f"), client.relay)
    assert client.sock.recv(100).hex(" ") == "00 00 00 01 0a 00 00 01 00 35 68 65 6c 6c 6f"
    client.sock.sendto(bytes.fromhex("0000 00 03 0b 686f6d652e7475756e656c 0016"), client.relay)
    assert read_udp(client.sock.recv(100)) == ("home.tuunel", 22, b"")

"""Dialling: only checked addresses are connected to, the first that answers wins, and a failure says its true reason."""

import errno
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import anyio
import pytest

from tests.world import PATIENCE, unchanged_descriptors
from tuunel import dial as dialling
from tuunel.address import HostPort
from tuunel.dial import Address, dial, dial_at_once, dial_datagram, dial_unix, resolve
from tuunel.errors import Failure, Reason, Speaker

pytestmark = pytest.mark.anyio

V4 = IPv4Address("127.0.0.1")
V6 = IPv6Address("::1")


def everything(addresses: Sequence[Address]) -> Sequence[Address]:
    return addresses


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def listener6() -> Iterator[socket.socket]:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as sock:
        yield sock


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """A port of 127.0.0.1 that nobody listens on, and that nobody else can take."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.fixture
def service() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PATIENCE)
        yield sock


@pytest.fixture
def place() -> Iterator[Path]:
    """A free path, short enough for a unix socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory) / "x"


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


class Bound(socket.socket):
    """On loopback the kernel may give a connecting socket the very port that it connects to."""

    def connect(self, address: tuple[str, int]) -> None:  # type: ignore[override]
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.bind(address)
        super().connect(address)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels take a moment")
class TestAtOnce:
    """A service of this machine is connected within the call; everything else is left to `dial`."""

    @pytest.mark.parametrize("host", ["", "127.0.0.1"])
    async def test_a_service_of_this_machine_is_connected_within_the_call(self, host: str, listener: socket.socket) -> None:
        stream = dial_at_once(HostPort(host, port_of(listener)), allow=everything)
        assert stream is not None
        assert stream.peer == HostPort("127.0.0.1", port_of(listener))
        accepted, _ = listener.accept()
        with accepted:
            await stream.send_all(b"hello")
            assert accepted.recv(10) == b"hello"
            stream.close()
            assert accepted.recv(10) == b""

    async def test_what_takes_a_wait_or_a_lookup_is_not_begun(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def nothing(*_: object) -> socket.socket:
            raise AssertionError("it was dialled")

        monkeypatch.setattr(dialling, "_begin_to_connect", nothing)
        for host in ("localhost", "nas.lan", "192.168.1.10", "fd00::1"):
            assert dial_at_once(HostPort(host, 80), allow=everything) is None

    async def test_a_refusal_is_left_to_be_told_and_nothing_is_left_open(self, refusing_port: int) -> None:
        with unchanged_descriptors():
            assert dial_at_once(HostPort("127.0.0.1", refusing_port), allow=everything) is None
        with pytest.raises(Failure) as refused:
            await dial(HostPort("127.0.0.1", refusing_port), allow=everything)
        assert refused.value.reason is Reason.CONNECTION_REFUSED

    async def test_a_full_queue_is_left_to_be_waited_for(self) -> None:
        full = socket.create_server(("127.0.0.1", 0), backlog=0)
        with full, socket.create_connection(full.getsockname()), unchanged_descriptors():  # one is what it holds
            assert dial_at_once(HostPort("127.0.0.1", port_of(full)), allow=everything) is None

    async def test_only_what_is_allowed_is_dialled(self, listener: socket.socket) -> None:
        def deny(_: Sequence[Address]) -> Sequence[Address]:
            raise Failure(Reason.POLICY_DENIED, Speaker.AGENT)

        with pytest.raises(Failure) as denied:
            dial_at_once(HostPort("127.0.0.1", port_of(listener)), allow=deny)
        assert denied.value.reason is Reason.POLICY_DENIED
        assert dial_at_once(HostPort("127.0.0.1", port_of(listener)), allow=lambda _: []) is None
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()

    async def test_a_connection_with_itself_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = port_of(probe)
        monkeypatch.setattr(socket, "socket", Bound)
        assert dial_at_once(HostPort("127.0.0.1", port), allow=everything) is None

    async def test_what_is_allowed_is_dialled_and_not_what_was_asked_for(self, listener6: socket.socket) -> None:
        stream = dial_at_once(HostPort("", port_of(listener6)), allow=lambda _: [V6])
        assert stream is not None
        assert stream.peer == HostPort("::1", port_of(listener6))
        stream.close()


class TestConnecting:
    async def test_an_address_is_connected_to(self, listener: socket.socket) -> None:
        stream = await dial(HostPort("127.0.0.1", port_of(listener)), allow=everything)
        accepted, peer = listener.accept()
        with accepted:
            assert stream.local == HostPort(*peer)
            await stream.send_all(b"hello")
            assert accepted.recv(10) == b"hello"
            stream.close()
            assert accepted.recv(10) == b""

    async def test_an_attempt_given_up_when_it_has_connected_is_reset(
        self, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connected = anyio.Event()

        async def connect_and_wait(sock: socket.socket) -> None:
            await wait_writable(sock)
            connected.set()
            await anyio.sleep_forever()

        wait_writable = anyio.wait_writable
        monkeypatch.setattr(anyio, "wait_writable", connect_and_wait)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: dial(HostPort("127.0.0.1", port_of(listener)), allow=everything))
            await connected.wait()
            tasks.cancel_scope.cancel()
        accepted, _ = listener.accept()
        with accepted, pytest.raises(ConnectionResetError):
            accepted.recv(10)

    async def test_the_empty_host_is_this_machine_on_ipv4(self, listener: socket.socket) -> None:
        stream = await dial(HostPort("", port_of(listener)), allow=everything)
        assert stream.peer == HostPort("127.0.0.1", port_of(listener))
        stream.close()

    async def test_the_empty_host_falls_to_ipv6_when_ipv4_refuses(self, listener6: socket.socket) -> None:
        stream = await dial(HostPort("", port_of(listener6)), allow=everything)
        assert stream.peer == HostPort("::1", port_of(listener6))
        stream.close()

    async def test_only_what_is_allowed_is_dialled(self, listener: socket.socket) -> None:
        asked: list[list[Address]] = []

        def allow(addresses: list[Address]) -> list[Address]:
            asked.append(addresses)
            return [address for address in addresses if address.version == 6]

        with pytest.raises(Failure) as caught:
            await dial(HostPort("", port_of(listener)), allow=allow)
        assert caught.value.reason == Reason.CONNECTION_REFUSED
        assert asked == [[V4, V6]]
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()

    async def test_what_is_allowed_is_dialled_and_nothing_is_looked_up_again(
        self, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers = ["127.0.0.1", "192.0.2.1"]

        def getaddrinfo(*_: object, **__: object) -> list[tuple[object, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), 0))]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        stream = await dial(HostPort("rebinding.example", port_of(listener)), allow=everything)
        assert stream.peer.host == "127.0.0.1"
        assert answers == ["192.0.2.1"]
        stream.close()

    async def test_an_address_that_does_not_answer_delays_the_next_one_little(
        self, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect = dialling._connect

        async def silent_on_ipv6(address: Address, port: int) -> socket.socket:
            if address.version == 6:
                await anyio.sleep_forever()
            return await connect(address, port)

        monkeypatch.setattr(dialling, "_connect", silent_on_ipv6)
        began = anyio.current_time()
        stream = await dial(HostPort("", port_of(listener)), allow=lambda _: [V6, V4])
        assert anyio.current_time() - began < 2
        stream.close()

    async def test_of_two_that_connect_one_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dialling, "ATTEMPT_DELAY", 0)
        connected: list[socket.socket] = []
        connect = dialling._connect

        async def together(address: Address, port: int) -> socket.socket:
            with anyio.CancelScope(shield=True):
                connected.append(await connect(address, port))
                while len(connected) < 2:
                    await anyio.sleep(0.001)
            return connected[0] if address == V4 else connected[1]

        monkeypatch.setattr(dialling, "_connect", together)
        with socket.create_server(("0.0.0.0", 0)) as listener, anyio.fail_after(5):
            stream = await dial(HostPort("", port_of(listener)), allow=lambda _: [V4, IPv4Address("127.0.0.2")])
        assert sorted(sock.fileno() == -1 for sock in connected) == [False, True]
        stream.close()

    @pytest.mark.parametrize("zone", [".lab", "no-such-one", "0.evil.example", "4294967296", "9" * 30])
    async def test_a_zone_is_never_taken_for_a_name(self, zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[str, int]] = []

        class Noting(socket.socket):
            def connect(self, address: tuple[str, int]) -> None:  # type: ignore[override]
                asked.append(address)  # `connect` looks up by itself what is no plain address
                raise OSError(errno.ECONNREFUSED, "refused")

        monkeypatch.setattr(socket, "socket", Noting)
        with pytest.raises(Failure):
            await dial(HostPort(f"::1%{zone}", 80), allow=everything)
        assert not asked

    async def test_a_zone_of_this_machine_goes_as_its_number(self, listener6: socket.socket) -> None:
        name = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        for zone in (name, str(socket.if_nametoindex(name))):
            stream = await dial(HostPort(f"::1%{zone}", port_of(listener6)), allow=everything)
            stream.close()

    async def test_a_connection_with_itself_is_a_refusal(self, refusing_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = port_of(probe)
        monkeypatch.setattr(socket, "socket", Bound)
        with pytest.raises(Failure) as caught:
            await dial(HostPort("127.0.0.1", port), allow=everything)
        assert caught.value.reason == Reason.CONNECTION_REFUSED

    async def test_a_cancelled_dial_leaves_nothing_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[socket.socket] = []

        class Silent(socket.socket):
            def connect(self, address: object) -> None:
                opened.append(self)
                raise BlockingIOError

        monkeypatch.setattr(socket, "socket", Silent)
        monkeypatch.setattr(anyio, "wait_writable", lambda _: anyio.sleep_forever())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: dial(HostPort("192.0.2.1", 9), allow=everything))
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert [sock.fileno() for sock in opened] == [-1]


class TestFailures:
    @pytest.mark.parametrize("speaker", list(Speaker))
    async def test_a_refusal_is_told_in_the_speakers_name(self, refusing_port: int, speaker: Speaker) -> None:
        with pytest.raises(Failure) as caught:
            await dial(HostPort("127.0.0.1", refusing_port), allow=everything, speaker=speaker)
        assert (caught.value.reason, caught.value.speaker) == (Reason.CONNECTION_REFUSED, speaker)

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            (errno.ECONNREFUSED, Reason.CONNECTION_REFUSED),
            (errno.ECONNRESET, Reason.CONNECTION_REFUSED),
            (errno.ETIMEDOUT, Reason.CONNECT_TIMEOUT),
            (errno.EHOSTUNREACH, Reason.HOST_UNREACHABLE),
            (errno.ENETUNREACH, Reason.NET_UNREACHABLE),
            (errno.EADDRNOTAVAIL, Reason.NET_UNREACHABLE),
            (errno.EAFNOSUPPORT, Reason.NET_UNREACHABLE),
            (errno.EMFILE, Reason.LIMIT),
            (errno.EPERM, Reason.HOST_UNREACHABLE),
        ],
    )
    async def test_every_error_of_the_kernel_has_a_reason(self, code: int, reason: Reason, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dialling, "_connect", failing({V4: code}))
        with pytest.raises(Failure) as caught:
            await dial(HostPort("127.0.0.1", 9), allow=everything)
        assert caught.value.reason == reason

    async def test_the_error_that_says_most_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dialling, "_connect", failing({V4: errno.ECONNREFUSED, V6: errno.ENETUNREACH}))
        for order in ([V4, V6], [V6, V4]):
            with pytest.raises(Failure) as caught:
                await dial(HostPort("", 9), allow=lambda _, order=order: order)
            assert caught.value.reason == Reason.CONNECTION_REFUSED

    async def test_no_answer_in_time_is_a_timeout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def silent(address: Address, port: int) -> socket.socket:
            await anyio.sleep_forever()
            raise AssertionError

        monkeypatch.setattr(dialling, "_connect", silent)
        with pytest.raises(Failure) as caught:
            await dial(HostPort("192.0.2.1", 9), allow=everything, timeout=0.01)
        assert caught.value.reason == Reason.CONNECT_TIMEOUT

    async def test_no_address_left_is_denied(self) -> None:
        with pytest.raises(Failure) as caught:
            await dial(HostPort("127.0.0.1", 9), allow=lambda _: [], speaker=Speaker.AGENT)
        assert (caught.value.reason, caught.value.speaker) == (Reason.POLICY_DENIED, Speaker.AGENT)

    async def test_what_the_rule_raises_is_told(self) -> None:
        def deny(addresses: Sequence[Address]) -> Sequence[Address]:
            raise Failure(Reason.POLICY_REVOKED, Speaker.AGENT)

        with pytest.raises(Failure) as caught:
            await dial(HostPort("127.0.0.1", 9), allow=deny)
        assert caught.value.reason == Reason.POLICY_REVOKED


class TestTheRule:
    async def test_it_is_asked_again_for_every_further_address(self, listener: socket.socket) -> None:
        questions: list[list[Address]] = []

        def only_once(addresses: list[Address]) -> list[Address]:
            questions.append(addresses)
            if len(questions) > 1:
                raise Failure(Reason.POLICY_DENIED)
            return [V6, V4]

        with unchanged_descriptors(), pytest.raises(Failure) as caught:
            await dial(HostPort("", port_of(listener)), allow=only_once)
        assert caught.value.reason is Reason.CONNECTION_REFUSED  # as the first address said
        assert questions == [[V4, V6], [V4]]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


class TestDatagrams:
    async def test_a_socket_connected_to_the_target_is_given(self, service: socket.socket) -> None:
        sock, _ = await dial_datagram(HostPort("", port_of(service)), allow=everything)
        assert sock.send(b"hello")
        data, sender = service.recvfrom(100)
        assert (data, sender) == (b"hello", (sock.local.host, sock.local.port))
        service.sendto(b"back", sender)
        await sock.wait_readable()
        assert sock.receive() == b"back"
        sock.close()

    async def test_a_stranger_cannot_send_to_it(self, service: socket.socket) -> None:
        sock, _ = await dial_datagram(HostPort("127.0.0.1", port_of(service)), allow=everything)
        address = (sock.local.host, sock.local.port)
        for stranger in (("127.0.0.1", 0), ("127.0.0.2", port_of(service))):  # another port, another address
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.bind(stranger)
                other.sendto(b"from a stranger", address)
        service.sendto(b"from the target", address)
        await sock.wait_readable()
        assert sock.receive() == b"from the target"
        assert sock.receive() is None
        sock.close()

    async def test_nor_in_the_moment_between_binding_and_connecting(self, service: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:

            class Watched(socket.socket):
                def connect(self, address: tuple[str, int]) -> None:  # type: ignore[override]
                    self.bind(("127.0.0.1", 0))
                    for _ in range(100):
                        stranger.sendto(b"too early", self.getsockname())
                    super().connect(address)

            with monkeypatch.context() as patch:
                patch.setattr(socket, "socket", Watched)
                sock, _ = await dial_datagram(HostPort("127.0.0.1", port_of(service)), allow=everything)
        assert sock.receive() is None
        sock.close()

    async def test_only_what_is_allowed_is_connected_to(self, service: socket.socket) -> None:
        sock, _ = await dial_datagram(HostPort("", port_of(service)), allow=lambda _: [V6])
        assert sock.local.host == "::1"
        sock.close()

    async def test_an_address_without_a_way_to_it_is_passed_over(self, service: socket.socket) -> None:
        nowhere = IPv6Address("fe80::1%4000000000")
        sock, _ = await dial_datagram(HostPort("", port_of(service)), allow=lambda _: [nowhere, V4])
        assert sock.local.host == "127.0.0.1"
        sock.close()

    async def test_when_there_is_no_way_to_any_the_reason_is_told(self) -> None:
        with unchanged_descriptors(), pytest.raises(Failure) as caught:
            await dial_datagram(HostPort("fe80::1%4000000000", 9), allow=everything, speaker=Speaker.AGENT)
        assert (caught.value.reason, caught.value.speaker) == (Reason.NET_UNREACHABLE, Speaker.AGENT)

    async def test_broadcast_is_refused_by_the_kernel_whatever_the_rule_says(self) -> None:
        with unchanged_descriptors(), pytest.raises(Failure) as caught:
            await dial_datagram(HostPort("255.255.255.255", 9), allow=everything)
        assert caught.value.reason is not Reason.CONNECTION_REFUSED

    async def test_port_0_is_no_service(self) -> None:
        with pytest.raises(Failure) as caught:
            await dial_datagram(HostPort("127.0.0.1", 0), allow=everything, speaker=Speaker.AGENT)
        assert (caught.value.reason, caught.value.speaker) == (Reason.CONNECTION_REFUSED, Speaker.AGENT)

    async def test_a_connection_with_itself_is_a_refusal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Bound(socket.socket):
            def connect(self, address: tuple[str, int]) -> None:  # type: ignore[override]
                self.bind(address)
                super().connect(address)

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = port_of(probe)
        monkeypatch.setattr(socket, "socket", Bound)
        with unchanged_descriptors(), pytest.raises(Failure) as caught:
            await dial_datagram(HostPort("127.0.0.1", port), allow=everything)
        assert caught.value.reason == Reason.CONNECTION_REFUSED

    async def test_no_address_left_is_denied_and_no_answer_of_the_resolver_a_timeout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(Failure) as caught:
            await dial_datagram(HostPort("127.0.0.1", 9), allow=lambda _: [])
        assert caught.value.reason == Reason.POLICY_DENIED
        monkeypatch.setattr(dialling, "_look_up", lambda *_: anyio.sleep_forever())
        with pytest.raises(Failure) as caught:
            await dial_datagram(HostPort("slow.example", 9), allow=everything, timeout=0.01)
        assert caught.value.reason == Reason.CONNECT_TIMEOUT


class TestUnixSockets:
    async def test_the_socket_at_the_path_is_connected_to(self, place: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place))
            listener.listen()
            stream = await dial_unix(str(place))
            accepted, _ = listener.accept()
            with accepted:
                await stream.send_all(b"hello")
                assert accepted.recv(10) == b"hello"
            stream.close()

    async def test_a_full_queue_is_waited_for(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place))
            listener.listen(0)
            with socket.socket(socket.AF_UNIX) as first:
                first.connect(str(place))
                with unchanged_descriptors(), pytest.raises(Failure) as caught:
                    await dial_unix(str(place), timeout=0.01)
                assert caught.value.reason == Reason.CONNECT_TIMEOUT

                async def make_room(_: float) -> None:
                    listener.accept()[0].close()

                monkeypatch.setattr(anyio, "sleep", make_room)
                stream = await dial_unix(str(place))
                stream.close()

    @pytest.mark.parametrize("kind", ["nothing", "a file", "nobody", "datagrams", "no directory"])
    async def test_what_cannot_be_connected_to_is_told_with_the_systems_word(self, kind: str, place: Path) -> None:
        match kind:
            case "a file":
                place.write_bytes(b"")
            case "nobody":
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.bind(str(place))
            case "datagrams":
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                    sock.bind(str(place))
            case "no directory":
                place = place / "below" / "nothing"
        with unchanged_descriptors(), pytest.raises(Failure, match=str(place)) as caught:
            await dial_unix(str(place), speaker=Speaker.AGENT)
        assert (caught.value.reason, caught.value.speaker) == (Reason.CONNECTION_REFUSED, Speaker.AGENT)

    async def test_a_path_that_no_socket_can_have_is_told(self) -> None:
        with unchanged_descriptors(), pytest.raises(Failure) as caught:
            await dial_unix("/" + "x" * 200)
        assert caught.value.reason == Reason.CONNECTION_REFUSED


def failing(codes: dict[Address, int]) -> object:
    async def connect(address: Address, port: int) -> socket.socket:
        raise OSError(codes[address], "failed")

    return connect


class TestResolving:
    @pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"])
    async def test_an_address_is_itself(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "getaddrinfo", None)
        assert await resolve(text, 80) == [ip_address(text)]

    async def test_the_empty_host_is_both_loopbacks(self) -> None:
        assert await resolve("", 80) == [V4, V6]

    async def test_a_name_is_looked_up_and_each_address_told_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def getaddrinfo(host: object, port: object, **_: object) -> list[tuple[object, ...]]:
            assert (host, port) == ("nas.lan", 80)
            found = [("192.0.2.2", 80), ("192.0.2.1", 80), ("192.0.2.2", 80)]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        assert await resolve("nas.lan", 80) == [ip_address("192.0.2.2"), ip_address("192.0.2.1")]

    @pytest.mark.parametrize("host", ["nobody.invalid", "a" * 64 + ".example", "a..b", "nul\0.example"])
    async def test_a_name_without_an_address_is_told(self, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(Failure) as caught:
            await resolve(host, 80, speaker=Speaker.AGENT)
        assert (caught.value.reason, caught.value.speaker) == (Reason.NAME_NOT_RESOLVED, Speaker.AGENT)

    async def test_a_lookup_that_hangs_holds_nobody_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        hung, released = threading.Event(), threading.Event()

        def hang(*_: object, **__: object) -> None:
            hung.set()
            released.wait()

        monkeypatch.setattr(socket, "getaddrinfo", hang)
        with pytest.raises(Failure) as caught:
            await dial(HostPort("slow.example", 80), allow=everything, timeout=0.01)
        assert caught.value.reason == Reason.CONNECT_TIMEOUT
        assert hung.wait(5)
        threads = [thread for thread in threading.enumerate() if thread.name == "tuunel-lookup"]
        assert all(thread.daemon for thread in threads)
        released.set()
        for thread in threads:
            thread.join(5)

    async def test_lookups_that_hang_are_bounded_in_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        released = threading.Event()
        monkeypatch.setattr(dialling, "_lookups", threading.BoundedSemaphore(2))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait() and [])
        for reason in (Reason.CONNECT_TIMEOUT, Reason.CONNECT_TIMEOUT, Reason.LIMIT):
            with pytest.raises(Failure) as caught:
                await dial(HostPort("slow.example", 80), allow=everything, timeout=0.01)
            assert caught.value.reason is reason
        released.set()
        for thread in [thread for thread in threading.enumerate() if thread.name == "tuunel-lookup"]:
            thread.join(5)
        assert await resolve("fast.example", 80) == []

    async def test_a_lookup_without_a_thread_is_a_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def exhausted(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(dialling, "_lookups", threading.BoundedSemaphore(1))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", exhausted)
            with pytest.raises(Failure) as caught:
                await resolve("nas.lan", 80)
        assert caught.value.reason is Reason.LIMIT
        assert await resolve("nas.lan", 80) == []

    async def test_a_lookup_without_descriptors_is_a_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def exhausted() -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(socket, "socketpair", exhausted)
        with pytest.raises(Failure) as caught:
            await resolve("nas.lan", 80)
        assert caught.value.reason == Reason.LIMIT

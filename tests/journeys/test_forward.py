"""`tuunel forward`: programs that know of no proxy reach a port, or a unix socket, behind the agent."""

import contextlib
import json
import os
import socket
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.journeys.datagrams import LARGEST, DatagramTarget, answering, ask, connected, echo_datagrams, shout
from tests.journeys.dns import NAMES, dig, dns_server
from tests.journeys.house import ECHO_PORT, HERE, LAN_HOST, LAN_PAGE, House
from tests.journeys.peers import program
from tests.journeys.processes import Json, Running, clean_environment, run, until
from tests.journeys.sockets import listens
from tests.journeys.targets import (
    Target,
    answer_after_end,
    closed_port,
    echo,
    end_then_listen,
    read_exactly,
    read_to_end,
    reset,
    serving,
    web_site,
)
from tests.journeys.world import LOOPBACK, Machine, Trio, World, port_of
from tuunel.errors import ANSWERS, ListenError, Reason

pytestmark = pytest.mark.real

MEBIBYTE = os.urandom(1 << 20)


@pytest.fixture(scope="module")
def own() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A short one: the path of a unix socket is limited to about 104 bytes."""
    with tempfile.TemporaryDirectory(prefix="tuuf", dir="/tmp") as name:
        yield Path(name)


def curl(*options: str) -> list[str]:
    return [program("curl"), "-sS", "--noproxy", "*", "--max-time", "20", *options]


@dataclass(frozen=True)
class Service:
    """A target, and where its forward listens."""

    target: Target | DatagramTarget | None
    listen: str

    @property
    def port(self) -> int:
        return port_of(self.listen)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.listen.rpartition(":")[0].strip("[]"), self.port), 30)


@pytest.fixture(scope="module")
def forward(own: World, trio: Trio, engine: Path) -> Iterator[tuple[Running, dict[str, Service]]]:
    """One process that forwards to a service of each kind, on a machine with the default grant."""
    with contextlib.ExitStack() as stack:
        tcp = {
            "echo": stack.enter_context(serving(echo)),
            "neighbour": stack.enter_context(serving(echo, host="127.0.0.2")),
            "six": stack.enter_context(serving(echo, host="::1")),
            "asked": stack.enter_context(serving(answer_after_end(MEBIBYTE))),
            "greets": stack.enter_context(serving(end_then_listen(b"greeting"))),
            "resets": stack.enter_context(serving(lambda sock, _: reset(sock) if sock.recv(10) else None)),
        }
        udp = {"datagrams": stack.enter_context(answering(echo_datagrams)), "shout": stack.enter_context(answering(shout))}
        wanted = {name: f"0:home.tuunel:{target.port}" for name, target in tcp.items()}
        wanted["neighbour"] = f"0:127.0.0.2.home.tuunel:{tcp['neighbour'].port}"
        wanted["six"] = f"[::1]:0:0--1.ip6.home.tuunel:{tcp['six'].port}"
        wanted["nobody"] = f"0:home.tuunel:{closed_port()}"
        wanted["forbidden"] = f"0:home.tuunel:unix:{engine}"
        wanted |= {name: f"0:home.tuunel:{target.port}/udp" for name, target in udp.items()}
        wanted["names"] = f"0:home.tuunel:{stack.enter_context(dns_server())}/udp"
        started = own.forward(trio.walker, *wanted.values())
        targets: dict[str, Target | DatagramTarget] = {**tcp, **udp}
        yield (
            started.process,
            {name: Service(targets.get(name), listen) for name, listen in zip(wanted, started.listens, strict=True)},
        )


@pytest.fixture
def services(forward: tuple[Running, dict[str, Service]]) -> dict[str, Service]:
    return forward[1]


# --- TCP ----------------------------------------------------------------------------------------------------------------------


def test_each_forward_has_a_port_of_its_own_and_leads_to_its_own_target(services: dict[str, Service]) -> None:
    assert len({service.listen for service in services.values()}) == len(services)
    for name, host in (("echo", LOOPBACK), ("neighbour", LOOPBACK), ("six", "[::1]")):
        service = services[name]
        assert service.listen.rpartition(":")[0] == host
        with service.connect() as sock:
            sock.sendall(b"there and back")
            assert read_exactly(sock, 14) == b"there and back"
        assert isinstance(service.target, Target)
        assert len(service.target.connections) == 1


def test_it_listens_on_loopback_and_elsewhere_only_when_that_is_written_out(own: World, house: House) -> None:
    page, datagrams = f"{LAN_HOST}.home.tuunel:8080", f"{LAN_HOST}.home.tuunel:{ECHO_PORT}/udp"
    with own.forward(house.walker, f"0:{page}", f"0.0.0.0:0:{page}", f"0:{datagrams}", f"0.0.0.0:0:{datagrams}") as forward:
        near, wide, near_udp, wide_udp = map(port_of, forward.listens)
        assert [listen.rpartition(":")[0] for listen in forward.listens] == [LOOPBACK, "0.0.0.0"] * 2
        for at, port in ((LOOPBACK, near), (HERE, wide)):
            assert run(curl(f"http://{at}:{port}/")).stdout == LAN_PAGE
        could_not_connect = 7
        assert run(curl(f"http://{HERE}:{near}/"), check=False).returncode == could_not_connect
        for at, port in ((LOOPBACK, near_udp), (HERE, wide_udp)):
            with connected(port, at) as sock:
                assert ask(sock, b"over there?") == b"over there?"
        with connected(near_udp, HERE) as sock, pytest.raises(ConnectionRefusedError):
            ask(sock, b"anybody here?")


def test_half_close_and_bytes_are_as_without_it(services: dict[str, Service]) -> None:
    with services["asked"].connect() as sock:
        sock.sendall(MEBIBYTE)
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock) == MEBIBYTE
    with services["greets"].connect() as sock:
        assert read_to_end(sock) == b"greeting"
        sock.sendall(MEBIBYTE)
    for name in ("asked", "greets"):
        target = services[name].target
        assert isinstance(target, Target)
        assert target.noted() == [MEBIBYTE]


def assert_reset(service: Service) -> None:
    """Connect and speak: the end must be a reset, so that no program takes it for an answer without content."""
    with pytest.raises((ConnectionResetError, BrokenPipeError)), service.connect() as sock:
        sock.sendall(b"x")
        assert read_to_end(sock) is None


def test_a_target_that_resets_is_a_reset(services: dict[str, Service]) -> None:
    assert_reset(services["resets"])


def test_a_target_that_refuses_is_a_reset_and_the_reason_is_told(forward: tuple[Running, dict[str, Service]]) -> None:
    process, services = forward
    assert_reset(services["nobody"])
    while process.told("closed")["reason"] != Reason.CONNECTION_REFUSED:
        pass


def test_forwards_stand_beside_each_other_and_beside_a_proxy_and_leave_nothing(own: World, trio: Trio) -> None:
    with serving(echo) as target:
        forwards = [own.forward(trio.laptop, f"0:home.tuunel:{target.port}") for _ in range(2)]
        for forward in forwards:
            with socket.create_connection((LOOPBACK, forward.port), 30) as sock:
                sock.sendall(b"beside")
                assert read_exactly(sock, 6) == b"beside"
        for forward in forwards:
            forward.process.terminate()
            assert forward.process.wait(10) == 0
    assert not list(trio.laptop.home.rglob("forward-*.sock"))


def test_a_port_that_is_taken_is_told(trio: Trio, services: dict[str, Service]) -> None:
    done = trio.walker.tuunel("forward", f"{services['echo'].port}:home.tuunel:80", check=False)
    assert done.returncode == ListenError.exit_code


def test_what_is_no_tuunel_name_is_a_usage_error_and_never_goes_direct(trio: Trio) -> None:
    done = trio.walker.tuunel("forward", "8080:example.org:80", check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"example.org" in done.stderr


def test_http_hosts_keeps_a_web_page_from_reaching_through(own: World, trio: Trio) -> None:
    """DNS rebinding: the browser of a page at evil.example connects to the forward, but says whom it believes to speak to."""
    with web_site({"/": ("text/plain", b"the router's page")}) as site:
        with own.forward(trio.walker, f"0:home.tuunel:{site.port}", options=["--http-hosts", "localhost,router.lan"]) as forward:
            status = ["--write-out", " %{http_code}"]
            known = ["--resolve", f"localhost:{forward.port}:{LOOPBACK}", f"http://localhost:{forward.port}/"]
            assert run(curl(*status, *known)).stdout == b"the router's page 200"
            for host in ("evil.example", f"evil.example:{forward.port}", LOOPBACK):
                assert run(curl(*status, "-H", f"Host: {host}", f"http://{LOOPBACK}:{forward.port}/")).stdout.endswith(b" 403")
        assert len(site.requests) == 1


def test_iperf3_over_tcp_and_udp(own: World, trio: Trio) -> None:
    """It talks over TCP about what it measures over UDP: both forwards have the same port number."""
    port, local = closed_port(), closed_port()
    server = [program("iperf3"), "--server", "--one-off", "--bind", LOOPBACK, "--port", str(port)]
    client = [program("iperf3"), "--client", LOOPBACK, "--port", str(local), "--json", "--time", "1"]

    def measured(*options: str) -> Json:
        """What iperf3 has measured in a second. A server for each: between two measurements one and the same resets who comes early."""
        with Running(server, clean_environment()):
            until(lambda: listens(port), "iperf3 listens")
            end: Json = json.loads(run([*client, *options]).stdout)["end"]
            return end

    with own.forward(trio.walker, f"{local}:home.tuunel:{port}", f"{local}:home.tuunel:{port}/udp"):
        for direction in ([], ["--reverse"]):
            assert measured(*direction)["sum_received"]["bytes"] > 1_000_000
            over_udp = measured(*direction, "--udp", "--bitrate", "8M", "--length", "1200")["sum"]
            assert over_udp["packets"] > 500
            assert over_udp["lost_percent"] < 5


# --- UDP ----------------------------------------------------------------------------------------------------------------------


def test_dig(services: dict[str, Service]) -> None:
    for name, address in NAMES.items():
        assert dig(services["names"].port, name) == [address]
    assert len(dig(services["names"].port, "long.example", "TXT")[0]) > 200


def test_datagrams_of_every_size_up_to_the_largest_there_is(services: dict[str, Service]) -> None:
    payload = os.urandom(LARGEST)
    with connected(services["datagrams"].port) as sock:
        for size in (0, 1, 1472, 1473, 9000, LARGEST):
            assert ask(sock, payload[:size]) == payload[:size]


def test_each_client_is_a_flow_of_its_own(services: dict[str, Service]) -> None:
    service = services["shout"]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(service.port)) for _ in range(50)]
        for number, client in enumerate(clients):
            client.send(b"client %d" % number)
        for number, client in enumerate(clients):
            assert client.recv(100) == b"CLIENT %d" % number
    assert isinstance(service.target, DatagramTarget)
    assert len(service.target.callers) == 50


# --- unix sockets -------------------------------------------------------------------------------------------------------------


class _Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """What dockerd is to its clients: an HTTP server on a unix socket."""

    daemon_threads = True


class _EngineRequest(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        request = self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        body = json.dumps({"asked": request.decode().split(" ")[1]}).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        self.wfile.write(head % len(body) + body)


@pytest.fixture(scope="module")
def engine(directory: Path) -> Iterator[Path]:
    path = directory / "engine.sock"
    with _Engine(str(path), _EngineRequest) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield path
        server.shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def admitted(own: World, trio: Trio, engine: Path) -> Machine:
    """A machine whose grant names the socket."""
    return own.laptop(trio.agent.new_invite("--target", f"unix:{engine}"))


def test_a_unix_socket_here_leads_to_a_port_there(own: World, trio: Trio, directory: Path) -> None:
    here = directory / "port.sock"
    with serving(echo) as target:
        forward = own.forward(trio.walker, f"{here}:home.tuunel:{target.port}")
        assert here.stat().st_mode & 0o777 == 0o600
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.connect(str(here))
            sock.sendall(b"from a file")
            assert read_exactly(sock, 11) == b"from a file"
        forward.process.terminate()
        assert forward.process.wait(10) == 0
        assert not here.exists()


def test_a_unix_socket_there_for_the_grant_that_names_it(own: World, admitted: Machine, engine: Path, directory: Path) -> None:
    here = directory / "engine-here.sock"
    with own.forward(admitted, f"0:home.tuunel:unix:{engine}", f"{here}:home.tuunel:unix:{engine}") as forward:
        for way in ([f"http://{LOOPBACK}:{forward.port}/containers"], ["--unix-socket", str(here), "http://docker/containers"]):
            assert json.loads(run(curl("-f", *way)).stdout) == {"asked": "/containers"}


@pytest.mark.parametrize("place", [["home", ""], ["home.tuunel:"]], ids=" ".join)
def test_nc_reaches_a_unix_socket(admitted: Machine, engine: Path, place: list[str]) -> None:
    done = admitted.tuunel("nc", *place[:-1], f"{place[-1]}unix:{engine}", stdin=b"GET /info HTTP/1.0\r\n\r\n")
    assert done.stdout.endswith(b'{"asked": "/info"}')


def test_the_default_grant_opens_no_unix_socket(trio: Trio, engine: Path, forward: tuple[Running, dict[str, Service]]) -> None:
    for path in (engine, engine.with_name("nothing.sock")):  # whether it is there is told to nobody who may not use it
        done = trio.walker.tuunel("nc", "home", f"unix:{path}", check=False)
        assert (done.returncode, done.stdout) == (ANSWERS[Reason.POLICY_DENIED].exit, b"")
    process, services = forward
    assert_reset(services["forbidden"])
    while process.told("closed")["reason"] != Reason.POLICY_DENIED:
        pass

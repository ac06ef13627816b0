"""`tuunel forward`: programs that know of no proxy reach a port, or a unix socket, behind the agent."""

import contextlib
import json
import os
import socket
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.datagrams import LARGEST, answering, ask, connected, echo_datagrams, shout
from tests.journeys.dns import NAMES, dig, dns_server
from tests.journeys.house import ECHO_PORT, LAN_HOST, LAN_PAGE, House
from tests.journeys.peers import program
from tests.journeys.processes import Json, Running, clean_environment, run, until
from tests.journeys.sockets import listens
from tests.journeys.targets import answer_after_end, closed_port, echo, end_then_listen, read_exactly, read_to_end, reset, serving, web_site
from tests.journeys.world import LOOPBACK, Machine, Trio, World, port_of
from tuunel.errors import ANSWERS, ListenError, Reason

pytestmark = pytest.mark.real

MEBIBYTE = os.urandom(1 << 20)


@pytest.fixture(scope="module")
def own() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short one: the path of a unix socket is limited to about 104 bytes."""
    with tempfile.TemporaryDirectory(prefix="tuuf", dir="/tmp") as name:
        yield Path(name)


def curl(*options: str) -> list[str]:
    return [program("curl"), "-sS", "--noproxy", "*", "--max-time", "20", *options]


# --- TCP ----------------------------------------------------------------------------------------------------------------------


def test_several_forwards_at_once_each_on_a_port_of_its_own(own: World, trio: Trio) -> None:
    with serving(echo) as one, serving(echo, host="127.0.0.2") as two, serving(echo, host="::1") as three:
        wanted = [
            f"0:home.tuunel:{one.port}",
            f"0:127.0.0.2.home.tuunel:{two.port}",
            f"[::1]:0:0--1.ip6.home.tuunel:{three.port}",
        ]
        with own.forward(trio.walker, *wanted) as forward:
            assert len(set(forward.listens)) == 3
            assert [listen.rpartition(":")[0] for listen in forward.listens] == [LOOPBACK, LOOPBACK, "[::1]"]
            for listen, target in zip(forward.listens, (one, two, three), strict=True):
                host, _, port = listen.rpartition(":")
                with socket.create_connection((host.strip("[]"), int(port)), 20) as sock:
                    sock.sendall(b"there and back")
                    assert read_exactly(sock, 14) == b"there and back"
                assert len(target.connections) == 1


def test_it_listens_on_loopback_and_elsewhere_only_when_that_is_written_out(own: World, house: House) -> None:
    with own.forward(house.walker, f"0:{LAN_HOST}.home.tuunel:8080", f"0.0.0.0:0:{LAN_HOST}.home.tuunel:8080") as forward:
        near, wide = forward.listens
        assert (near.rpartition(":")[0], wide.rpartition(":")[0]) == (LOOPBACK, "0.0.0.0")
        assert run(curl(f"http://{near}/")).stdout == LAN_PAGE
        assert run(curl(f"http://127.0.0.2:{port_of(forward.listens[1])}/")).stdout == LAN_PAGE
        could_not_connect = 7
        assert run(curl(f"http://127.0.0.2:{port_of(forward.listens[0])}/"), check=False).returncode == could_not_connect


def test_half_close_and_bytes_are_as_without_it(own: World, trio: Trio) -> None:
    with (
        serving(answer_after_end(MEBIBYTE)) as asked,
        serving(end_then_listen(b"greeting")) as first,
        own.forward(trio.walker, f"0:home.tuunel:{asked.port}", f"0:home.tuunel:{first.port}") as forward,
    ):
        with socket.create_connection((LOOPBACK, port_of(forward.listens[0])), 30) as sock:
            sock.sendall(MEBIBYTE)
            sock.shutdown(socket.SHUT_WR)
            assert read_to_end(sock) == MEBIBYTE
        with socket.create_connection((LOOPBACK, port_of(forward.listens[1])), 30) as sock:
            assert read_to_end(sock) == b"greeting"
            sock.sendall(MEBIBYTE)
        assert (asked.noted(), first.noted()) == ([MEBIBYTE], [MEBIBYTE])


def assert_reset(port: int) -> None:
    """Connect and speak: the end must be a reset, so that no program takes it for an answer without content."""
    with pytest.raises((ConnectionResetError, BrokenPipeError)), socket.create_connection((LOOPBACK, port), 30) as sock:
        sock.sendall(b"x")
        assert read_to_end(sock) is None


def test_a_target_that_refuses_is_a_reset_and_the_reason_is_told(own: World, trio: Trio) -> None:
    with own.forward(trio.walker, f"0:home.tuunel:{closed_port()}") as forward:
        assert_reset(forward.port)
        assert forward.process.told("closed")["reason"] == Reason.CONNECTION_REFUSED


def test_a_target_that_resets_is_a_reset(own: World, trio: Trio) -> None:
    with (
        serving(lambda sock, _: reset(sock) if sock.recv(10) else None) as target,
        own.forward(trio.walker, f"0:home.tuunel:{target.port}") as forward,
    ):
        assert_reset(forward.port)


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


def test_a_port_that_is_taken_is_told(own: World, trio: Trio) -> None:
    with own.forward(trio.walker, f"0:home.tuunel:{closed_port()}") as forward:
        done = trio.walker.tuunel("forward", f"{forward.port}:home.tuunel:80", check=False)
    assert done.returncode == ListenError.exit_code


@pytest.mark.parametrize(
    "argument",
    ["80", "8080:example.org:80", "8080:home.tuunel", "8080:home.tuunel:80/tcp", "x:home.tuunel:80", "/tmp/x.sock:home.tuunel:53/udp"],
)
def test_what_cannot_be_meant_is_a_usage_error(trio: Trio, argument: str) -> None:
    done = trio.walker.tuunel("forward", argument, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


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


def measured(port: int, *options: str) -> Json:
    """What iperf3 has measured in a second. Its server does one thing at a time: who comes before it is done with the last is sent away."""

    def once() -> Json | None:
        command = [program("iperf3"), "--client", LOOPBACK, "--port", str(port), "--json", "--time", "1", *options]
        said: Json = json.loads(run(command, check=False).stdout)
        if "busy" in said.get("error", ""):
            return None
        assert "error" not in said, said["error"]
        end: Json = said["end"]
        return end

    return until(once, "iperf3 has measured") or {}


@pytest.mark.parametrize("direction", [[], ["--reverse"]], ids=["up", "down"])
def test_iperf3_over_tcp_and_udp(own: World, trio: Trio, direction: list[str]) -> None:
    """It talks over TCP about what it measures over UDP: both forwards have the same port number."""
    port, local = closed_port(), closed_port()
    with (
        Running([program("iperf3"), "--server", "--bind", LOOPBACK, "--port", str(port)], clean_environment()),
        own.forward(trio.walker, f"{local}:home.tuunel:{port}", f"{local}:home.tuunel:{port}/udp"),
    ):
        until(lambda: listens(port), "iperf3 listens")
        assert measured(local, *direction)["sum_received"]["bytes"] > 1_000_000
        over_udp = measured(local, *direction, "--udp", "--bitrate", "8M", "--length", "1200")["sum"]
        assert over_udp["packets"] > 500
        assert over_udp["lost_percent"] < 5


# --- UDP ----------------------------------------------------------------------------------------------------------------------


def test_dig_through_a_udp_forward(own: World, trio: Trio) -> None:
    with dns_server() as port, own.forward(trio.walker, f"0:home.tuunel:{port}/udp") as forward:
        for name, address in NAMES.items():
            assert dig(forward.port, name) == [address]
        assert len(dig(forward.port, "long.example", "TXT")[0]) > 200


def test_a_udp_forward_to_a_host_behind_the_agent(own: World, house: House) -> None:
    with own.forward(house.walker, f"0:{LAN_HOST}.home.tuunel:{ECHO_PORT}/udp") as forward, connected(forward.port) as sock:
        assert ask(sock, b"over there?") == b"over there?"


def test_datagrams_of_every_size_up_to_the_largest_there_is(own: World, trio: Trio) -> None:
    payload = os.urandom(LARGEST)
    with (
        answering(echo_datagrams) as target,
        own.forward(trio.walker, f"0:home.tuunel:{target.port}/udp") as forward,
        connected(forward.port) as sock,
    ):
        for size in (0, 1, 1472, 1473, 9000, LARGEST):
            assert ask(sock, payload[:size]) == payload[:size]


def test_each_client_is_a_flow_of_its_own(own: World, trio: Trio) -> None:
    with answering(shout) as target, own.forward(trio.walker, f"0:home.tuunel:{target.port}/udp") as forward:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connected(forward.port)) for _ in range(50)]
            for number, client in enumerate(clients):
                client.send(b"client %d" % number)
            for number, client in enumerate(clients):
                assert client.recv(100) == b"CLIENT %d" % number
        assert len(target.callers) == 50


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


@pytest.fixture
def engine(directory: Path) -> Iterator[Path]:
    path = directory / "engine.sock"
    with _Engine(str(path), _EngineRequest) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield path
        server.shutdown()
        thread.join(10)


@pytest.fixture
def admitted(own: World, trio: Trio, engine: Path) -> Machine:
    """A machine whose grant names the socket."""
    return own.laptop(trio.agent.new_invite("--target", f"unix:{engine}"))


def test_a_unix_socket_here_leads_to_a_port_there(own: World, trio: Trio, directory: Path) -> None:
    here = directory / "here.sock"
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
    here = directory / "here.sock"
    with own.forward(admitted, f"0:home.tuunel:unix:{engine}", f"{here}:home.tuunel:unix:{engine}") as forward:
        for way in ([f"http://{LOOPBACK}:{forward.port}/containers"], ["--unix-socket", str(here), "http://docker/containers"]):
            assert json.loads(run(curl("-f", *way)).stdout) == {"asked": "/containers"}


@pytest.mark.parametrize("place", [["home", ""], ["home.tuunel", ""], ["home.tuunel:"]], ids=" ".join)
def test_nc_reaches_a_unix_socket(admitted: Machine, engine: Path, place: list[str]) -> None:
    done = admitted.tuunel("nc", *place[:-1], f"{place[-1]}unix:{engine}", stdin=b"GET /info HTTP/1.0\r\n\r\n")
    assert done.stdout.endswith(b'{"asked": "/info"}')


def test_the_default_grant_opens_no_unix_socket(own: World, trio: Trio, engine: Path) -> None:
    for path in (engine, engine.with_name("nothing.sock")):  # whether it is there is told to nobody who may not use it
        done = trio.walker.tuunel("nc", "home", f"unix:{path}", check=False)
        assert (done.returncode, done.stdout) == (ANSWERS[Reason.POLICY_DENIED].exit, b"")
    with own.forward(trio.walker, f"0:home.tuunel:unix:{engine}") as forward:
        assert_reset(forward.port)
        assert forward.process.told("closed")["reason"] == Reason.POLICY_DENIED

"""What lies behind a name: the agent's loopbacks, its LAN, and ordinary names that a route keeps."""

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.journeys import doors
from tests.journeys.certificates import tls_for
from tests.journeys.doors import TUNNEL_DOORS
from tests.journeys.house import HERE, HOUSE, LAN_HOST, LAN_PAGE, ROUTER, House
from tests.journeys.peers import program
from tests.journeys.processes import run
from tests.journeys.targets import echo, read_exactly, serving, web_site
from tests.journeys.world import LOOPBACK, Proxy, Trio

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def curl() -> str:
    return program("curl")


def assert_echo(proxy: Proxy, door: str, host: str, port: int) -> None:
    with TUNNEL_DOORS[door].open(proxy.address, host, port) as opened:
        assert opened.answer.code == TUNNEL_DOORS[door].success
        opened.sock.sendall(b"there and back")
        assert read_exactly(opened.sock, 14) == b"there and back"


@pytest.mark.parametrize("door", TUNNEL_DOORS)
def test_the_device_name_is_the_agents_own_loopback_in_both_families(trio: Trio, door: str) -> None:
    for host in (LOOPBACK, "::1"):
        with serving(echo, host=host) as target:
            assert_echo(trio.proxy, door, "home.tuunel", target.port)


@pytest.mark.parametrize("door", TUNNEL_DOORS)
def test_an_ipv6_target_is_written_with_dashes(trio: Trio, door: str) -> None:
    with serving(echo, host="::1") as target:
        assert_echo(trio.proxy, door, "0--1.ip6.home.tuunel", target.port)


@pytest.mark.parametrize("door", TUNNEL_DOORS)
def test_another_address_behind_the_agent(trio: Trio, door: str) -> None:
    with serving(echo, host="127.0.0.2") as target:
        assert_echo(trio.proxy, door, "127.0.0.2.home.tuunel", target.port)


def test_an_ipv6_page_in_curl(trio: Trio, curl: str) -> None:
    with web_site({"/": ("text/plain", b"six")}, host="::1") as site:
        for scheme in ("socks5h", "http"):
            at = f"{scheme}://{LOOPBACK}:{trio.proxy.port}"
            assert run([curl, "-sSf", "--proxy", at, f"http://0--1.ip6.home.tuunel:{site.port}/"]).stdout == b"six"


def test_localhost_binds_both_loopbacks_on_one_port(trio: Trio) -> None:
    machine = trio.world.laptop(trio.agent.new_invite())
    proxy = trio.world.proxy(machine, listen="localhost:0")
    with serving(echo) as target:
        for host in (LOOPBACK, "::1"):
            with doors.socks5((host, proxy.port), "home.tuunel", target.port) as opened:
                assert opened.answer.code == 0
    proxy.process.stop()


@pytest.fixture(scope="module")
def routed(trio: Trio) -> Iterator[Proxy]:
    machine = trio.world.laptop(trio.agent.new_invite())
    proxy = trio.world.proxy(machine, "--route", "localhost=home", "--route", "127.0.0.3/32=home", "--other", "refuse")
    yield proxy
    proxy.process.stop()


class TestRouteOnLoopback:
    """A page under its real name: the name goes to the agent as it is, and TLS runs between curl and the page."""

    def test_a_tls_page_under_its_real_name(self, routed: Proxy, curl: str, tmp_path: Path) -> None:
        tls, authority = tls_for("localhost", tmp_path)
        with web_site({"/": ("text/plain", b"under its real name")}, tls=tls) as site:
            for options in (["--proxy", f"socks5h://{LOOPBACK}:{routed.port}"], ["--proxy", f"http://{LOOPBACK}:{routed.port}"]):
                done = run([curl, "-sSf", "--noproxy", "", *options, "--cacert", str(authority), f"https://localhost:{site.port}/"])
                assert done.stdout == b"under its real name"
            assert {headers["host"] for _, _, headers in site.requests} == {f"localhost:{site.port}"}

    def test_a_network_route(self, routed: Proxy) -> None:
        with serving(echo, host="127.0.0.3") as target:
            for door in TUNNEL_DOORS:
                assert_echo(routed, door, "127.0.0.3", target.port)

    def test_the_pac_file_holds_the_routes(self, routed: Proxy, curl: str) -> None:
        pac = run([curl, "-sSf", f"http://{LOOPBACK}:{routed.port}/proxy.pac"]).stdout.decode()
        assert "localhost" in pac
        assert f"{int(ip_address('127.0.0.3')):032b}" in pac  # networks are compared by their bits


class TestHouse:
    """An agent with a network of its own."""

    def test_a_lan_host_by_address(self, house: House, curl: str) -> None:
        at = f"socks5h://{LOOPBACK}:{house.proxy.port}"
        done = run([curl, "-sSfi", "--proxy", at, f"http://{LAN_HOST}.home.tuunel:8080/"])
        assert done.stdout.endswith(LAN_PAGE)
        assert f"X-Caller: {ROUTER}".encode() in done.stdout

    @pytest.mark.parametrize("name", ["printer", "printer.lan"])
    def test_a_lan_host_by_the_name_that_only_the_agent_knows(self, house: House, curl: str, name: str) -> None:
        at = f"http://{LOOPBACK}:{house.proxy.port}"
        assert run([curl, "-sSf", "--proxy", at, f"http://{name}.home.tuunel:8080/"]).stdout == LAN_PAGE

    def test_a_tls_page_under_its_real_name_that_the_agent_resolves(self, house: House, curl: str, tmp_path: Path) -> None:
        tls, authority = tls_for("app.lab.example", tmp_path)
        with web_site({"/": ("text/plain", b"the app")}, host=HERE, tls=tls) as site:
            for options in (["--proxy", f"socks5h://{LOOPBACK}:{house.proxy.port}"], ["--proxy", f"http://{LOOPBACK}:{house.proxy.port}"]):
                done = run([curl, "-sSf", *options, "--cacert", str(authority), f"https://app.lab.example:{site.port}/"])
                assert done.stdout == b"the app"

    def test_the_caller_is_the_agent(self, house: House) -> None:
        with serving(echo, host=HERE) as target:
            assert_echo(house.proxy, "socks5", f"{HERE}.home.tuunel", target.port)
            assert target.connections[0].getpeername()[0] == HOUSE

    def test_nc_reaches_the_lan_host(self, house: House) -> None:
        done = house.laptop.nc("printer.home.tuunel", 8080, stdin=b"GET / HTTP/1.0\r\n\r\n")
        assert done.stdout.endswith(LAN_PAGE), done.stderr

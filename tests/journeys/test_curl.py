"""curl through every front door: 100 MB down and up with equal checksums, credentials, keep-alive, chunks, and what a page must not do."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.peers import program
from tests.journeys.processes import run
from tests.journeys.targets import Site, web_site
from tests.journeys.world import LOOPBACK, Proxy, Trio

pytestmark = pytest.mark.real

SIZE = 100_000_000
WAYS = ["socks5h", "socks4a", "http-connect", "http"]


@pytest.fixture(scope="module")
def curl() -> str:
    return program("curl")


@pytest.fixture(scope="module")
def big() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture(scope="module")
def site(big: bytes) -> Iterator[Site]:
    with web_site({"/big": ("application/octet-stream", big), "/": ("text/plain", b"home\n")}) as made:
        yield made


def through(way: str, proxy: Proxy) -> list[str]:
    """The curl options for one way through the front door."""
    at = f"{LOOPBACK}:{proxy.port}"
    return {
        "socks5h": ["--proxy", f"socks5h://{at}"],
        "socks4a": ["--proxy", f"socks4a://{at}"],
        "http-connect": ["--proxy", f"http://{at}", "--proxytunnel"],
        "http": ["--proxy", f"http://{at}"],
    }[way]


@pytest.mark.parametrize("way", WAYS)
def test_100_mb_come_down_whole(trio: Trio, site: Site, curl: str, big: bytes, way: str, tmp_path: Path) -> None:
    got = tmp_path / "big"
    run([curl, "-sSf", *through(way, trio.proxy), "-o", str(got), f"http://home.tuunel:{site.port}/big"], deadline=100)
    assert hashlib.sha256(got.read_bytes()).digest() == hashlib.sha256(big).digest()


@pytest.mark.parametrize("way", WAYS)
def test_100_mb_go_up_whole(trio: Trio, site: Site, curl: str, big: bytes, way: str, tmp_path: Path) -> None:
    sent = tmp_path / "big"
    sent.write_bytes(big)
    done = run([curl, "-sSf", *through(way, trio.proxy), "-T", str(sent), f"http://home.tuunel:{site.port}/up"], deadline=100)
    assert done.stdout.decode() == hashlib.sha256(big).hexdigest()


@pytest.mark.parametrize("way", WAYS)
def test_a_chunked_upload_of_unknown_length_arrives_whole(trio: Trio, site: Site, curl: str, big: bytes, way: str) -> None:
    body = big[:3_000_001]
    done = run([curl, "-sSf", *through(way, trio.proxy), "-T", "-", f"http://home.tuunel:{site.port}/up"], stdin=body)
    assert done.stdout.decode() == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("way", WAYS)
def test_a_chunked_download_arrives_whole(trio: Trio, site: Site, curl: str, way: str) -> None:
    done = run([curl, "-sSf", *through(way, trio.proxy), f"http://home.tuunel:{site.port}/chunked"])
    assert done.stdout == b"one two three"


def test_a_post_that_expects_100_continue_is_answered(trio: Trio, site: Site, curl: str, big: bytes) -> None:
    body = big[:2_000_000]
    options = ["--expect100-timeout", "20", "-H", "Expect: 100-continue", "--data-binary", "@-"]
    done = run([curl, "-sSf", *through("http", trio.proxy), *options, f"http://home.tuunel:{site.port}/up"], stdin=body, deadline=15)
    assert done.stdout.decode() == hashlib.sha256(body).hexdigest()


def test_one_proxy_connection_carries_requests_to_changing_hosts(trio: Trio, site: Site, curl: str) -> None:
    with web_site({"/": ("text/plain", b"other\n")}) as other:
        urls = [f"http://home.tuunel:{port}/" for port in (site.port, other.port, site.port)]
        done = run([curl, "-sSf", *through("http", trio.proxy), "-w", "%{num_connects}\n", *urls])
    assert done.stdout.decode().split() == ["home", "1", "other", "0", "home", "0"]


def test_http_1_0_works(trio: Trio, site: Site, curl: str) -> None:
    assert run([curl, "-sSf", "--http1.0", *through("http", trio.proxy), f"http://home.tuunel:{site.port}/"]).stdout == b"home\n"


def test_the_site_sees_an_ordinary_request_and_nothing_of_the_proxy(trio: Trio, site: Site, curl: str) -> None:
    secrets = [
        "-H",
        "Proxy-Authorization: Basic c2VjcmV0",
        "-H",
        "Proxy-Connection: keep-alive",
        "-H",
        "Connection: X-Hop",
        "-H",
        "X-Hop: 1",
    ]
    run([curl, "-sSf", *through("http", trio.proxy), *secrets, f"http://home.tuunel:{site.port}/seen?x=1", "-o", os.devnull], check=False)
    method, path, headers = next(request for request in reversed(site.requests) if request[1].startswith("/seen"))
    assert (method, path, headers["host"]) == ("GET", "/seen?x=1", f"home.tuunel:{site.port}")
    assert not {"proxy-authorization", "proxy-connection", "x-hop"} & headers.keys()


@pytest.mark.parametrize("way", WAYS)
def test_ordinary_names_go_direct(trio: Trio, site: Site, curl: str, way: str) -> None:
    done = run([curl, "-sSf", *through(way, trio.proxy), "--noproxy", "", f"http://{LOOPBACK}:{site.port}/"])
    assert done.stdout == b"home\n"


@pytest.mark.parametrize("host", ["home.tuunel", "HOME.tuunel", "home.tuunel.", "127.0.0.1.home.tuunel"])
def test_each_spelling_of_a_name_works(trio: Trio, site: Site, curl: str, host: str) -> None:
    assert run([curl, "-sSf", *through("socks5h", trio.proxy), f"http://{host}:{site.port}/"]).stdout == b"home\n"


def test_a_device_id_is_a_name_with_and_without_its_dashes(trio: Trio, site: Site, curl: str) -> None:
    for name in (trio.agent.device_id, trio.agent.device_id.replace("-", "")):
        assert run([curl, "-sSf", *through("socks5h", trio.proxy), f"http://{name}.tuunel:{site.port}/"]).stdout == b"home\n"


def test_a_page_from_elsewhere_may_not_reach_a_tuunel_host(trio: Trio, site: Site, curl: str) -> None:
    ask = [curl, "-sS", *through("http", trio.proxy), "-o", os.devnull, "-w", "%{http_code}", f"http://home.tuunel:{site.port}/origin"]
    assert run([*ask, "-H", "Origin: https://evil.example"]).stdout == b"403"
    assert run([*ask, "-H", "Origin: null"]).stdout == b"403"
    assert not [request for request in site.requests if request[1] == "/origin"]
    assert run([*ask, "-H", f"Origin: http://home.tuunel:{site.port}"]).stdout == b"404"  # the site itself answers: it has no such page


def test_the_pac_file_names_this_proxy(trio: Trio, curl: str) -> None:
    done = run([curl, "-sSfi", f"http://{LOOPBACK}:{trio.proxy.port}/proxy.pac"])
    head, _, body = done.stdout.decode().partition("\r\n\r\n")
    assert "application/x-ns-proxy-autoconfig" in head
    assert "nosniff" in head.lower()
    assert "FindProxyForURL" in body
    assert f"SOCKS5 {LOOPBACK}:{trio.proxy.port}" in body


def test_the_pac_file_is_not_given_to_a_page_that_rebinds_a_name(trio: Trio, curl: str) -> None:
    ask = [curl, "-sS", "-o", os.devnull, "-w", "%{http_code}", f"http://{LOOPBACK}:{trio.proxy.port}/proxy.pac"]
    assert int(run([*ask, "-H", "Host: rebound.example"]).stdout) >= 400


@pytest.fixture(scope="module")
def guarded(trio: Trio) -> Proxy:
    """A proxy with --auth."""
    machine = trio.world.laptop(trio.agent.new_invite())
    password = machine.home / "proxy-password"
    password.write_text("correct horse\n")
    password.chmod(0o600)
    return trio.world.proxy(machine, "--auth", "ann")


class TestWithCredentials:
    """Every door that can carry a password asks for it, the one that cannot is shut."""

    @pytest.mark.parametrize("way", ["socks5h", "http-connect", "http"])
    def test_the_right_password_opens(self, guarded: Proxy, site: Site, curl: str, way: str) -> None:
        url = f"http://home.tuunel:{site.port}/"
        assert run([curl, "-sSf", *through(way, guarded), "--proxy-user", "ann:correct horse", url]).stdout == b"home\n"

    @pytest.mark.parametrize("credentials", [["--proxy-user", "ann:wrong"], ["--proxy-user", "bob:correct horse"], []])
    @pytest.mark.parametrize("way", ["socks5h", "http-connect", "http"])
    def test_any_other_is_refused(self, guarded: Proxy, site: Site, curl: str, way: str, credentials: list[str]) -> None:
        url = f"http://home.tuunel:{site.port}/guarded"
        done = run(
            [curl, "-sS", "-w", "%{http_connect} %{http_code}", "-o", os.devnull, *through(way, guarded), *credentials, url], check=False
        )
        if way == "socks5h":
            assert done.returncode == 97  # CURLE_PROXY
        else:
            assert b"407" in done.stdout
        assert not [request for request in site.requests if request[1] == "/guarded"]

    def test_socks4a_has_no_password_and_is_refused(self, guarded: Proxy, site: Site, curl: str) -> None:
        done = run([curl, "-sS", *through("socks4a", guarded), f"http://home.tuunel:{site.port}/"], check=False)
        assert done.returncode == 97

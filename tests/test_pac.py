"""The auto-configuration file: its text here, its verdicts in a real browser's engine."""

import json
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from tests.journeys.chromium import Page, chromium
from tuunel.address import HostPort
from tuunel.pac import write_pac

PATTERNS = ["*.Lab.example.com", "git.example.com"]
NETWORKS = [ip_network("192.168.1.0/24"), ip_network("10.0.0.0/7"), ip_network("fd00::/8"), ip_network("2001:db8::1/128")]
PROXY = "SOCKS5 127.0.0.1:1080"
VERDICTS = {
    "home.tuunel": PROXY,
    "HOME.Tuunel.": PROXY,
    "0--1.ip6.home.tuunel": PROXY,
    "tuunel.example": "DIRECT",
    "nottuunel": "DIRECT",
    "www.lab.example.com": PROXY,
    "lab.example.com": "DIRECT",
    "notlab.example.com": "DIRECT",
    "git.example.com": PROXY,
    "x.git.example.com": "DIRECT",
    "192.168.1.77": PROXY,
    "192.168.2.1": "DIRECT",
    "11.255.0.1": PROXY,
    "12.0.0.1": "DIRECT",
    "192.168.1.1.example": "DIRECT",
    "fd12:3456::1": PROXY,
    "[fd12:3456::1]": PROXY,
    "fe80::1": "DIRECT",
    "2001:db8::1": PROXY,
    "2001:db8::2": "DIRECT",
    "::1": "DIRECT",
    "example.com": "DIRECT",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.mark.real
def test_a_browsers_engine_decides_as_the_routes_say(browser: Page) -> None:
    script = write_pac(HostPort("127.0.0.1", 1080), PATTERNS, NETWORKS)
    hosts = json.dumps(list(VERDICTS))
    verdicts = browser.value(f"(function () {{ {script} return {hosts}.map(host => FindProxyForURL('http://' + host + '/', host)); }})()")
    assert dict(zip(VERDICTS, verdicts, strict=True)) == VERDICTS


def test_an_ipv6_proxy_is_written_in_brackets() -> None:
    assert '"SOCKS5 [::1]:1080"' in write_pac(HostPort("::1", 1080), [], [])


@pytest.mark.parametrize("lookup", ["dnsResolve", "isInNet(", "isResolvable", "myIpAddress"])
def test_it_looks_no_name_up(lookup: str) -> None:
    code = [line for line in write_pac(HostPort("127.0.0.1", 1), PATTERNS, NETWORKS).splitlines() if not line.startswith("//")]
    assert lookup not in "\n".join(code)


def test_text_in_patterns_stays_text() -> None:
    assert json.dumps('.";alert(1);"') in write_pac(HostPort("127.0.0.1", 1), ['*.";alert(1);"'], [])

"""A hostile web page in a real browser, at the proxy's own port and, through the proxy, at a `.tuunel` site."""

import json
from typing import Any

import pytest

from tests.journeys.chromium import Page, chromium
from tests.journeys.processes import until
from tests.journeys.targets import Site, web_site
from tests.journeys.world import LOOPBACK, Trio

pytestmark = pytest.mark.real

SECRET = b"what only the owner of the home network may read"

#: Runs every attempt and leaves in `#verdict` what the page could learn of each: "" where there was nothing to be read.
SCRIPT = """<!doctype html><title>evil</title><link rel="icon" href="data:,"><script>
async function attempt(url, options) {
    try {
        const answer = await fetch(url, options);
        return answer.type + " " + answer.status + " " + (await answer.text());
    } catch (error) {
        return "";
    }
}
async function run() {
    const attempts = %s, learnt = {};
    for (const [name, [url, options]] of Object.entries(attempts)) learnt[name] = await attempt(url, options);
    const verdict = document.createElement("pre");
    verdict.id = "verdict";
    verdict.textContent = JSON.stringify(learnt);
    document.body.append(verdict);
}
addEventListener("load", run);
</script><body>"""


def evil(attempts: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, tuple[str, bytes]]:
    return {"/": ("text/html; charset=utf-8", (SCRIPT % json.dumps(attempts)).encode())}


def learnt(tab: Page) -> dict[str, str]:
    text = until(lambda: tab.value('document.getElementById("verdict")?.textContent'), "the page has tried everything", 60, 0.1)
    verdict: dict[str, str] = json.loads(text)
    return verdict


def test_a_page_from_elsewhere_learns_nothing_at_the_proxys_port_and_gets_nothing_done_there(trio: Trio) -> None:
    proxy = f"http://{LOOPBACK}:{trio.proxy.port}"
    with web_site({"/": ("text/plain", SECRET)}) as home:
        attempts: dict[str, tuple[str, dict[str, Any]]] = {
            "help": (f"{proxy}/", {}),
            "pac": (f"{proxy}/proxy.pac", {}),
            "as a proxy": (f"{proxy}/http://home.tuunel:{home.port}/", {}),
            "posted": (f"{proxy}/", {"method": "POST", "body": f"GET http://home.tuunel:{home.port}/ HTTP/1.1\r\n\r\n"}),
            "blindly": (f"{proxy}/proxy.pac", {"mode": "no-cors"}),
            "blindly posted": (f"{proxy}/", {"mode": "no-cors", "method": "POST", "body": "x=1"}),
        }
        with web_site(evil(attempts)) as site, chromium() as tab:
            tab.open(f"http://{LOOPBACK}:{site.port}/")
            found = learnt(tab)
        assert {name: text for name, text in found.items() if text not in ("", "opaque 0 ")} == {}
        assert home.requests == []


def test_a_name_that_the_page_has_bound_to_this_machine_opens_nothing(trio: Trio) -> None:
    """DNS rebinding: the page's own name leads to 127.0.0.1, so that the proxy's port is of its own origin."""
    origin = f"http://evil.example:{trio.proxy.port}"
    with chromium("--host-resolver-rules=MAP evil.example 127.0.0.1") as tab:
        tab.ignore_content_policy()  # as if the script had come from the name's first address
        tab.open(f"{origin}/")
        assert tab.value("location.origin") == origin
        tab.value('fetch("/proxy.pac").then(async answer => { window.pac = answer.status + " " + await answer.text() })')
        shown = until(lambda: tab.value("window.pac"), "the request is answered", 60, 0.1)
        page = tab.value("document.body.innerText")
    assert shown.startswith("403 ")
    for text in (shown, page):
        assert "FindProxyForURL" not in text
        assert str(trio.laptop.home) not in text


def attack(trio: Trio, home: Site, option: str) -> dict[str, str]:
    target = f"http://home.tuunel:{home.port}"
    attempts: dict[str, tuple[str, dict[str, Any]]] = {
        "read": (f"{target}/", {"headers": {"X-From": "evil"}}),
        "post": (f"{target}/", {"method": "POST", "body": "x=1", "mode": "no-cors"}),
        "put": (f"{target}/", {"method": "PUT", "body": "x=1"}),
        "simple": (f"{target}/", {"mode": "cors"}),
    }
    with web_site(evil(attempts)) as site, chromium(option, "--proxy-bypass-list=<-loopback>") as tab:
        tab.open(f"http://{LOOPBACK}:{site.port}/")
        return learnt(tab)


def test_through_the_http_proxy_no_request_with_an_origin_reaches_a_tuunel_site(trio: Trio) -> None:
    with web_site({"/": ("text/plain", SECRET)}) as home:
        found = attack(trio, home, f"--proxy-server=http://{LOOPBACK}:{trio.proxy.port}")
        assert not any(SECRET.decode() in text for text in found.values())
        assert home.requests == []


def test_through_socks_the_browser_itself_keeps_the_page_from_reading(trio: Trio) -> None:
    """SOCKS cannot see an Origin: what is sent blindly arrives, as docs/explanation/threats.md says; nothing comes back to the page."""
    with web_site({"/": ("text/plain", SECRET)}) as home:
        found = attack(trio, home, f"--proxy-server=socks5://{LOOPBACK}:{trio.proxy.port}")
        assert not any(SECRET.decode() in text for text in found.values())
        assert home.requests

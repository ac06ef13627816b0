"""Programs of another user of the machine at the proxy's port: refused through every front door, and told."""

import os

import pytest

from tests.journeys.peers import program
from tests.journeys.processes import run
from tests.journeys.targets import Site, web_site
from tests.journeys.world import LOOPBACK, Proxy, Trio

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

NOBODY = "65534"
WAYS = [
    ["--socks5-hostname", "{}"],
    ["--proxy", "socks4a://{}"],
    ["--proxy", "http://{}", "--proxytunnel"],
    ["--proxy", "http://{}"],
]


def ask(proxy: Proxy, site: Site, way: list[str], *, other_user: bool) -> tuple[int, str, str]:
    """Fetch through the proxy: curl's exit code, the body, and what it said of each step."""
    options = [option.format(f"{LOOPBACK}:{proxy.port}") for option in way]
    argv = [program("curl"), "-sv", "--max-time", "20", *options, f"http://home.tuunel:{site.port}/"]
    if other_user:
        argv = [program("setpriv"), "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--", *argv]
    done = run(argv, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("way", WAYS, ids=["socks5", "socks4a", "http-connect", "http"])
def test_a_program_of_another_user_is_refused_and_told_why(trio: Trio, way: list[str]) -> None:
    with web_site({"/": ("text/plain", b"home\n")}) as site:
        code, body, said = ask(trio.proxy, site, way, other_user=True)
        assert body != "home\n"
        if "--proxytunnel" in way or way[-1] == "http://{}":
            assert "403" in said
            assert "FORBIDDEN_USER" in said
        else:
            assert code == 97  # CURLE_PROXY
        assert not site.requests
        assert ask(trio.proxy, site, way, other_user=False)[1] == "home\n"


def test_a_person_may_open_the_proxy_to_all_users_or_ask_for_a_password(own_trio: Trio) -> None:
    with web_site({"/": ("text/plain", b"home\n")}) as site:
        own_trio.proxy.process.stop()
        proxy = own_trio.world.proxy(own_trio.laptop, "--all-users")
        assert ask(proxy, site, WAYS[0], other_user=True)[1] == "home\n"
        proxy.process.stop()
        password = own_trio.laptop.home / "proxy-password"
        password.write_text("open sesame\n")
        password.chmod(0o600)
        proxy = own_trio.world.proxy(own_trio.laptop, "--auth", "ann")
        assert ask(proxy, site, ["--proxy-user", "ann:open sesame", *WAYS[0]], other_user=True)[1] == "home\n"


def test_the_refusal_is_told_to_the_person(own_trio: Trio) -> None:
    with web_site({}) as site:
        ask(own_trio.proxy, site, WAYS[0], other_user=True)
        assert f"user {NOBODY}" in own_trio.proxy.process.told("notice")["text"]

"""A headless Chromium with a fresh profile, driven through its DevTools socket."""

import contextlib
import itertools
import json
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.journeys.peers import program
from tests.journeys.processes import Running, clean_environment, until

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--mute-audio",
]


class Page:
    """The one tab of a browser."""

    def __init__(self, devtools: ClientConnection) -> None:
        self._devtools = devtools
        self._numbers = itertools.count(1)

    def _call(self, method: str, deadline: float, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._devtools.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._devtools.recv(timeout=deadline))
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def open(self, url: str) -> None:
        """Go to `url`; the page's failure to load is an AssertionError with the browser's own words."""
        failure = self._call("Page.navigate", 60, url=url).get("errorText")
        assert not failure, f"{url}: {failure}"

    def ignore_content_policy(self) -> None:
        """Let scripts do on every page to come what its Content-Security-Policy forbids."""
        self._call("Page.setBypassCSP", 30, enabled=True)

    def value(self, expression: str) -> Any:
        """Return what JavaScript says `expression` is."""
        return self._call("Runtime.evaluate", 30, expression=expression, returnByValue=True)["result"].get("value")


def _page_address(profile: Path, browser: Running) -> str:
    port_file = profile / "DevToolsActivePort"
    until(lambda: (port_file.exists() and port_file.read_text().count("\n")) or not browser.alive(), "Chromium listens", 60)
    assert browser.alive(), browser.errors()
    port = port_file.read_text().split("\n")[0]
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def address() -> str:
        with without_proxy.open(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            pages = [each for each in json.load(answer) if each["type"] == "page"]
        return pages[0]["webSocketDebuggerUrl"] if pages else ""

    return until(address, "Chromium has a tab", 60)


@contextlib.contextmanager
def chromium(*options: str) -> Iterator[Page]:
    """Start Chromium with `options` on an empty profile; yields its tab."""
    binary = program("chromium", "chromium-browser", "google-chrome")
    with tempfile.TemporaryDirectory(prefix="tuuweb", dir="/tmp", ignore_cleanup_errors=True) as name:
        profile = Path(name)
        env = clean_environment(HOME=name)
        browser = Running([binary, *QUIET, "--remote-debugging-port=0", f"--user-data-dir={profile}", *options, "about:blank"], env)
        try:
            with connect(_page_address(profile, browser), proxy=None, max_size=None) as devtools:
                yield Page(devtools)
        finally:
            browser.stop()

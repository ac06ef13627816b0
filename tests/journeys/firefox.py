"""A headless Firefox on a profile of its own, driven through Marionette, its remote protocol (firefox-source-docs: Marionette)."""

import contextlib
import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.journeys.peers import program
from tests.journeys.processes import Running, clean_environment, run, until
from tests.journeys.targets import read_exactly


class Window:
    """The one window of a browser."""

    def __init__(self, marionette: socket.socket) -> None:
        self._marionette = marionette
        self._numbers = itertools.count(1)
        self._receive()  # its greeting
        self._call("WebDriver:NewSession")

    def _receive(self) -> Any:
        length = b""
        while not length.endswith(b":"):
            length += read_exactly(self._marionette, 1)
        return json.loads(read_exactly(self._marionette, int(length[:-1])))

    def _call(self, command: str, **parameters: Any) -> Any:
        message = json.dumps([0, next(self._numbers), command, parameters]).encode()
        self._marionette.sendall(b"%d:%s" % (len(message), message))
        _, _, error, result = self._receive()
        assert error is None, error
        return result

    def open(self, url: str) -> None:
        """Go to `url` and wait until it is loaded; the page's failure to load is an AssertionError with the browser's own words."""
        self._call("WebDriver:Navigate", url=url)

    def value(self, expression: str) -> Any:
        """Return what JavaScript of the page says `expression` is."""
        return self._call("WebDriver:ExecuteScript", script=f"return {expression};", args=[])["value"]

    def own_value(self, expression: str) -> Any:
        """Return what JavaScript of the browser itself says `expression` is."""
        self._call("Marionette:SetContext", value="chrome")
        try:
            return self.value(expression)
        finally:
            self._call("Marionette:SetContext", value="content")


QUIET = {
    "marionette.port": 0,
    "app.normandy.enabled": False,
    "browser.region.network.url": "",
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
}


class Firefox:
    """A Firefox whose user's home is `home`: it has run once, and made its profile there."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._argv = [program("firefox-esr", "firefox"), "--headless", "--no-remote"]
        self._environment = clean_environment(HOME=str(home), MOZ_CRASHREPORTER_DISABLE="1")
        run([*self._argv, "--screenshot", str(home / "first.png"), "about:blank"], self._environment, deadline=60)
        (made,) = home.rglob("prefs.js")
        self.profile = made.parent
        lines = (f'user_pref("{name}", {json.dumps(value)});' for name, value in QUIET.items())
        (self.profile / "user.js").write_text("\n".join(lines))

    @contextlib.contextmanager
    def running(self) -> Iterator[Window]:
        """Run it; yields its window."""
        port = self.profile / "MarionetteActivePort"
        browser = Running([*self._argv, "--marionette", "--remote-allow-system-access"], self._environment)
        try:
            until(lambda: (port.exists() and port.read_text()) or not browser.alive(), "Firefox listens", 60)
            assert browser.alive(), browser.errors()
            with socket.create_connection(("127.0.0.1", int(port.read_text())), timeout=60) as marionette:
                yield Window(marionette)
        finally:
            browser.stop()

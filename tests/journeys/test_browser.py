"""A real browser: a page with 60 sub-resources and a WebSocket behind the agent, asserted on the page's own DOM."""

import contextlib
import threading
from collections.abc import Iterator

import pytest
from websockets.sync.server import ServerConnection, serve

from tests.journeys.chromium import chromium
from tests.journeys.processes import until
from tests.journeys.targets import web_site
from tests.journeys.world import LOOPBACK, Trio

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

EACH = 20
PIXEL = b'<svg xmlns="http://www.w3.org/2000/svg" width="7" height="7"><rect width="7" height="7" fill="green"/></svg>'


def page(websocket_port: int) -> bytes:
    """20 scripts, 20 style sheets, 20 pictures, then a WebSocket; `#verdict` says what worked."""
    scripts = "".join(f'<script src="/{n}.js"></script>' for n in range(EACH))
    styles = "".join(f'<link rel="stylesheet" href="/{n}.css">' for n in range(EACH))
    pictures = "".join(f'<img src="/{n}.svg">' for n in range(EACH))
    return f"""<!doctype html><title>home</title><link rel="icon" href="data:,">
<script>var ran = 0;</script>{styles}{scripts}<body>{pictures}<p id="verdict"></p><script>
addEventListener("load", () => {{
  const drawn = [...document.images].filter(each => each.naturalWidth === 7).length;
  const style = getComputedStyle(document.documentElement);
  let styled = 0;
  for (let n = 0; n < {EACH}; n++) styled += style.getPropertyValue("--c" + n).trim() === "yes";
  const socket = new WebSocket("ws://" + location.hostname + ":{websocket_port}/echo");
  const heard = [];
  const say = how => document.getElementById("verdict").textContent = [ran, styled, drawn, how].join(" ");
  socket.onopen = () => {{ socket.send("first"); socket.send("x".repeat(100000)); }};
  socket.onmessage = message => {{ heard.push(message.data.length); if (heard.length === 2) socket.close(1000); }};
  socket.onclose = ended => say(heard.join("+") + " " + (ended.wasClean ? "clean" : "broken"));
}});
</script>""".encode()


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


@contextlib.contextmanager
def echo_websocket() -> Iterator[int]:
    """A WebSocket server that sends every message back; yields its port."""
    with serve(echo, LOOPBACK, 0, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join(10)


def files(websocket_port: int) -> dict[str, tuple[str, bytes]]:
    made = {"/": ("text/html; charset=utf-8", page(websocket_port))}
    for n in range(EACH):
        made[f"/{n}.js"] = ("text/javascript", b"ran += 1;")
        made[f"/{n}.css"] = ("text/css", b":root { --c%d: yes; }" % n)
        made[f"/{n}.svg"] = ("image/svg+xml", PIXEL)
    return made


WAYS = {
    "socks5": "--proxy-server=socks5://127.0.0.1:{port}",
    "pac": "--proxy-pac-url=http://127.0.0.1:{port}/proxy.pac",
    "http": "--proxy-server=http://127.0.0.1:{port}",
}


@pytest.mark.parametrize("way", WAYS)
def test_chromium_loads_the_whole_page_and_talks_over_a_websocket(trio: Trio, way: str) -> None:
    option = WAYS[way].format(port=trio.proxy.port)
    with echo_websocket() as websocket_port, web_site(files(websocket_port)) as site, chromium(option) as tab:
        tab.open(f"http://home.tuunel:{site.port}/")
        verdict = until(lambda: tab.value('document.getElementById("verdict")?.textContent'), "the page gives its verdict", 60, 0.1)
        assert verdict == f"{EACH} {EACH} {EACH} 5+100000 clean"
        assert tab.value("location.hostname") == "home.tuunel"
        asked = {path for _, path, _ in site.requests}
    assert len(asked) == 3 * EACH + 1


def test_chromium_shows_the_page_that_says_which_hop_failed(trio: Trio) -> None:
    with chromium(WAYS["http"].format(port=trio.proxy.port)) as tab:
        tab.open("http://hme.tuunel/")
        shown = until(lambda: tab.value("document.body && document.body.innerText"), "an error page", 60, 0.1)
    assert "no device of that name" in shown
    assert "home" in shown

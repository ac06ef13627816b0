"""The metrics' page: one path, one method, and nobody from a web page or through the agent."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import anyio
import pytest

from tuunel import exposition
from tuunel.address import HostPort
from tuunel.errors import ListenError
from tuunel.exposition import serve_metrics
from tuunel.listeners import known_listeners
from tuunel.settings import Home

pytestmark = pytest.mark.anyio
DEADLINE = 20


async def page(accept: str) -> tuple[bytes, str]:
    return f"accepted {accept}\n".encode(), "text/x-test"


@asynccontextmanager
async def serving(home: Path, listen: str = "127.0.0.1:0") -> AsyncIterator[HostPort]:
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            yield await tasks.start(serve_metrics, Home(home), "relay", HostPort.parse(listen), page)
            tasks.cancel_scope.cancel()


async def ask(where: HostPort, request: str) -> str:
    async with await anyio.connect_tcp("127.0.0.1", where.port) as stream:
        await stream.send(request.encode())
        answer = b""
        while True:
            try:
                answer += await stream.receive()
            except anyio.EndOfStream:
                return answer.decode()


def get(path: str = "/metrics", host: str = "localhost", method: str = "GET", more: str = "") -> str:
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n"


async def test_the_page_is_served_as_the_monitor_accepts_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as where:
        answer = await ask(where, get(more="Accept: text/openmetrics\r\n"))
        assert answer.startswith("HTTP/1.1 200 OK\r\n")
        assert "Content-Type: text/x-test\r\n" in answer
        assert answer.endswith("\r\n\r\naccepted text/openmetrics\n")
        assert (await ask(where, get("/metrics?name[]=up"))).startswith("HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/"), 404),
        (get("/metrics/"), 404),
        (get(method="POST", more="Content-Length: 0\r\n"), 405),
        (get(method="HEAD"), 405),
        (get(host="evil.example"), 403),
        (get(host="evil.example:9464"), 403),
        (get(host="192.0.2.1"), 403),
        (get(host=""), 403),
        (get(host="127.0.0.1:80"), 200),
        (get(host="[::1]:80"), 200),
        (get(host="LOCALHOST"), 200),
        ("nonsense\r\n\r\n", 400),
        ("GET /metrics HTTP/1.1\r\n\r\n", 400),
        (get(more="X: " + "x" * 2 * exposition.HEAD_LIMIT + "\r\n"), 400),
    ],
)
async def test_anything_else_is_refused_by_its_status(tmp_path: Path, request_: str, status: int) -> None:
    async with serving(tmp_path) as where:
        answer = await ask(where, request_)
        assert answer.startswith(f"HTTP/1.1 {status} ")
        assert (await ask(where, get())).startswith("HTTP/1.1 200 ")  # and the next one is served


async def test_beyond_loopback_a_monitor_may_ask_by_any_name(tmp_path: Path) -> None:
    async with serving(tmp_path, "0.0.0.0:0") as where:
        assert (await ask(where, get(host="relay.internal:9464"))).startswith("HTTP/1.1 200 ")


async def test_the_listener_is_announced_while_it_is_there(tmp_path: Path) -> None:
    async with serving(tmp_path) as where:
        assert known_listeners(Home(tmp_path).run_dir) == ((ip_address("127.0.0.1"), where.port),)
    assert known_listeners(Home(tmp_path).run_dir) == ()


async def test_a_client_that_says_nothing_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "DEADLINE", 0.05)
    async with serving(tmp_path) as where:
        assert await ask(where, "GET /met") == ""


async def test_a_crowd_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "MOST_AT_ONCE", 1)
    async with serving(tmp_path) as where, await anyio.connect_tcp("127.0.0.1", where.port) as first:
        await first.send(b"GET /met")
        with pytest.raises(anyio.BrokenResourceError):
            assert await ask(where, get()) == ""
            raise anyio.BrokenResourceError
        await first.send(b"rics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await first.receive()).startswith(b"HTTP/1.1 200 ")


async def test_a_taken_port_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path / "one") as where:
        with pytest.raises(ExceptionGroup) as raised:
            async with serving(tmp_path / "two", str(where)):
                pass
        assert raised.group_contains(ListenError)

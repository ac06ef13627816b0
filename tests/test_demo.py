"""The demo: the whole system in one process, seen through every front door, and gone without a trace."""

import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute, UDPSocket

from tuunel.address import HostPort
from tuunel.demo import DOORS, Demo, System, page, site_sockets, visit, visit_every_door, what_to_open
from tuunel.events import Event, Notice, Ready


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the demo puts its state. Short: the path of a unix socket is limited."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


def nothing_there() -> System:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return System(HostPort("127.0.0.1", port), HostPort("home.tuunel", 80), Path("/nowhere"), "", "hello", lambda _: None)


@pytest.mark.anyio
async def test_every_front_door_shows_the_page_and_nothing_stays(folder: Path) -> None:
    visits = await visit_every_door()
    assert [seen.door for seen in visits] == ["socks5h", "socks4a", "http connect", "http", "socks5 udp", "nc"]
    assert [seen.saw for seen in visits if not seen.ok] == []
    assert list(folder.iterdir()) == []


@pytest.mark.anyio
async def test_a_port_that_another_program_has_for_tcp_is_not_the_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    create_udp_socket = anyio.create_udp_socket

    async def create_and_lose_the_race(*, local_host: str) -> UDPSocket:
        created = await create_udp_socket(local_host=local_host)
        if len(taken) < 2:
            taken.append(created.extra(SocketAttribute.local_port))
            with suppress(OSError):  # another program was faster, which will do as well
                others.enter_context(socket.create_server((local_host, taken[-1])))
        return created

    monkeypatch.setattr(anyio, "create_udp_socket", create_and_lose_the_race)
    with ExitStack() as others:
        listener, datagrams = await site_sockets()
        async with listener, datagrams:
            port = datagrams.extra(SocketAttribute.local_port)
            assert port == listener.extra(SocketAttribute.local_port)
            assert port not in taken
    assert len(taken) == 2


@pytest.mark.anyio
async def test_the_demo_runs_until_it_is_stopped_and_says_what_to_open(folder: Path) -> None:
    events: list[Event] = []
    told = anyio.Event()

    def emit(event: Event) -> None:
        events.append(event)
        if isinstance(event, Notice) and event.text.startswith("Ctrl-C"):
            told.set()

    demo = Demo(emit)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(demo.run)
            await told.wait()
            assert len(list(folder.iterdir())) == 1
            demo.stop()
    (ready,) = [event for event in events if isinstance(event, Ready)]
    assert ready.role == "demo"
    notices = " ".join(event.text for event in events if isinstance(event, Notice))
    assert f"socks5h://{ready.listen}" in notices
    assert list(folder.iterdir()) == []


@pytest.mark.anyio
@pytest.mark.parametrize("door", [door for door in DOORS if door != "nc"])
async def test_a_front_door_that_does_not_work_is_told(door: str) -> None:
    seen = await visit(nothing_there(), door, DOORS[door])
    assert not seen.ok
    assert seen.saw


@pytest.mark.anyio
async def test_another_page_is_not_taken_for_the_sample_site() -> None:
    async def fetch(system: System) -> bytes:
        return b"HTTP/1.1 200 OK\r\n\r\na captive portal"

    seen = await visit(nothing_there(), "http", fetch)
    assert not seen.ok
    assert seen.saw.endswith("not the sample page")


def test_the_page_shows_a_request_as_text() -> None:
    shown = page("hello", b"GET / HTTP/1.1\r\nHost: <script>\r\n\r\n")
    assert b"<script>" not in shown
    assert b"&lt;script&gt;" in shown


def test_every_line_that_says_what_to_open_names_the_site() -> None:
    lines = what_to_open(replace(nothing_there(), site=HostPort("home.tuunel", 8123)))
    assert all("8123" in line for line in lines[:-1])


def test_the_line_for_nc_works_without_tuunel_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    (line,) = (line for line in what_to_open(nothing_there()) if line.startswith("nc:"))
    assert f" {sys.executable} -m tuunel nc home " in line

"""What a supervisor such as systemd hears, over a real NOTIFY_SOCKET."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from tuunel.events import Notice, Ready, RelayStateChanged
from tuunel.supervisor import Supervisor

DEADLINE = 20


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A NOTIFY_SOCKET as systemd makes it, and its name in the environment."""
    if request.param == "abstract" and os.uname().sysname != "Linux":
        pytest.skip("abstract sockets are Linux's")
    name = str(tmp_path / "notify") if request.param == "path" else f"@tuunel-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0"))
        sock.settimeout(DEADLINE)
        yield name, sock


def heard(sock: socket.socket) -> list[str]:
    return sock.recv(4096).decode().split("\n")


def test_ready_and_the_relays_state_are_told(listener: tuple[str, socket.socket]) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": listener[0]})
    supervisor(Ready("proxy", "localhost:1080"))
    assert heard(listener[1]) == ["READY=1", "STATUS=ready on localhost:1080"]
    supervisor(Notice("nothing for a supervisor"))
    supervisor(RelayStateChanged("relay.example.net:7443", "offline", "no\nREADY=1"))
    assert heard(listener[1]) == ["STATUS=relay relay.example.net:7443 offline: noREADY=1"]  # a detail cannot forge a line
    for rtt in (0.01, 0.02):  # a new round-trip time is no news
        supervisor(RelayStateChanged("relay.example.net:7443", "online", rtt=rtt))
    supervisor.stopping(2.5)
    assert heard(listener[1]) == ["STATUS=relay relay.example.net:7443 online"]
    assert heard(listener[1]) == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=12500000"]


def test_a_reload_is_told_with_its_time(listener: tuple[str, socket.socket]) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": listener[0]})
    supervisor.reloading()
    first, second = heard(listener[1])
    assert (first, second.partition("=")[0]) == ("RELOADING=1", "MONOTONIC_USEC")
    supervisor.reloaded()
    assert heard(listener[1]) == ["READY=1"]


@pytest.mark.anyio
async def test_a_sign_of_life_comes_at_half_the_interval(listener: tuple[str, socket.socket]) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": listener[0], "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())})
    assert supervisor.interval == 0.01
    listener[1].settimeout(0)
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervisor.show_life)
            for _ in range(3):
                await anyio.wait_readable(listener[1])
                assert heard(listener[1]) == ["WATCHDOG=1"]
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "20000"},
        {"NOTIFY_SOCKET": "/nowhere"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"},
    ],
)
async def test_without_a_supervisor_nothing_happens(environ: dict[str, str]) -> None:
    supervisor = Supervisor(environ)
    supervisor(Ready("proxy"))
    supervisor.reloading()
    supervisor.reloaded()
    supervisor.stopping(1)
    await supervisor.show_life()  # ends at once: nobody wants a sign

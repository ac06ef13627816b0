"""A tunnel that is cut reaches the app as a reset, never as a clean end; and who aborts frees all three parties."""

import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journeys import doors
from tests.journeys.doors import TUNNEL_DOORS
from tests.journeys.peers import program
from tests.journeys.processes import Running, clean_environment, until
from tests.journeys.sockets import facing, inodes_of, stuck
from tests.journeys.targets import Target, hold, note_how_it_ends, pour, read_exactly, read_to_end, reset, serving, web_site
from tests.journeys.world import LOOPBACK, Trio

pytestmark = pytest.mark.real

FREE_WITHIN = 3.0
STUCK = 0.5  #: seconds in which a socket that bytes pass through is empty once

KILLS: dict[str, Callable[[Trio], None]] = {
    "agent": lambda trio: trio.agent.process.kill(),
    "relay": lambda trio: trio.relay.process.kill(),
    "proxy": lambda trio: trio.proxy.process.kill(),
}


def assert_ends_with_a_reset(sock: socket.socket) -> None:
    """Read on: the next thing that is no data must be a reset."""
    sock.settimeout(20)
    with pytest.raises(ConnectionResetError):
        read_to_end(sock)


@pytest.mark.parametrize("killed", KILLS)
def test_a_kill_in_mid_transfer_is_a_reset_for_every_app_and_target(own_trio: Trio, killed: str) -> None:
    with contextlib.ExitStack() as stack:
        source, sink = stack.enter_context(serving(pour)), stack.enter_context(serving(note_how_it_ends))
        apps = []
        for door in TUNNEL_DOORS.values():
            opened = stack.enter_context(door.open(own_trio.proxy.address, "home.tuunel", source.port))
            read_exactly(opened.sock, 1_000_000)
            apps.append(opened.sock)
        up = stack.enter_context(doors.socks5(own_trio.proxy.address, "home.tuunel", sink.port))
        up.sock.sendall(b"x" * 100_000)
        sink.accepted()
        KILLS[killed](own_trio)
        for app in apps:
            assert_ends_with_a_reset(app)
        assert_ends_with_a_reset(up.sock)
        assert sink.noted() == ["reset"]


@pytest.mark.parametrize("killed", KILLS)
def test_a_kill_of_an_idle_tunnel_is_a_reset_too(own_trio: Trio, killed: str) -> None:
    with serving(hold) as target, doors.socks5(own_trio.proxy.address, "home.tuunel", target.port) as opened:
        target.accepted()
        KILLS[killed](own_trio)
        assert_ends_with_a_reset(opened.sock)


@pytest.mark.parametrize("killed", KILLS)
def test_curl_does_not_take_half_a_file_for_a_whole_one(own_trio: Trio, killed: str, tmp_path: Path) -> None:
    curl = program("curl")
    with web_site({"/": ("application/octet-stream", os.urandom(300_000_000))}) as site:
        parts = {scheme: tmp_path / scheme for scheme in ("socks5h", "socks4a", "http")}
        url, proxy = f"http://home.tuunel:{site.port}/", f"{LOOPBACK}:{own_trio.proxy.port}"
        downloads = [
            Running([curl, "-sS", "--limit-rate", "20M", "-o", str(part), "--proxy", f"{scheme}://{proxy}", url], clean_environment())
            for scheme, part in parts.items()
        ]
        try:
            until(lambda: all(part.exists() and part.stat().st_size > 1_000_000 for part in parts.values()), "all downloads are under way")
            KILLS[killed](own_trio)
            assert {download.wait() for download in downloads} <= {18, 56}  # partial file, failure to receive
        finally:
            for download in downloads:
                download.stop()


@pytest.mark.parametrize("door", TUNNEL_DOORS)
def test_a_targets_reset_is_the_apps_reset(trio: Trio, door: str) -> None:
    with (
        serving(lambda sock, _target: reset(sock) if sock.recv(1) else None) as target,
        TUNNEL_DOORS[door].open(trio.proxy.address, "home.tuunel", target.port) as opened,
    ):
        opened.sock.sendall(b"x")
        assert_ends_with_a_reset(opened.sock)


@pytest.mark.parametrize("door", TUNNEL_DOORS)
def test_an_apps_reset_is_the_targets_reset(trio: Trio, door: str) -> None:
    with serving(note_how_it_ends) as target:
        opened = TUNNEL_DOORS[door].open(trio.proxy.address, "home.tuunel", target.port)
        target.accepted()
        reset(opened.sock)
        assert target.noted() == ["reset"]


def all_stuck(parties: dict[str, int]) -> dict[str, set[int]] | None:
    """The sockets in which bytes wait and go on waiting, by party; None until each of the parties has one.

    Bytes wait for a moment in others, too: in a standby that was just made, which lives on and is not what is looked for.
    """
    found = {who: stuck(pid) for who, pid in parties.items()}
    end = time.monotonic() + STUCK
    while all(found.values()) and time.monotonic() < end:
        time.sleep(0.05)
        found = {who: inodes & stuck(parties[who]) for who, inodes in found.items()}
    return found if all(found.values()) else None


def fill(sock: socket.socket) -> None:
    """Send until not one more byte goes in for half a second: every buffer on the way is full."""
    sock.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            sock.sendall(b"\x5a" * 65536)


@pytest.mark.parametrize("door", TUNNEL_DOORS)
def test_a_stalled_target_and_an_app_that_aborts_leave_all_three_parties_free(trio: Trio, door: str) -> None:
    parties = {"proxy": trio.proxy.process.pid, "relay": trio.relay.process.pid, "agent": trio.agent.process.pid}
    with serving(hold) as target:
        opened = TUNNEL_DOORS[door].open(trio.proxy.address, "home.tuunel", target.port)
        app_port = opened.sock.getsockname()[1]
        dialled_from = target.accepted()[0].getpeername()[1]
        fill(opened.sock)
        held = until(lambda: all_stuck(parties), "all is stuck")
        reset(opened.sock)

        def freed() -> bool:
            gone = not any(inodes & inodes_of(parties[who]) for who, inodes in held.items())
            return gone and not facing(app_port, local=trio.proxy.port) and not facing(target.port, local=dialled_from)

        until(freed, f"all three parties have let go of {held}", FREE_WITHIN)


def test_a_stalled_app_and_a_target_that_aborts_leave_all_three_parties_free(trio: Trio) -> None:
    parties = {"proxy": trio.proxy.process.pid, "relay": trio.relay.process.pid, "agent": trio.agent.process.pid}

    def fill_and_tell(sock: socket.socket, target: Target) -> None:
        fill(sock)
        target.note("full")

    with serving(fill_and_tell) as target, doors.socks5(trio.proxy.address, "home.tuunel", target.port) as opened:
        target.noted()
        held = until(lambda: all_stuck(parties), "all is stuck")
        reset(target.connections[0])
        until(lambda: not any(inodes & inodes_of(parties[who]) for who, inodes in held.items()), "all have let go", FREE_WITHIN)
        assert_ends_with_a_reset(opened.sock)


def test_a_reader_that_pauses_loses_nothing(trio: Trio) -> None:
    """Back-pressure reaches the target: while the app does not read, the target cannot send on, and nothing is dropped."""
    wanted = os.urandom(30_000_000)

    def send_all(sock: socket.socket, target: object) -> None:
        sock.sendall(wanted)
        sock.shutdown(socket.SHUT_WR)

    with serving(send_all) as target, doors.socks5(trio.proxy.address, "home.tuunel", target.port) as opened:
        until(lambda: stuck(trio.proxy.process.pid), "the transfer is stuck at the app")
        assert read_to_end(opened.sock) == wanted

"""Success means that the target has accepted: it is never answered earlier, and says nothing else."""

import contextlib
import time

import pytest

from tests.journeys import doors
from tests.journeys.doors import TUNNEL_DOORS
from tests.journeys.processes import until
from tests.journeys.sockets import facing
from tests.journeys.targets import full_backlog, hold, read_exactly, serving
from tests.journeys.world import Trio

pytestmark = pytest.mark.real


@pytest.mark.parametrize("door", TUNNEL_DOORS)
def test_success_is_never_answered_before_the_far_dial_has_succeeded(trio: Trio, door: str) -> None:
    """The target's kernel drops the dial's SYNs until the test makes room: no answer may be earlier than that."""
    with full_backlog() as (port, drain), contextlib.closing(doors.connect(trio.proxy.address)) as sock:
        entry = TUNNEL_DOORS[door]
        if door == "socks5":
            sock.sendall(b"\x05\x01\x00")
            assert read_exactly(sock, 2) == b"\x05\x00"
            sock.sendall(doors.socks5_request("home.tuunel", port))
        else:
            sock.sendall(entry.request("home.tuunel", port))
        sock.settimeout(1.5)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(doors.PATIENCE)
        drained = time.monotonic()
        drain()
        answer = doors.read_socks5_reply(sock) if door == "socks5" else entry.read_success(sock)
        assert answer.code == entry.success
        assert time.monotonic() >= drained


@pytest.mark.parametrize("door", TUNNEL_DOORS)
def test_success_says_nothing_but_success(trio: Trio, door: str) -> None:
    """A target that stays silent: behind the answer, not one byte follows until the target speaks."""
    with serving(hold) as target, TUNNEL_DOORS[door].open(trio.proxy.address, "home.tuunel", target.port) as opened:
        assert opened.answer.code == TUNNEL_DOORS[door].success
        target.accepted()[0].sendall(b"now")
        assert read_exactly(opened.sock, 3) == b"now"


def test_an_app_that_gives_up_while_the_target_is_dialled_leaves_nothing_behind(trio: Trio) -> None:
    with full_backlog() as (port, _):
        fillers = facing(port)
        sock = doors.connect(trio.proxy.address)
        sock.sendall(b"\x05\x01\x00")
        assert read_exactly(sock, 2) == b"\x05\x00"
        sock.sendall(doors.socks5_request("home.tuunel", port))
        mine = sock.getsockname()[1]
        until(lambda: facing(port) > fillers, "the agent dials")
        sock.close()
        until(lambda: facing(port) <= fillers and not facing(mine, local=trio.proxy.port), "dial and front door are given up", 8)

"""Half-close through every front door: an end in one direction is no end of the other."""

import os
import socket

import pytest

from tests.journeys.doors import TUNNEL_DOORS
from tests.journeys.targets import answer_after_end, end_then_listen, note_how_it_ends, read_exactly, read_to_end, serving
from tests.journeys.world import Trio

pytestmark = pytest.mark.real

MEBIBYTE = os.urandom(1 << 20)


@pytest.mark.parametrize("door", TUNNEL_DOORS)
def test_the_app_ends_and_a_mebibyte_still_comes(trio: Trio, door: str) -> None:
    with serving(answer_after_end(MEBIBYTE)) as target, TUNNEL_DOORS[door].open(trio.proxy.address, "home.tuunel", target.port) as opened:
        opened.sock.sendall(b"question")
        opened.sock.shutdown(socket.SHUT_WR)
        assert read_to_end(opened.sock) == MEBIBYTE
        assert target.noted() == [b"question"]


@pytest.mark.parametrize("door", TUNNEL_DOORS)
def test_the_target_ends_and_a_mebibyte_still_goes(trio: Trio, door: str) -> None:
    with serving(end_then_listen(b"greeting")) as target, TUNNEL_DOORS[door].open(trio.proxy.address, "home.tuunel", target.port) as opened:
        assert read_to_end(opened.sock) == b"greeting"
        opened.sock.sendall(MEBIBYTE)
        opened.sock.shutdown(socket.SHUT_WR)
        assert target.noted() == [MEBIBYTE]


@pytest.mark.parametrize("door", TUNNEL_DOORS)
def test_an_app_that_says_nothing_and_ends_is_heard(trio: Trio, door: str) -> None:
    with serving(note_how_it_ends) as target, TUNNEL_DOORS[door].open(trio.proxy.address, "home.tuunel", target.port) as opened:
        opened.sock.shutdown(socket.SHUT_WR)
        assert target.noted() == ["end"]


@pytest.mark.parametrize("door", TUNNEL_DOORS)
def test_an_end_right_behind_the_request_with_early_data_is_heard(trio: Trio, door: str) -> None:
    entry = TUNNEL_DOORS[door]
    with serving(answer_after_end(MEBIBYTE)) as target, socket.create_connection(trio.proxy.address, timeout=40) as sock:
        sock.sendall(entry.request("home.tuunel", target.port) + b"early")
        sock.shutdown(socket.SHUT_WR)
        assert entry.read_success(sock).code == entry.success
        assert read_to_end(sock) == MEBIBYTE
        assert target.noted() == [b"early"]


@pytest.mark.parametrize("door", TUNNEL_DOORS)
def test_a_direct_connection_keeps_half_close_too(trio: Trio, door: str) -> None:
    with serving(answer_after_end(MEBIBYTE)) as target, TUNNEL_DOORS[door].open(trio.proxy.address, "127.0.0.1", target.port) as opened:
        opened.sock.sendall(b"question")
        opened.sock.shutdown(socket.SHUT_WR)
        assert read_exactly(opened.sock, len(MEBIBYTE)) == MEBIBYTE
        assert opened.sock.recv(1) == b""

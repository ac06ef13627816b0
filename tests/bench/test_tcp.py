"""The app and the service of the TCP workloads, as real processes without a system between them."""

import socket
import threading
from collections.abc import Iterator

import pytest

from bench.apps import stream
from bench.apps.tcp_bulk import receive_for, send_for
from bench.apps.tcp_opener import open_many
from bench.apps.tcp_socket import Refused, connect, reach, receive_exactly
from bench.door import Door, read_door
from bench.place import LOOPBACK
from bench.process import Process, python
from bench.systems.raw import Raw
from bench.systems.system import Transport
from bench.workloads.bulk import APP, Bulk, move
from bench.workloads.connected import connected
from bench.workloads.connections import Connections
from bench.workloads.idle import Idle
from bench.workloads.pingpong import PingPong


@pytest.fixture
def door() -> Iterator[Door]:
    with Process(python("bench.apps.tcp_service", LOOPBACK)) as service:
        yield Door(LOOPBACK, int(service.line()))


@pytest.mark.parametrize("door", [Door("127.0.0.1", 1080), Door("::1", 1080, ("home.tuunel", 80))])
def test_a_door_survives_the_command_line(door: Door) -> None:
    assert read_door(door.arguments()) == door


def test_the_service_echoes_until_the_app_ends(door: Door) -> None:
    with connect(door) as app:
        app.sendall(stream.order(stream.ECHO) + b"one")
        assert receive_exactly(app, 3) == b"one"
        app.sendall(b"two")
        assert receive_exactly(app, 3) == b"two"
        app.shutdown(socket.SHUT_WR)
        assert app.recv(1) == b""


def test_the_service_answers_with_as_much_as_was_asked_for_and_ends(door: Door) -> None:
    with connect(door) as app:
        head = stream.order(stream.ANSWER, 1024)
        app.sendall(head[:3])
        app.sendall(head[3:])
        assert receive_exactly(app, 1024) == bytes(1024)
        with pytest.raises(Refused, match="ended after 0 of 1"):
            receive_exactly(app, 1)


def test_a_sink_counts_every_byte_up_to_the_mark(door: Door) -> None:
    block, last = stream.blocks()
    with connect(door) as app:
        app.sendall(stream.order(stream.SINK))
        app.sendall(block[:1])
        app.sendall(block[1:])
        app.sendall(last)
        assert stream.COUNT.unpack(receive_exactly(app, stream.COUNT.size)) == (2 * stream.BLOCK,)


def test_every_stream_of_several_is_counted(door: Door) -> None:
    with connect(door) as one, connect(door) as two:
        assert send_for([one, two], 0.0) == 4 * stream.BLOCK
    with connect(door) as one, connect(door) as two:
        assert receive_for([one, two], 0.05) > 0


@pytest.mark.parametrize("direction", ["up", "down"])
def test_what_was_moved_is_told(direction: str) -> None:
    with connected(Raw(), Transport.TCP, APP) as running:
        size, seconds = move(running.app, 2, direction, 0.1)
    assert size > stream.BLOCK
    assert seconds >= 0.1


def test_bulk_and_pingpong_are_measured_with_the_cpu_of_both_ends() -> None:
    made = Bulk(1).measure(Raw(), quick=True)
    assert made.figures["up_gbit"] > 0
    assert made.figures["down_gbit"] > 0
    assert set(made.cpu) == {"app", "service"}
    assert all(seconds > 0 for seconds in made.cpu.values())
    ping = PingPong().measure(Raw(), quick=True)
    assert 0 < ping.figures["p50_us"] <= ping.figures["p99_us"]


def _socks_server(listener: socket.socket, reply: bytes, heard: list[bytes]) -> None:
    with listener, listener.accept()[0] as app:
        heard.append(receive_exactly(app, 3))
        app.sendall(b"\5\0")
        heard.append(receive_exactly(app, 4 + 1 + 11 + 2))
        app.sendall(reply)


@pytest.mark.parametrize("bound", [b"\1\0\0\0\0\0\0", b"\3\4home\0\0", b"\4" + bytes(18)], ids=["IPv4", "name", "IPv6"])
def test_an_app_asks_a_socks_server(bound: bytes) -> None:
    listener = socket.create_server((LOOPBACK, 0))
    heard: list[bytes] = []
    server = threading.Thread(target=_socks_server, args=(listener, b"\5\0\0" + bound + b"payload", heard))
    server.start()
    with connect(Door(LOOPBACK, listener.getsockname()[1], ("home.tuunel", 0x1234))) as app:
        assert receive_exactly(app, 7) == b"payload"
    server.join()
    assert heard == [b"\5\1\0", b"\5\1\0\3\x0bhome.tuunel\x12\x34"]


def test_a_refusal_of_a_socks_server_is_told() -> None:
    listener = socket.create_server((LOOPBACK, 0))
    server = threading.Thread(target=_socks_server, args=(listener, b"\5\4\0\1" + bytes(6), []))
    server.start()
    with pytest.raises(Refused, match="reply 4"):
        connect(Door(LOOPBACK, listener.getsockname()[1], ("home.tuunel", 1)))
    server.join()


def test_an_app_that_reaches_nothing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.apps.tcp_socket._REACH_SECONDS", 0.05)
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(SystemExit, match=rf"no echo through 127.0.0.1:{port} within 0.05 s: .*refused"):
        reach(Door(LOOPBACK, port))


def test_new_connections_are_opened_one_by_one_and_at_once() -> None:
    made = Connections().measure(Raw(), quick=True)
    assert made.figures["sequential"]
    assert made.figures["at_once"]
    assert made.figures["burst_ms"]


def test_only_so_many_connections_are_opened_as_were_asked_for(door: Door) -> None:
    assert open_many(door, {"at_once": 7, "count": 40, "size": 1024})["count"] == 40


def test_an_opener_tells_what_stopped_it() -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        open_many(Door(LOOPBACK, port), {"at_once": 3, "seconds": 5, "size": 1})


def test_idle_connections_stay_open_beside_bulk() -> None:
    made = Idle(count=20).measure(Raw(), quick=True)
    assert made.figures["up_gbit"]
    assert made.figures["relay_kb"] is None

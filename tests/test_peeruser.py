"""Who is at the other end of a local connection: told for every user and every kind of socket, and never guessed."""

import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuunel import peeruser
from tuunel.address import HostPort
from tuunel.peeruser import _Owner, peer_user
from tuunel.rawstream import RawStream

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")

NOBODY = 65534
OWN = os.getuid()
#: Becomes another user, then connects from argv[2]:argv[3] to argv[4]:argv[5], says so, and stays until its stdin ends.
CLIENT = """
import os, socket, sys
user, source, port, host, to = sys.argv[1:]
os.setgid(int(user)); os.setuid(int(user))  # from here on, hardly anything of Python can be imported
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
sock.bind((source, int(port)))
sock.connect((host, int(to)))
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""
second_user = pytest.mark.skipif(OWN != 0, reason="only root can become another user")


@pytest.fixture(params=["sock_diag", "proc"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to know; each must do alone."""

    def refuse(*_: object) -> None:
        raise OSError("not this way")

    monkeypatch.setattr(peeruser, "_read_tables" if request.param == "sock_diag" else "_ask_kernel", refuse)
    return str(request.param)


@contextlib.contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, dualstack_ipv6=host == "::") as sock:
        yield sock


@contextlib.contextmanager
def connected(host: str = "127.0.0.1", to: str = "") -> Iterator[tuple[socket.socket, RawStream]]:
    """A client of this very user, and the accepted stream."""
    with listening(host) as listener:
        client = socket.create_connection((to or host, listener.getsockname()[1]))
        stream = RawStream(listener.accept()[0])
        try:
            yield client, stream
        finally:
            client.close()
            stream.close()


def alone(listener: socket.socket) -> socket.socket:
    """A client whose port nobody else has. One that `connect` chooses may be another connection's, too, also for a minute after its end."""
    client = socket.socket()
    client.bind(("127.0.0.1", 0))
    client.connect(listener.getsockname())
    return client


@contextlib.contextmanager
def other_user(listener: socket.socket, *, source: str = "127.0.0.1", port: int = 0, host: str = "127.0.0.1") -> Iterator[RawStream]:
    """A client of another user, a process of its own, and the accepted stream."""
    arguments = [str(NOBODY), source, str(port), host, str(listener.getsockname()[1])]
    process = subprocess.Popen([sys.executable, "-c", CLIENT, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    listener.settimeout(10)
    stream = RawStream(listener.accept()[0])
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield stream
    finally:
        stream.close()
        process.communicate(timeout=30)


@pytest.mark.parametrize(
    ("host", "to"),
    [("127.0.0.1", ""), ("::1", ""), ("::", "127.0.0.1"), ("::", "::1"), ("127.0.0.1", "::ffff:127.0.0.1"), ("::", "::ffff:127.0.0.1")],
)
def test_a_client_of_this_user_is_told(host: str, to: str) -> None:
    with connected(host, to) as (_, stream):
        assert peer_user(stream) == OWN


@second_user
@pytest.mark.parametrize(
    ("listen", "host"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1"), ("127.0.0.1", "::ffff:127.0.0.1")]
)
def test_a_client_of_another_user_is_told(listen: str, host: str) -> None:
    source = "::1" if host == "::1" else "::" if ":" in host else "127.0.0.1"
    with listening(listen) as listener, other_user(listener, source=source, host=host) as stream:
        assert peer_user(stream) == NOBODY


@second_user
def test_connections_that_differ_in_one_address_only_are_kept_apart() -> None:
    with listening() as listener, socket.socket() as client:
        client.bind(("127.0.0.1", 0))  # first: a port that is free at 127.0.0.2 may be somebody's here
        with other_user(listener, source="127.0.0.2", port=client.getsockname()[1]) as theirs:
            client.connect(listener.getsockname())
            ours = RawStream(listener.accept()[0])
            assert ours.peer.port == theirs.peer.port
            assert (peer_user(ours), peer_user(theirs)) == (OWN, NOBODY)
            ours.close()


@second_user
def test_connections_to_two_listeners_from_one_port_are_kept_apart() -> None:
    with listening() as one, listening() as two, other_user(one) as theirs:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.closing(client):
            client.connect(two.getsockname())
            ours = RawStream(two.accept()[0])
            assert (peer_user(ours), peer_user(theirs)) == (OWN, NOBODY)
            ours.close()


@second_user
def test_a_client_that_has_gone_is_nobody_and_above_all_not_root() -> None:
    """Of a socket that no process holds any more the kernel says user 0: sending and leaving must not make anybody root."""
    with listening() as listener, other_user(listener) as stream:
        pass
    with listening() as listener:
        arguments = [str(NOBODY), "127.0.0.1", "0", "127.0.0.1", str(listener.getsockname()[1])]
        run = subprocess.run([sys.executable, "-c", CLIENT, *arguments], input=b"", capture_output=True, timeout=30, check=True)
        stream = RawStream(listener.accept()[0])
        assert stream.peer.port == int(run.stdout)
        assert peer_user(stream) is None
        stream.close()


def test_a_client_that_has_ended_its_side_only_is_told() -> None:
    with connected() as (client, stream):
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert peer_user(stream) == OWN


def test_a_lost_connection_is_nobodys() -> None:
    with connected() as (client, stream):
        client.sendall(b"question")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert peer_user(stream) is None
    with connected() as (_, stream):
        stream.close()
        assert peer_user(stream) is None


def test_who_takes_the_ports_of_a_lost_connection_is_not_taken_for_it() -> None:
    with listening() as listener:
        client = alone(listener)
        stream = RawStream(listener.accept()[0])
        source = client.getsockname()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with socket.create_connection(listener.getsockname(), source_address=source):
            again = RawStream(listener.accept()[0])
            assert peer_user(again) == OWN
            assert peer_user(stream) is None
            again.close()
        stream.close()


def test_a_connection_lost_while_the_kernel_is_asked_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else may have taken its addresses and ports just before the kernel looked."""
    find = peeruser._find
    with listening() as listener, contextlib.ExitStack() as closing:
        client = alone(listener)
        stream = RawStream(listener.accept()[0])

        def take_over_and_find(asked: RawStream, far: HostPort, near: HostPort) -> object:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            closing.enter_context(socket.create_connection(listener.getsockname(), source_address=(far.host, far.port)))
            again = RawStream(listener.accept()[0])
            found = find(again, far, near)
            again.close()
            assert found is not None
            assert found.holds_it
            return found

        monkeypatch.setattr(peeruser, "_find", take_over_and_find)
        assert peer_user(stream) is None
        stream.close()


@pytest.mark.parametrize("state", range(16))
def test_only_a_socket_that_is_connected_counts(state: int) -> None:
    """1 ESTABLISHED, 4 and 5 FIN_WAIT, 8 CLOSE_WAIT, 9 LAST_ACK, 11 CLOSING; 2 still tries, 6 is over, 10 listens."""
    assert _Owner(state, 0, 77).holds_it == (state in {1, 4, 5, 8, 9, 11})
    assert not _Owner(state, 0, 0).holds_it


def test_a_listener_on_the_clients_port_is_not_taken_for_it() -> None:
    with listening() as listener:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("127.0.0.1", 0))
        client.connect(listener.getsockname())
        stream = RawStream(listener.accept()[0])
        port = client.getsockname()[1]
        client.close()
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", port))
            assert peer_user(stream) is None
        stream.close()


def test_a_unix_socket_is_not_asked_about() -> None:
    one, two = socket.socketpair()
    with two:
        stream = RawStream(one)
        assert peer_user(stream) is None
        stream.close()


def test_where_nothing_tells_nobody_is_guessed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with connected() as (_, stream):
        assert peer_user(stream) == OWN
        monkeypatch.setattr(peeruser, "_ask_kernel", lambda *_: None)
        for content in (None, b"", b"\xff\xfe", b"head\nshort row\n", b"head\n" + b"x " * 20 + b"\n"):
            table = tmp_path / "tcp"
            table.unlink(missing_ok=True)
            if content is not None:
                table.write_bytes(content)
            monkeypatch.setattr(peeruser, "TABLES", (table,))
            assert peer_user(stream) is None
        monkeypatch.setattr(peeruser.sys, "platform", "other")
        assert peer_user(stream) is None


def test_a_user_whom_the_namespace_does_not_know_is_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everybody outside a user namespace has the same number inside: it stands for no one."""
    inside, outside, overflow = tmp_path / "inside", tmp_path / "outside", tmp_path / "overflowuid"
    inside.write_text("         0       1000          1\n")
    outside.write_text("         0          0 4294967295\n")
    overflow.write_text(f"{OWN}\n")
    monkeypatch.setattr(peeruser, "OVERFLOW_USER", overflow)
    with connected() as (_, stream):
        monkeypatch.setattr(peeruser, "USER_MAP", inside)
        assert peer_user(stream) is None
        monkeypatch.setattr(peeruser, "USER_MAP", outside)
        assert peer_user(stream) == OWN


@pytest.fixture
def only_tables(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way the other tests of this run go."""
    assert way
    monkeypatch.undo()
    monkeypatch.setattr(peeruser, "_ask_kernel", lambda *_: None)


@pytest.mark.usefixtures("only_tables")
def test_no_more_than_a_bounded_part_of_a_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected() as (_, stream):
        monkeypatch.setattr(peeruser, "MAX_TABLE", 10)
        assert peer_user(stream) is None


@pytest.mark.usefixtures("only_tables")
def test_a_machine_without_ipv6_has_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected() as (_, stream):
        monkeypatch.setattr(peeruser, "TABLES", (peeruser.TABLES[0], Path("/nonexistent")))
        assert peer_user(stream) == OWN


@pytest.mark.usefixtures("only_tables")
def test_the_kernel_without_its_diagnostic_interface_is_noticed() -> None:
    """It then answers every question with: no such socket."""
    with connected() as (_, stream):
        assert peer_user(stream) == OWN

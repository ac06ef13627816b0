"""`tuunel nc` against a proxy that is a script: bytes, ends, cuts, and streams that are closed when it starts."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tuunel import netcat
from tuunel.__main__ import main
from tuunel.address import HostPort
from tuunel.errors import ANSWERS, Failure, Reason, Speaker, UsageError
from tuunel.forwarding import Destination
from tuunel.netcat import needs_tunnel, parse_arguments
from tuunel.netcat_alone import parse_destination
from tuunel.proxystatus import CONNECTION_HEADER

Serve = Callable[[socket.socket], None]
DEADLINE = 20
ACCEPTED = f"HTTP/1.1 200 Connection established\r\n{CONNECTION_HEADER}: 17\r\n\r\n".encode()
CUT = ANSWERS[Reason.TUNNEL_LOST].exit
EVERY_BYTE = bytes(range(256)) * 5000


class FakeProxy:
    """Serves `run/proxy.sock` of a home: CONNECT goes to `serve`, `outcome` is answered with `outcome` (None: not at all)."""

    def __init__(self, home: Path, serve: Serve) -> None:
        self.serve = serve
        self.outcome: str | None = "done"
        self.reads = True
        self.asked: list[dict[str, object]] = []
        self.heads: list[bytes] = []
        self.sent_at_once: list[bytes] = []  #: the heads, and what came with them
        self._listener = socket.socket(socket.AF_UNIX)
        (home / "run").mkdir(parents=True)
        self._listener.bind(str(home / "run" / "proxy.sock"))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client, suppress(OSError):
                    self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(DEADLINE)
        first = client.recv(65536, socket.MSG_PEEK)
        if not first or not self.reads:
            return
        if first.startswith(b"{"):
            self.asked.append(json.loads(client.recv(65536)))
            if self.outcome is not None:
                client.sendall(json.dumps({"ok": True, "reason": self.outcome}).encode() + b"\n")
        else:
            self.sent_at_once.append(first)
            self.heads.append(client.recv(first.index(b"\r\n\r\n") + 4))
            self.serve(client)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE)


looks_ahead = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is said before it is connected")


@contextmanager
def proxy(serve: Serve) -> Iterator[tuple[Path, FakeProxy]]:
    with tempfile.TemporaryDirectory(prefix="tuu", dir="/tmp") as path:
        fake = FakeProxy(Path(path), serve)
        try:
            yield Path(path), fake
        finally:
            fake.close()


def command(home: Path, shell: str = "") -> tuple[list[str], dict[str, str]]:
    nc = [sys.executable, "-m", "tuunel", "nc", "home", "22"]
    argv = ["sh", "-c", f'exec "$@" {shell}', "sh", *nc] if shell else nc
    return argv, {**os.environ, "TUUNEL_HOME": str(home)}


def run(home: Path, data: bytes = b"", shell: str = "") -> "subprocess.CompletedProcess[bytes]":
    argv, env = command(home, shell)
    return subprocess.run(argv, env=env, input=data, capture_output=True, timeout=DEADLINE, check=False)


def run_from_pipe(home: Path, data: bytes) -> "subprocess.CompletedProcess[bytes]":
    """`run` with all of the data, which the pipe must hold, and its end there when it starts."""
    argv, env = command(home)
    reading, writing = os.pipe()
    try:
        os.write(writing, data)
        os.close(writing)
        return subprocess.run(argv, env=env, stdin=reading, capture_output=True, timeout=DEADLINE, check=False)
    finally:
        os.close(reading)


def read_to_end(client: socket.socket) -> bytes:
    data = bytearray()
    while part := client.recv(65536):
        data += part
    return bytes(data)


def echo_after_end(client: socket.socket) -> None:
    client.sendall(ACCEPTED)
    client.sendall(read_to_end(client))


def test_every_byte_goes_both_ways_and_the_proxy_is_asked_how_it_ended() -> None:
    with proxy(echo_after_end) as (home, fake):
        done = run(home, EVERY_BYTE)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == EVERY_BYTE
        assert fake.asked == [{"command": "outcome", "connection": 17}]
        assert fake.heads[0].startswith(b"CONNECT home.tuunel:22 HTTP/1.1\r\n")


@looks_ahead
def test_what_is_there_at_the_start_goes_with_the_request() -> None:
    """Such as the words with which ssh begins: they would come a round trip later."""
    with proxy(echo_after_end) as (home, fake):
        done = run_from_pipe(home, b"SSH-2.0-x\r\n")
        assert (done.returncode, done.stdout) == (0, b"SSH-2.0-x\r\n")
        assert fake.sent_at_once == [fake.heads[0] + b"SSH-2.0-x\r\n"]


@looks_ahead
def test_but_no_more_of_it_than_the_proxy_reads_whole_or_not_at_all() -> None:
    with proxy(echo_after_end) as (home, fake):
        done = run_from_pipe(home, EVERY_BYTE[:50_000])
        assert (done.returncode, done.stdout) == (0, EVERY_BYTE[:50_000])
        assert fake.sent_at_once == [fake.heads[0] + EVERY_BYTE[:4096]]


@looks_ahead
@pytest.mark.parametrize("mode", [0, getattr(os, "O_DIRECT", 0)], ids=["bytes", "packets"])
def test_a_pipe_is_left_as_it_was_where_nothing_was_connected(mode: int) -> None:
    """So what stands behind `||` can have it."""

    def refuse(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")

    with proxy(refuse) as (home, fake):
        reading, writing = os.pipe2(mode)
        os.write(writing, b"one")
        os.write(writing, b"two" * 1000)
        os.close(writing)
        argv, env = command(home)
        argv = ["sh", "-c", '"$@" || exec cat', "sh", *argv]
        done = subprocess.run(argv, env=env, stdin=reading, capture_output=True, timeout=DEADLINE, check=False)
        os.close(reading)
        assert done.stdout == b"one" + b"two" * 1000
        assert fake.sent_at_once[0].startswith(fake.heads[0] + b"one")


@pytest.mark.parametrize("size", [3, 4096, 4097])
def test_a_file_or_socket_is_not_read_before_its_bytes_can_be_sent(size: int) -> None:
    data = EVERY_BYTE[:size]
    ours, theirs = socket.socketpair()
    with proxy(echo_after_end) as (home, fake), tempfile.TemporaryFile() as file, ours, theirs:
        file.write(data)
        file.seek(0)
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        argv, env = command(home)
        for stdin in (file, theirs):
            done = subprocess.run(argv, env=env, stdin=stdin, capture_output=True, timeout=DEADLINE, check=False)
            assert (done.returncode, done.stdout) == (0, data)
        assert fake.sent_at_once == fake.heads


def test_bytes_that_come_with_the_answer_are_not_lost() -> None:
    def serve(client: socket.socket) -> None:
        client.sendall(ACCEPTED + b"SSH-2.0-banner\r\n")
        read_to_end(client)

    with proxy(serve) as (home, _):
        assert run(home).stdout == b"SSH-2.0-banner\r\n"


def test_the_targets_end_is_passed_on_at_once() -> None:
    heard: list[bytes] = []

    def serve(client: socket.socket) -> None:
        client.sendall(ACCEPTED + b"goodbye")
        client.shutdown(socket.SHUT_WR)
        heard.append(read_to_end(client))

    with proxy(serve) as (home, _):
        argv, env = command(home)
        with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as nc:
            assert nc.stdout
            assert nc.stdout.read() == b"goodbye"  # to its end, while standard input is still open
            nc.communicate(b"and more", timeout=DEADLINE)
        assert (nc.returncode, heard) == (0, [b"and more"])


@pytest.mark.parametrize("outcome", ["reset", "TUNNEL_LOST", None], ids=str)
def test_what_looks_like_an_end_may_be_a_cut(outcome: str | None) -> None:
    """Also when the proxy ends before it has said so: the bytes must not be carried a second time."""
    with proxy(echo_after_end) as (home, fake):
        fake.outcome = outcome
        done = run(home, b"data")
        assert (done.returncode, done.stdout) == (CUT, b"data")
        assert b"TUNNEL_LOST" in done.stderr or b"cut" in done.stderr or b"ended before" in done.stderr
        assert len(fake.heads) == 1


def test_a_connection_that_is_closed_whole_while_input_is_open_is_a_cut() -> None:
    with proxy(lambda client: client.sendall(ACCEPTED + b"half a sen")) as (home, _):
        argv, env = command(home)
        with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as nc:
            assert nc.stdout
            assert nc.stdout.read() == b"half a sen"
            assert nc.wait(DEADLINE) == CUT


def test_a_failure_is_told_with_its_own_exit_code() -> None:
    def serve(client: socket.socket) -> None:
        client.sendall(
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n"
            b'Proxy-Status: tuunel; error=connection_refused; details="agent CONNECTION_REFUSED: no"\r\n\r\n'
        )

    with proxy(serve) as (home, _):
        done = run(home)
        assert (done.returncode, done.stdout) == (ANSWERS[Reason.CONNECTION_REFUSED].exit, b"")
        assert b"agent" in done.stderr


def test_a_proxy_that_ends_before_it_answers_is_as_good_as_none() -> None:
    with proxy(lambda _: None) as (home, _):
        assert run(home).returncode == ANSWERS[Reason.UNKNOWN_NAME].exit  # said by itself: this home knows no device


@looks_ahead
def test_but_words_that_it_has_read_may_have_arrived_and_are_not_said_again() -> None:
    with proxy(lambda client: client.recv(100)) as (home, _):
        assert run_from_pipe(home, b"words").returncode == CUT


@looks_ahead
def test_and_words_that_it_has_not_read_are() -> None:
    with proxy(lambda _: None) as (home, fake):
        fake.reads = False
        assert run_from_pipe(home, b"words").returncode == ANSWERS[Reason.UNKNOWN_NAME].exit


def test_half_an_answer_is_a_lost_tunnel() -> None:
    with proxy(lambda client: client.sendall(ACCEPTED[:-2])) as (home, _):
        assert run(home).returncode == CUT


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_at_the_start_never_meet_the_connection(closed: str) -> None:
    heard: list[bytes] = []

    def serve(client: socket.socket) -> None:
        client.sendall(ACCEPTED + b"secret of the target")
        heard.append(read_to_end(client))

    with proxy(serve) as (home, _):
        done = run(home, b"" if "<&-" in closed else b"input", closed)
        assert done.returncode == 0
        assert done.stdout == (b"" if ">&- " in closed + " " and not closed.startswith("2") else b"secret of the target")
        assert heard == [b"" if "<&-" in closed else b"input"]


def test_a_reader_that_leaves_ends_it_without_a_word() -> None:
    def serve(client: socket.socket) -> None:
        client.sendall(ACCEPTED)
        while True:
            client.sendall(bytes(65536))

    with proxy(serve) as (home, _):
        argv, env = command(home)
        with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as nc:
            assert nc.stdout
            assert nc.stderr
            nc.stdout.read(1000)
            nc.stdout.close()
            assert nc.wait(DEADLINE) == -signal.SIGPIPE
            assert nc.stderr.read() == b""


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        (["home", "22"], HostPort("home.tuunel", 22)),
        (["home:22"], HostPort("home.tuunel", 22)),
        (["home.tuunel.", "22"], HostPort("home.tuunel.", 22)),
        (["10.0.0.1.home.tuunel:80"], HostPort("10.0.0.1.home.tuunel", 80)),
        (["Home", "22"], HostPort("Home.tuunel", 22)),
        (["unix", "22"], HostPort("unix.tuunel", 22)),
        (["unix:22"], HostPort("unix.tuunel", 22)),
    ],
)
def test_what_can_be_meant(arguments: list[str], target: HostPort) -> None:
    parsed = parse_arguments(arguments)
    assert (parsed.host.lower(), parsed.port) == (target.host.lower(), target.port)
    assert not needs_tunnel(arguments)


@pytest.mark.parametrize("arguments", [["-u", "home", "53"], ["home", "53", "-u"], ["home:53", "-u"], ["home.tuunel", "-u", "53"]])
def test_udp(arguments: list[str]) -> None:
    assert needs_tunnel(arguments)
    assert parse_destination(arguments) == Destination("home.tuunel", 53, udp=True)


@pytest.mark.parametrize(
    "arguments", [["home", "unix:/run/x"], ["home:unix:/run/x"], ["home.tuunel:unix:/run/x"], ["HOME.tuunel.", "unix:/run/x"]]
)
def test_unix_sockets(arguments: list[str]) -> None:
    assert needs_tunnel(arguments)
    assert parse_destination(arguments) == Destination("home.tuunel", 0, "/run/x")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a", "b", "c"],
        ["home"],
        ["home", "x"],
        ["home", "-1"],
        ["example.org", "80"],
        ["127.0.0.1", "80"],
        ["::1", "80"],
        ["-u"],
        ["-u", "home"],
        ["-u", "home", "0"],
        ["-x", "home", "80"],
        ["-u", "home", "unix:/x"],
        ["home", "unix:x"],
        ["home", "unix:"],
        ["lan.home.tuunel", "unix:/x"],
        ["example.org", "unix:/x"],
        ["home", "80", "unix:/x"],
        ["unix:/x"],
        ["unix:/x", "home"],
        ["home", "xunix:/x"],
    ],
)
def test_what_cannot(arguments: list[str]) -> None:
    with pytest.raises((UsageError, Failure)):
        parse_arguments(arguments)
    with pytest.raises((UsageError, Failure)):
        parse_destination(arguments)


def test_what_a_relay_or_agent_says_cannot_touch_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(host: str, port: int) -> int:
        raise Failure(Reason.CONNECTION_REFUSED, Speaker.AGENT, "\x1b]0;owned\x07\x1b[2J\r\ntuunel nc: all is well\u202e")

    monkeypatch.setattr(netcat, "run", fail)
    monkeypatch.setattr(sys, "argv", ["tuunel", "nc", "home.tuunel", "22"])
    assert main() == ANSWERS[Reason.CONNECTION_REFUSED].exit
    told = capsys.readouterr().err
    assert "the agent says CONNECTION_REFUSED: the target refused the connection" in told
    assert len(told.splitlines()) == 2  # what happened, what to do
    assert all(line.isprintable() for line in told.splitlines())


@pytest.mark.parametrize("host", ["bücher.home.tuunel", "\uff48ome.tuunel", "ho me.tuunel", "a\r\nX: y.home.tuunel"])
def test_names_that_are_not_plain_never_end_in_a_traceback(
    host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="tuu", dir="/tmp") as path:
        monkeypatch.setenv("TUUNEL_HOME", path)
        monkeypatch.setattr(sys, "argv", ["tuunel", "nc", host, "22"])
        assert main() in {2, ANSWERS[Reason.UNKNOWN_NAME].exit, ANSWERS[Reason.NOT_PAIRED].exit}
    assert capsys.readouterr().err.startswith("tuunel: ")

"""`tuunel nc`: standard input and output to a target behind a device, byte-exact, as ssh's ProxyCommand wants it.

A running proxy of the same TUUNEL_HOME does the work when there is one: its warm tunnels answer sooner, and this process
then needs nothing but the standard library (imports are most of its start-up time). Without one, a tunnel is opened here.
"""

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

from tuunel.address import HostPort, parse_tuunel_name
from tuunel.control import call
from tuunel.errors import Failure, NotRunning, Reason, Speaker, UsageError
from tuunel.firstwords import FirstWords
from tuunel.proxystatus import CONNECTION_HEADER, parse_proxy_status
from tuunel.settings import Home

USAGE = """\
usage: tuunel nc [-u] HOST PORT        or HOST:PORT
       tuunel nc NAME unix:/PATH       or NAME:unix:/PATH

Connects standard input and output to PORT of HOST, a .tuunel name or the bare name of a device:
  ssh -o ProxyCommand='tuunel nc %h %p' me@home.tuunel
With -u over UDP: each read of standard input is a datagram, and each datagram is written as it comes.
unix:/PATH is a unix socket of the device's machine, where its grant names it.
"""
UDP = "-u"  #: the one option
_START_PROXY = "start 'tuunel proxy'"
_CHUNK = 256 * 1024  #: one pipe's or socket buffer's worth: larger reads gain nothing
_MAX_RESPONSE_HEAD = 64 * 1024  #: what the front doors send is far smaller; more is not our proxy


def main(arguments: Sequence[str]) -> int:
    """Run `tuunel nc` with the words behind `nc`; returns the exit code. Raises what `run` and `run_alone` raise, and UsageError."""
    if any(word in {"-h", "--help"} for word in arguments):
        sys.stdout.write(USAGE)
        return 0
    _open_standard_streams()
    if needs_tunnel(arguments):
        from tuunel.netcat_alone import run_alone  # noqa: PLC0415  needs anyio and cryptography: slow to import

        return run_alone(arguments)
    target = parse_arguments(arguments)
    return run(target.host, target.port)


def needs_tunnel(arguments: Sequence[str]) -> bool:
    """Whether these words ask for what a running proxy does not do for `nc`."""
    return UDP in arguments or split_host(arguments)[1].startswith("unix:")


def split_host(words: Sequence[str]) -> tuple[str, str]:
    """The host that the words name, and what they name of it, as far as it can be told."""
    host, _, service = ":".join(words).partition(":")
    return host, service


def _open_standard_streams() -> None:
    """Give standard streams that are closed something harmless, or the next socket would take their place and be read or written."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one


def parse_arguments(arguments: Sequence[str]) -> HostPort:
    """Read `HOST PORT` or `HOST:PORT`; a bare NAME becomes NAME.tuunel. Raises UsageError for everything else."""
    match list(arguments):
        case [host, port]:
            target = HostPort.parse(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        case [both]:
            target = HostPort.parse(both)
        case _:
            raise UsageError("nc takes a host and a port", "for example: tuunel nc home.tuunel 22")
    if target.port == 0:
        raise UsageError("nothing listens on port 0", "name the port of the service, for example 22")
    host = tuunel_name(target.host)
    if ":" in host or parse_tuunel_name(host) is None:
        raise UsageError(f"{target.host} is not a .tuunel name", "nc never connects directly; use NAME.tuunel or HOST.NAME.tuunel")
    return HostPort(host, target.port)


def tuunel_name(host: str) -> str:
    """Write a bare NAME as NAME.tuunel; anything with a dot in it stays as it is."""
    return host if "." in host.rstrip(".") else f"{host.rstrip('.')}.tuunel"


def run(host: str, port: int) -> int:
    """Connect standard input and output to `host:port`; returns 0 when both directions ended with an end-of-file.

    Raises Failure when the target could not be connected, or the connection was cut before its end.
    """
    home = Home.find()
    try:
        return _through_proxy(home, HostPort(host, port))
    except NotRunning:
        from tuunel.forwarding import Destination  # noqa: PLC0415  needed here only, and the next is slow to import
        from tuunel.netcat_alone import through_own_tunnel  # noqa: PLC0415

        return through_own_tunnel(home, Destination(host, port))


def _through_proxy(home: Home, target: HostPort) -> int:
    path = home.socket("proxy")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        try:
            door.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunning("no proxy is running here", _START_PROXY) from error
        words = FirstWords()
        connection, first = _connect(door, target, words.look())
        if not copy_standard_streams(door, first, skip=words.said):
            raise Failure(Reason.TUNNEL_LOST, detail="the connection was cut")
        # A unix socket has no reset: what looks like an end may be a cut, and only the proxy knows.
        try:
            outcome = call(path, "outcome", connection=connection)
        except NotRunning as error:  # not to be taken for a proxy that was never there: the bytes have been carried
            raise Failure(Reason.TUNNEL_LOST, detail="the proxy ended before it said how the connection did") from error
        if outcome["reason"] != "done":
            raise Failure(Reason.TUNNEL_LOST, detail="the connection was cut")
        return 0


def _connect(door: socket.socket, target: HostPort, words: bytes) -> tuple[int, bytes]:
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("ascii")
    try:
        door.sendall(request + words)
        head = door.recv(_CHUNK)
    except ConnectionError:  # it has closed without reading what we sent, which was one piece
        head = words = b""
    if not head and not words:
        raise NotRunning("the proxy that ran here has just ended", _START_PROXY)  # nothing of ours was carried yet
    head = _receive_head(door, head)
    if b"\r\n\r\n" not in head:
        raise Failure(Reason.TUNNEL_LOST, detail="the proxy ended before it answered")
    head, _, first = head.partition(b"\r\n\r\n")
    try:
        status, headers = _parse_head(head.decode("latin-1"))
        if status == 200:
            return int(headers[CONNECTION_HEADER.lower()]), first
    except (IndexError, KeyError, ValueError) as error:
        raise Failure(Reason.INTERNAL, detail="what listens at the proxy's socket does not answer as one") from error
    known = parse_proxy_status(headers.get("proxy-status", ""))
    speaker, reason, detail = known if known else (Speaker.LOCAL, Reason.INTERNAL, f"the proxy answered {status}")
    raise Failure(reason, speaker, detail)


def _receive_head(door: socket.socket, head: bytes) -> bytes:
    """Receive what is missing of a head, and what comes with it; not all of it where the proxy ends, or says too much."""
    with suppress(ConnectionError):
        while b"\r\n\r\n" not in head and len(head) <= _MAX_RESPONSE_HEAD and (chunk := door.recv(_CHUNK)):
            head += chunk
    return head


def _parse_head(head: str) -> tuple[int, dict[str, str]]:
    status_line, *lines = head.split("\r\n")
    fields = (line.partition(":") for line in lines)
    return int(status_line.split(" ")[1]), {name.strip().lower(): value.strip() for name, _, value in fields}


def copy_standard_streams(connection: socket.socket, first: bytes = b"", *, skip: int = 0) -> bool:
    """Copy standard input to the blocking `connection` and back to standard output until both directions have ended.

    Returns True when both ended with an end-of-file, False when the connection was cut (also when its far end closed it
    whole while standard input was still open). `first` is written to standard output before anything else; the first `skip` bytes of
    standard input are not copied.
    """
    upload = _Upload(connection, skip)
    upload.start()
    try:
        write_out(first)
        while chunk := connection.recv(_CHUNK):
            write_out(chunk)
    except OSError:
        return False
    _end_standard_output()
    return upload.wait()


class _Upload(threading.Thread):
    def __init__(self, connection: socket.socket, skip: int) -> None:
        super().__init__(daemon=True)  # a read of standard input cannot be interrupted: it must not keep the process
        self._connection = connection
        self._skip = skip
        self._ended = False

    def run(self) -> None:
        try:
            while self._skip and (chunk := os.read(0, self._skip)):
                self._skip -= len(chunk)
            while chunk := os.read(0, _CHUNK):
                self._connection.sendall(chunk)
            self._ended = True
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def wait(self) -> bool:
        """Wait for the end of standard input, or for the far end to close the connection whole; True for the former."""
        watch = select.poll()
        watch.register(self._connection, 0)  # a hang-up is reported without being asked for
        watch.poll()
        return self._ended


def _end_standard_output() -> None:
    # Whoever reads it must see the end now, not when standard input ends too: ssh waits for one before it sends the other.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def write_out(data: bytes) -> None:
    """Write all of `data` to standard output. Ends the process, as every program in a pipe does, when nobody reads it any more."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(1, view) :]
    except BrokenPipeError:
        # Whoever reads us has seen enough: end without a word, as every other program in a shell's pipe does. The kernel closes the
        # connection, and the proxy passes that on as a reset.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)

"""What the journeys connect to: small real servers in threads of the test process, on loopback ports that the kernel picks."""

import contextlib
import hashlib
import http.server
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

LOOPBACK = "127.0.0.1"
PATIENCE = 60.0


def read_to_end(sock: socket.socket) -> bytes:
    """Read until the peer's clean end."""
    chunks = []
    while chunk := sock.recv(1 << 18):
        chunks.append(chunk)
    return b"".join(chunks)


class EndedEarly(ConnectionError):
    """The peer ended cleanly before it had sent all that was expected. In a handler it just ends that connection, as a reset does."""


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """Read `size` bytes. Raises EndedEarly."""
    read = b""
    while len(read) < size:
        chunk = sock.recv(size - len(read))
        if not chunk:
            raise EndedEarly(f"the stream ended after {len(read)} of {size} bytes: {read[:200]!r}")
        read += chunk
    return read


def reset(sock: socket.socket) -> None:
    """Close with a reset instead of a clean end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@dataclass
class Target:
    """A TCP server. `connections` holds what was accepted, newest last; `notes` what its handler found out."""

    listener: socket.socket
    connections: list[socket.socket] = field(default_factory=list)
    notes: list[object] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def host(self) -> str:
        return str(self.listener.getsockname()[0])

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def note(self, what: object) -> None:
        with self.changed:
            self.notes.append(what)
            self.changed.notify_all()

    def noted(self, count: int = 1, deadline: float = 30.0) -> list[object]:
        """Wait until the handlers have noted `count` things and return them."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.notes) >= count, deadline), f"the target noted only {self.notes}"
            return list(self.notes)

    def accepted(self, count: int = 1, deadline: float = 30.0) -> list[socket.socket]:
        """Wait until `count` connections were accepted and return them."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.connections) >= count, deadline), "nobody connected"
            return list(self.connections)


Handler = Callable[[socket.socket, Target], None]


@contextlib.contextmanager
def serving(handler: Handler, *, host: str = LOOPBACK, backlog: int = 1024, receive_buffer: int = 0) -> Iterator[Target]:
    """Serve `handler` in a thread for each connection; an OSError in it ends that connection only."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if receive_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    listener.bind((host, 0))
    listener.listen(backlog)
    target = Target(listener)
    threads: list[threading.Thread] = []

    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            handler(sock, target)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE)
            with target.changed:
                target.connections.append(sock)
                target.changed.notify_all()
            thread = threading.Thread(target=serve, args=(sock,), daemon=True)
            threads.append(thread)
            thread.start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield target
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(10)
        for sock in target.connections:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
        for sock in target.connections:
            sock.close()


def echo(sock: socket.socket, _target: Target) -> None:
    """Send back what comes, end when the peer ends."""
    while chunk := sock.recv(1 << 16):
        sock.sendall(chunk)
    sock.shutdown(socket.SHUT_WR)


def hold(sock: socket.socket, target: Target) -> None:
    """Say and read nothing, until the test closes the connection."""


def pour(sock: socket.socket, _target: Target) -> None:
    """Send without end."""
    block = b"\xa5" * (1 << 16)
    while True:
        sock.sendall(block)


def answer_after_end(answer: bytes) -> Handler:
    """Read to the peer's end, note what came, and only then send `answer`."""

    def handler(sock: socket.socket, target: Target) -> None:
        target.note(read_to_end(sock))
        sock.sendall(answer)
        sock.shutdown(socket.SHUT_WR)

    return handler


def end_then_listen(first: bytes) -> Handler:
    """Send `first` and end that direction at once, then note all that the peer still sends."""

    def handler(sock: socket.socket, target: Target) -> None:
        sock.sendall(first)
        sock.shutdown(socket.SHUT_WR)
        target.note(read_to_end(sock))

    return handler


def note_how_it_ends(sock: socket.socket, target: Target) -> None:
    """Read until the end and note whether it was "end" or "reset"."""
    try:
        read_to_end(sock)
    except OSError:
        target.note("reset")
    else:
        target.note("end")


@contextlib.contextmanager
def full_backlog(host: str = LOOPBACK) -> Iterator[tuple[int, Callable[[], None]]]:
    """A port where nobody answers: its accept queue is full, so the kernel drops every SYN. Yields the port, and what empties the queue."""
    listener = socket.socket()
    listener.bind((host, 0))
    listener.listen(0)
    port = listener.getsockname()[1]
    fillers: list[socket.socket] = []
    accepted: list[socket.socket] = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex((host, port))
        fillers.append(filler)

    def drain() -> None:
        listener.listen(64)
        listener.settimeout(PATIENCE)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    accepted.append(sock)

        threading.Thread(target=accept, daemon=True).start()

    try:
        yield port, drain
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        for sock in (listener, *fillers, *accepted):
            sock.close()


def closed_port(host: str = LOOPBACK) -> int:
    """A port on which nothing listens."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


class _Site(http.server.BaseHTTPRequestHandler):
    """GET / PUT / POST over HTTP/1.1: files from memory down, the SHA-256 of what came up."""

    protocol_version = "HTTP/1.1"
    files: dict[str, tuple[str, bytes]]
    requests: list[tuple[str, str, dict[str, str]]]

    def log_message(self, *_args: object) -> None:
        """Stay silent: the test knows what it asked for."""

    def _remember(self) -> None:
        self.requests.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._remember()
        if self.path == "/chunked":
            self._chunked()
            return
        kind, body = self.files.get(self.path.partition("?")[0], ("", b""))
        self._answer(200 if kind else 404, kind or "text/plain", body)

    def _chunked(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in (b"one ", b"two ", b"three"):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def do_POST(self) -> None:
        self.do_PUT()

    def do_PUT(self) -> None:
        self._remember()
        digest = hashlib.sha256()
        for chunk in self._body():
            digest.update(chunk)
        self._answer(200, "text/plain", digest.hexdigest().encode())

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", "0"))
        while left:
            chunk = self.rfile.read(min(left, 1 << 20))
            if not chunk:
                return
            left -= len(chunk)
            yield chunk


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    address_family = socket.AF_INET

    def handle_error(self, *_args: object) -> None:
        """A client that went away is the client's affair."""


class _Server6(_Server):
    address_family = socket.AF_INET6


@dataclass
class Site:
    """A web site: its port, and the (method, path, headers) of each request it saw."""

    port: int
    requests: list[tuple[str, str, dict[str, str]]]


@contextlib.contextmanager
def web_site(files: dict[str, tuple[str, bytes]], *, host: str = LOOPBACK, tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Serve `files` (path to media type and body); PUT and POST answer the SHA-256 of the body; /chunked is sent in chunks."""
    requests: list[tuple[str, str, dict[str, str]]] = []
    handler = type("Handler", (_Site,), {"files": files, "requests": requests})
    server = (_Server6 if ":" in host else _Server)((host, 0), handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield Site(server.server_address[1], requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)

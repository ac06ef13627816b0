"""Listening: sockets for an address, unix sockets that survive a crash of their owner, and an accept loop that survives full tables.

`localhost` is both loopbacks, because a browser may try either; `::` is both IP versions.
"""

import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import TaskGroup

from tuunel.address import HostPort
from tuunel.errors import ListenError, TuunelError
from tuunel.rawsocket import RawSocket, host_port_of
from tuunel.rawstream import RESET_ON_CLOSE, RawStream, stay_unpaced
from tuunel.statefile import locked

LOOPBACKS: Final = ("127.0.0.1", "::1")
BACKLOG: Final = 1024  # a browser or a fleet may come at once; the kernel has its own lower limit
ACCEPT_BURST: Final = 64  #: connections accepted in one go, before others have their turn
PORT_ATTEMPTS: Final = 20  # to find a free port that is free on every address
#: What says that this machine has no IPv6, when ::1 is listened on.
NO_SUCH_FAMILY: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})
EXHAUSTED_PAUSE: Final = 0.1  # seconds to wait for a descriptor; connections stay queued in the kernel meanwhile

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_STOPPED: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})
_ELSEWHERE: Final = "choose another place to listen on"
_ADVICE: Final = {
    errno.EADDRINUSE: "another program listens there: stop it, or choose another port",
    errno.EADDRNOTAVAIL: "this machine does not have that address",
    errno.EACCES: "ports below 1024 need a privilege: choose a higher port",
}
_logger = logging.getLogger(__name__)

Handler = Callable[[RawStream], Awaitable[object]]


async def open_listeners(where: HostPort) -> list[socket.socket]:
    """Listen on `where`; the caller owns the sockets. All have the same port, a free one when port 0 was asked. ListenError if any fails.

    `localhost` is 127.0.0.1 and ::1, or 127.0.0.1 alone where there is no IPv6. `::` takes both IP versions, or is 0.0.0.0 there.
    Any other name is every address that it resolves to.
    """
    hosts = await _hosts(where)
    for attempt in range(PORT_ATTEMPTS):
        try:
            return _listen_on(hosts, where)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and where.port == 0 and attempt + 1 < PORT_ATTEMPTS:
                continue  # the port that one address gave is taken on another
            raise ListenError(f"cannot listen on {where}: {error.strerror}", _ADVICE.get(error.errno or 0, _ELSEWHERE)) from error
    raise AssertionError("unreachable")


def address_of(listener: socket.socket) -> HostPort:
    """The address and real port of a TCP listener."""
    return host_port_of(listener.getsockname())


def drop_waiting(listeners: Sequence[socket.socket]) -> None:
    """Reset the connections that wait to be accepted: those from before the address was announced to tuunel's other roles."""
    for listener in listeners:
        for _ in range(BACKLOG):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                break
            except OSError:
                continue  # gone again
            with sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def open_unix_listener(path: Path) -> socket.socket:
    """Listen on the unix socket `path`, for this user only (0600). The caller owns it: `serve` it, or `close_listener`.

    What a dead owner left is replaced. ListenError when a living one listens there, or when the path cannot be used.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with locked(path):  # between two that start at once, one must see the other alive
            _remove_stale(path)
            listener.bind(os.fspath(path))
            path.chmod(0o600)  # nobody can connect before listen()
            listener.listen(BACKLOG)
        listener.settimeout(0)
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot listen on {path}: {error.strerror or error}", _ADVICE.get(error.errno or 0, _ELSEWHERE)) from error
    except BaseException:
        listener.close()
        raise
    return listener


async def serve(listeners: Sequence[socket.socket], handler: Handler, task_group: TaskGroup) -> None:
    """Accept until cancelled, and run `handler` for each connection in `task_group`, which may outlive this. Owns the listeners.

    The handler owns its stream: it closes it or hands it on. One that raises ends only its own connection, by a reset.
    """
    try:
        async with anyio.create_task_group() as accepting:
            for listener in listeners:
                accepting.start_soon(_accept, listener, handler, task_group)
    finally:
        for listener in listeners:
            close_listener(listener)


def close_listener(listener: socket.socket) -> None:
    """Close a listener, and remove the path of a unix one."""
    if listener.family == socket.AF_UNIX:
        with suppress(OSError):  # first: once it is closed, the path may belong to the next owner
            Path(listener.getsockname()).unlink()
    listener.close()


class _Exhausted(Exception):
    """There is no descriptor, or no memory, for one more connection."""


async def _accept(listener: socket.socket, handler: Handler, task_group: TaskGroup) -> None:
    def accept_waiting() -> None:
        """Accept what waits, a burst at most."""
        for _ in range(ACCEPT_BURST):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _STOPPED:
                    raise
                if error.errno in _EXHAUSTED:
                    raise _Exhausted from error
                continue  # that one connection failed before it was accepted: accept(2) gives its error
            task_group.start_soon(_handle, handler, sock)

    waiting = RawSocket(listener)
    while True:
        with suppress(_Exhausted):
            await waiting.on_readable(accept_waiting)
        await anyio.sleep(EXHAUSTED_PAUSE)


async def _handle(handler: Handler, sock: socket.socket) -> None:
    try:
        stream = RawStream(sock)
    except OSError:  # gone again
        sock.close()
        return
    try:
        await handler(stream)
    except (OSError, anyio.ClosedResourceError, anyio.IncompleteRead, TuunelError):
        stream.reset()
    except Exception:
        stream.reset()
        _logger.exception("a connection's handler failed")
    except BaseException:
        stream.reset()
        raise


async def _hosts(where: HostPort) -> Sequence[str]:
    if where.host == "localhost":
        return LOOPBACKS
    try:
        return [str(ip_address(where.host))]
    except ValueError:
        pass
    try:
        found = await anyio.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise ListenError(f"cannot listen on {where}: the name is not known", "give an address of this machine") from error
    return list(dict.fromkeys(address[0] for *_, address in found))


def _listen_on(hosts: Sequence[str], where: HostPort) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    port = where.port
    try:
        for host in hosts:
            try:
                listener = _listen(host, port)
            except OSError as error:
                if where.host == "localhost" and listeners and error.errno in NO_SUCH_FAMILY:
                    continue
                raise
            listeners.append(listener)
            port = listener.getsockname()[1]
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listen(host: str, port: int) -> socket.socket:
    try:
        return _bind(host, port)
    except OSError as error:
        if host == "::" and error.errno in NO_SUCH_FAMILY:
            return _bind("0.0.0.0", port)
        raise


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        if ip_address(host).is_loopback:
            stay_unpaced(listener)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.settimeout(0)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)  # a living owner whose backlog is full must not keep us waiting
        try:
            probe.connect(os.fspath(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            if path.is_socket():
                with suppress(FileNotFoundError):
                    path.unlink()
                return
            raise ListenError(f"cannot listen on {path}: it is not a socket", "move it away") from None
        except BlockingIOError:
            pass
    raise ListenError(f"already running: another process listens on {path}", "stop it first, or use another TUUNEL_HOME")

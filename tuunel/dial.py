"""Dialling: resolve a target, let the caller choose among the addresses, connect to exactly one of those, and say truly why it failed.

The name is looked up once, here. What the caller's `allow` has checked is what is connected to: an address, never again the name.
"""

import errno
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, TypeAlias

import anyio

from tuunel.address import HostPort
from tuunel.datagrams import DatagramSocket
from tuunel.errors import Failure, Reason, Speaker
from tuunel.networkwatch import local_address
from tuunel.rawstream import RESET_ON_CLOSE, RawStream, stay_unpaced

Address: TypeAlias = IPv4Address | IPv6Address
Allow: TypeAlias = Callable[[list[Address]], Sequence[Address]]

DIAL_TIMEOUT: Final = 10.0  # seconds for the lookup and all connection attempts together
ATTEMPT_DELAY: Final = 0.25  # seconds before the next address is tried beside the last one: RFC 8305 section 5
UNIX_RETRY: Final = 0.05  # seconds until a unix socket whose queue was full is tried again: the kernel does not tell when it has room
STRANGERS: Final = 4096  # datagrams: more than a receive buffer holds
MAX_LOOKUPS: Final = 256  # at a time, those that hang and were given up included: each holds a thread and a few descriptors
LOCALHOST: Final[tuple[Address, ...]] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))

_lookups = threading.BoundedSemaphore(MAX_LOOKUPS)

_REASONS: Final = {
    errno.ECONNREFUSED: Reason.CONNECTION_REFUSED,
    errno.ECONNRESET: Reason.CONNECTION_REFUSED,
    errno.ETIMEDOUT: Reason.CONNECT_TIMEOUT,
    errno.EHOSTUNREACH: Reason.HOST_UNREACHABLE,
    errno.EHOSTDOWN: Reason.HOST_UNREACHABLE,
    errno.ENETUNREACH: Reason.NET_UNREACHABLE,
    errno.ENETDOWN: Reason.NET_UNREACHABLE,
    errno.EADDRNOTAVAIL: Reason.NET_UNREACHABLE,  # no address of that family here, so no way out; where there is one, see _connect
    errno.EAFNOSUPPORT: Reason.NET_UNREACHABLE,
    errno.EMFILE: Reason.LIMIT,
    errno.ENFILE: Reason.LIMIT,
    errno.ENOBUFS: Reason.LIMIT,
    errno.ENOMEM: Reason.LIMIT,
}
#: When several addresses fail for different reasons, the one that says most about the target is told.
_TELLING: Final = (
    Reason.CONNECTION_REFUSED,
    Reason.CONNECT_TIMEOUT,
    Reason.LIMIT,
    Reason.HOST_UNREACHABLE,
    Reason.NET_UNREACHABLE,
)


async def dial(target: HostPort, *, allow: Allow, speaker: Speaker = Speaker.LOCAL, timeout: float = DIAL_TIMEOUT) -> RawStream:  # noqa: ASYNC109
    """Connect to `target` at one of the addresses that `allow` returns out of those it resolves to; the caller owns the stream.

    The host "" is 127.0.0.1, then ::1. Addresses are tried in order, the next one when the last has failed or after ATTEMPT_DELAY, if
    `allow` still returns it then.
    Failure says, in the name of `speaker`, why none could be connected; `allow` may raise its own. `timeout` is for all of it.
    """
    with anyio.move_on_after(timeout):
        addresses = allow(await resolve(target.host, target.port, speaker=speaker))
        if not addresses:
            raise Failure(Reason.POLICY_DENIED, speaker)
        return await _Race(addresses, target.port, allow).run(speaker)
    raise Failure(Reason.CONNECT_TIMEOUT, speaker, f"{target} within {timeout:g} s")


def dial_at_once(target: HostPort, *, allow: Allow) -> RawStream | None:
    """Connect to a service of this machine, which its kernel does within the call; the caller owns the stream. Otherwise as `dial`.

    None for what takes a wait or a lookup, or fails: `dial` has the rest to say. `allow` may raise its own.
    """
    addresses = _addresses_at_once(target.host)
    if sys.platform != "linux" or not any(address.is_loopback for address in addresses):  # other kernels do it soon, not within the call
        return None
    allowed = allow(addresses)
    if not allowed or not allowed[0].is_loopback:
        return None
    try:
        sock = _begin_to_connect(allowed[0], target.port)
    except OSError:
        return None
    try:
        _refuse_itself(sock)  # which is an error, too, where nothing is connected yet
        return RawStream(sock)
    except OSError:
        sock.close()
        return None


async def dial_datagram(
    target: HostPort,
    *,
    allow: Allow,
    speaker: Speaker = Speaker.LOCAL,
    timeout: float = DIAL_TIMEOUT,  # noqa: ASYNC109
) -> tuple[DatagramSocket, Sequence[Address]]:
    """Look `target` up and do as `connect_datagrams` with the addresses that `allow` returns. Otherwise as `dial`.

    Port 0, which stands for no service, is refused.
    """
    if not target.port:
        raise Failure(Reason.CONNECTION_REFUSED, speaker, "there is no service at port 0")
    with anyio.move_on_after(timeout):
        addresses = allow(await resolve(target.host, target.port, speaker=speaker))
        if not addresses:
            raise Failure(Reason.POLICY_DENIED, speaker)
        return connect_datagrams(addresses, target.port, speaker)
    raise Failure(Reason.CONNECT_TIMEOUT, speaker, f"{target} within {timeout:g} s")


def connect_datagrams(addresses: Sequence[Address], port: int, speaker: Speaker) -> tuple[DatagramSocket, Sequence[Address]]:
    """Connect a UDP socket to the first of `addresses` to which there is a way; the caller owns it. Returns the addresses from that one on.

    The kernel gives it datagrams from that address and port only. Nothing is sent, so nobody has answered yet, and the others may turn out
    to be where the service is. Failure in the name of `speaker` when there is a way to none.
    """
    errors = []
    for number, address in enumerate(addresses):
        try:
            return DatagramSocket(_connect_datagrams(address, port)), addresses[number:]
        except OSError as error:
            errors.append(error)
    raise failure_of(errors, speaker)


async def dial_unix(path: str, *, speaker: Speaker = Speaker.LOCAL, timeout: float = DIAL_TIMEOUT) -> RawStream:  # noqa: ASYNC109
    """Connect to the unix stream socket at `path` on this machine; the caller owns the stream.

    Failure in the name of `speaker`: CONNECTION_REFUSED with the system's own word, LIMIT, or CONNECT_TIMEOUT when its queue stays full.
    """
    with anyio.move_on_after(timeout):
        while True:
            try:
                return RawStream(_connect_unix(path))
            except BlockingIOError:
                await anyio.sleep(UNIX_RETRY)
            except OSError as error:
                reason = _REASONS.get(error.errno or 0, Reason.CONNECTION_REFUSED)
                raise Failure(reason, speaker, f"{path}: {error.strerror or error}") from error
    raise Failure(Reason.CONNECT_TIMEOUT, speaker, f"{path} within {timeout:g} s")


async def resolve(host: str, port: int, *, speaker: Speaker = Speaker.LOCAL) -> list[Address]:
    """Look up a host: its addresses, each once, in the resolver's order. An address is itself, "" is the localhost.

    Failure(NAME_NOT_RESOLVED) when there is none.
    """
    if at_once := _addresses_at_once(host):
        return at_once
    try:
        found = await _look_up(host, port)
    except (socket.gaierror, ValueError) as error:  # ValueError: no name that DNS could hold
        detail = error.strerror if isinstance(error, socket.gaierror) and error.strerror else "not a valid name"
        raise Failure(Reason.NAME_NOT_RESOLVED, speaker, f"{host}: {detail}") from error
    except OSError as error:
        raise failure_of([error], speaker) from error
    return list(dict.fromkeys(found))


def _addresses_at_once(host: str) -> list[Address]:
    """The addresses of a host that needs no lookup; none of a name."""
    if not host:
        return list(LOCALHOST)
    try:
        return [ip_address(host)]
    except ValueError:
        return []


async def _look_up(host: str, port: int) -> list[Address]:
    """Ask the system's resolver, in a thread that a cancelled caller and the end of the process leave behind.

    A lookup takes half a minute where no name server answers, and cannot be interrupted. The event loops' own threads are waited
    for at the process's end, which would then take as long. OSError when too many are under way.
    """
    outcome: list[list[Address] | Exception] = []
    running = _lookups
    if not running.acquire(blocking=False):
        raise OSError(errno.ENOBUFS, "too many names are being looked up")
    try:
        done, told = socket.socketpair()
    except BaseException:
        running.release()
        raise

    def work() -> None:
        with told:  # its end is the news
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                outcome.append([ip_address(address[0]) for *_, address in found])
            except Exception as error:  # raised where it is waited for
                outcome.append(error)
            finally:
                running.release()

    with done:
        try:
            threading.Thread(target=work, name="tuunel-lookup", daemon=True).start()
        except RuntimeError as error:  # the system gives no more threads
            told.close()
            running.release()
            raise OSError(errno.ENOBUFS, str(error)) from error
        await anyio.wait_readable(done)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


class _Race:
    """Connection attempts that start one after the other; the first that connects wins and ends the others."""

    def __init__(self, addresses: Sequence[Address], port: int, allow: Allow) -> None:
        self._addresses = addresses
        self._port = port
        self._allow = allow
        self._winner: socket.socket | None = None
        self._errors: list[OSError] = []

    async def run(self, speaker: Speaker) -> RawStream:
        try:
            if len(self._addresses) == 1:  # as most often: who races alone needs no tasks
                self._winner = await _connect(self._addresses[0], self._port)
            else:
                await self._try_all()
            if self._winner is not None:
                return RawStream(self._winner)
        except OSError as error:
            self._errors.append(error)
        except BaseException:
            self._close_winner()
            raise
        self._close_winner()
        raise failure_of(self._errors, speaker)

    async def _try_all(self) -> None:
        async with anyio.create_task_group() as attempts:
            for number, address in enumerate(self._addresses):
                if number and not self._is_still_allowed(address):
                    continue
                failed = anyio.Event()
                attempts.start_soon(self._attempt, address, failed, attempts.cancel_scope)
                with anyio.move_on_after(ATTEMPT_DELAY):
                    await failed.wait()

    def _is_still_allowed(self, address: Address) -> bool:
        """Ask again, because time has passed: a name with many addresses that do not answer must not keep an old answer for seconds."""
        try:
            return bool(self._allow([address]))
        except Failure:
            return False

    async def _attempt(self, address: Address, failed: anyio.Event, scope: anyio.CancelScope) -> None:
        try:
            sock = await _connect(address, self._port)
        except OSError as error:
            self._errors.append(error)
            failed.set()
            return
        if self._winner is not None:
            sock.close()
            return
        self._winner = sock
        scope.cancel()

    def _close_winner(self) -> None:
        if self._winner is not None:
            self._winner.close()


async def _connect(address: Address, port: int) -> socket.socket:
    sock = _begin_to_connect(address, port)
    try:
        await anyio.wait_writable(sock)
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))
        _refuse_itself(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _begin_to_connect(address: Address, port: int) -> socket.socket:
    """A socket that connects, or has connected: either is told by its getting writable."""
    sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.settimeout(0)
        if address.is_loopback:
            stay_unpaced(sock)
        # An attempt that is given up may have connected by then: its target must see a reset, not somebody who has said nothing and ended.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        with suppress(BlockingIOError):
            sock.connect(_socket_address(address, port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL and local_address(HostPort(str(address), port)) is not None:
            raise OSError(errno.ENOBUFS, "no port is left for this target") from error
        raise
    except BaseException:
        sock.close()
        raise
    return sock


def _refuse_itself(sock: socket.socket) -> None:
    """Tell of a socket that is connected with itself: nobody is there, and the kernel has picked the target's own port for this end."""
    if sock.getsockname() == sock.getpeername():
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def _connect_datagrams(address: Address, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    try:
        sock.settimeout(0)
        sock.connect(_socket_address(address, port))
        _refuse_itself(sock)
        _drop_strangers(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _drop_strangers(sock: socket.socket) -> None:
    """Drop what came between the moment that `connect` bound the socket, open to anybody, and the one at which it was connected."""
    with suppress(BlockingIOError):
        for _ in range(STRANGERS):
            sock.recv(1)


def _connect_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(0)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _socket_address(address: Address, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """`address` in numbers alone: `connect` looks up what is no plain address, and an address with any zone behind it is none."""
    if isinstance(address, IPv4Address) or address.scope_id is None:
        return str(address), port
    return str(IPv6Address(int(address))), port, 0, _zone_number(address.scope_id)


def _zone_number(zone: str) -> int:
    if not (zone.isascii() and zone.isdecimal()):
        return socket.if_nametoindex(zone)
    if len(zone) > 10 or int(zone) >= 1 << 32:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    return int(zone)


def failure_of(errors: Sequence[OSError], speaker: Speaker) -> Failure:
    """Say what one or more failed attempts to reach a target mean: of several reasons the one that tells most."""
    told = [(_REASONS.get(error.errno or 0, Reason.HOST_UNREACHABLE), error) for error in errors]
    reason, error = min(told, key=lambda pair: _TELLING.index(pair[0]))
    said = error.strerror or str(error)
    says_no_more = error.errno in _REASONS and said == os.strerror(error.errno)
    return Failure(reason, speaker, "" if says_no_more else said)

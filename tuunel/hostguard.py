"""The guard of `--http-hosts`: lets HTTP requests through whose Host is listed, and nothing else. Against DNS rebinding.

Source: docs/spec/forward.md section 4, RFC 9112.
"""

from collections.abc import Collection
from typing import Final

import h11

from tuunel.address import HostPort
from tuunel.errors import Failure, Reason, RemoteProtocolError, UsageError
from tuunel.httpheaders import check_framing, values
from tuunel.httpproxy import HEAD_LIMIT, HttpDoor
from tuunel.proxystatus import printable

_NO_HTTP: Final = "what came is no HTTP/1 request"


def parse_hosts(text: str) -> frozenset[str]:
    """Read `HOST,...`: names and IP addresses without ports. UsageError for anything else."""
    return frozenset(_read_listed(each.strip()) for each in text.split(","))


class HostGuard:
    """Watches one connection's client. `hosts` comes from `parse_hosts`.

    At most HEAD_LIMIT bytes, and what was received last, are held back until they have been judged. After a Failure it is dead.
    """

    def __init__(self, hosts: Collection[str]) -> None:
        self._hosts = hosts
        self._held = b""
        self._upgrade = False
        self._free = False  # the bytes are no HTTP any more: an upgrade has been offered
        self._h11 = _new_reader()

    def receive_data(self, data: bytes) -> bytes:
        """Take bytes of the client, in pieces of any size: what may go on to the target by now. Failure(FORBIDDEN_HOST) for the rest."""
        if self._free:
            return data
        self._feed(data)
        self._held += data
        cleared = b""
        while (event := self._next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Request):
                self._judge(event)
            elif isinstance(event, h11.EndOfMessage):
                cleared += self._finish()
                if self._upgrade:
                    return cleared
        return cleared + self._clear_body()

    def receive_eof(self) -> None:
        """Take note that the client sends no more. Failure(FORBIDDEN_HOST) when it ends within a head."""
        if self._held:
            raise Failure(Reason.FORBIDDEN_HOST, detail=_NO_HTTP)

    def _feed(self, data: bytes) -> None:
        if data:  # h11 takes none for the end
            self._h11.receive_data(data)

    def _next_event(self) -> object:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise Failure(Reason.FORBIDDEN_HOST, detail=f"{_NO_HTTP}: {error}") from error

    def _judge(self, request: h11.Request) -> None:
        try:
            check_framing(request)
        except RemoteProtocolError as error:
            raise Failure(Reason.FORBIDDEN_HOST, detail=str(error)) from error
        if not request.target.startswith(b"/") and request.target != b"*":
            raise Failure(Reason.FORBIDDEN_HOST, detail="the request is made for a proxy")
        named = b", ".join(value for field, value in request.headers if field == b"host").decode("latin-1")
        if _host_of(named) not in self._hosts:
            raise Failure(Reason.FORBIDDEN_HOST, detail=printable(named) or "it names none")
        self._upgrade = b"upgrade" in values(request, b"connection")

    def _finish(self) -> bytes:
        """End a request: its bytes; what is behind them is the next one's."""
        rest = bytes(self._h11.trailing_data[0])
        request = self._held[: len(self._held) - len(rest)]
        if self._upgrade:
            self._free, self._held = True, b""
            return request + rest
        self._held = rest
        self._h11 = _new_reader()  # h11 reads a second request only when the first was answered, and answers do not pass here
        self._feed(rest)
        return request

    def _clear_body(self) -> bytes:
        if self._h11.their_state is h11.IDLE:
            return b""
        body, self._held = self._held, b""
        return body


def refusal(failure: Failure) -> bytes:
    """Write the whole answer for a first request that the guard refuses: send it, then close."""
    door = HttpDoor(pac=str)  # for its page alone: it is given nothing to read
    door.refuse(failure)
    return door.data_to_send()


def _new_reader() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)


def _read_listed(text: str) -> str:
    address = HostPort.parse(text, 0)
    if address.port:
        raise UsageError(f"{text!r} has a port, and --http-hosts takes hosts", "leave the port away: the host counts under every port")
    return _plain(address.host)


def _host_of(named: str) -> str:
    try:
        return _plain(HostPort.parse(named, 0).host)
    except UsageError:
        return ""


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")

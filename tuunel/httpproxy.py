"""HTTP/1.1 proxying on h11: the client's side (`HttpDoor`) and the origin server's side (`HttpOrigin`) of each exchange.

Bytes in, h11 events and requests out. The driver carries body events from one side to the other. Source: RFC 9110, RFC 9112,
docs/spec/front-doors.md sections 5 to 9.
"""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, TypeAlias

import h11

from tuunel import pac
from tuunel.address import HostPort
from tuunel.errors import Failure, LocalProtocolError, Reason, RemoteProtocolError, UsageError
from tuunel.frontdoor import Credentials, Refused, Request, failure_page, page, page_policy, under_tuunel
from tuunel.httpheaders import (
    authorised,
    check_framing,
    clean_trailers,
    end_to_end,
    ends_here,
    foreign_origin,
    forwarded_request,
    is_chunked,
    read_absolute_target,
    read_connect_target,
    upgrade,
    values,
)
from tuunel.proxystatus import CONNECTION_HEADER, proxy_status

HEAD_LIMIT: Final = 65536  # bytes of a message head or a trailer section: browsers and servers stop at 8 to 64 KiB
LOOPBACK_HOSTS: Final = ("127.0.0.1", "::1", "localhost")
_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})  # RFC 9110 section 9.2.2
_HELP: Final = """\
<h1>This is a tuunel proxy</h1>
<p>It is not a web site. Set it as the SOCKS5 or HTTP proxy of a browser or program, or give the browser
<code>/proxy.pac</code> of this address as its automatic proxy configuration.</p>
<p>On the command line, <code>tuunel setup</code> prints the settings.</p>"""


@dataclass(frozen=True, slots=True)
class Forward:
    """An absolute-form request to pass on to `request.target`: send `head` there, then the body events that follow.

    `repeatable` says that it has no body and may be sent twice (RFC 9110 section 9.2.2).
    """

    request: Request
    head: h11.Request
    repeatable: bool


@dataclass(frozen=True, slots=True)
class Served:
    """The door has answered by itself with a page of its own, which is in `data_to_send`: send it, then close."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The client has ended cleanly between two requests."""


DoorEvent: TypeAlias = Request | Forward | h11.Data | h11.EndOfMessage | Refused | Served | Closed
OriginEvent: TypeAlias = h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage


class HttpDoor:
    """One client's connection: CONNECT, absolute-form requests one at a time, and this proxy's own two pages.

    `pac` makes the auto-configuration file for clients on this machine. Nothing but a malformed client makes it raise RemoteProtocolError,
    and then only while a request's body is on its way.
    """

    def __init__(self, credentials: Credentials | None = None, *, local: bool = False, pac: Callable[[], str]) -> None:
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        self._credentials = credentials
        self._local = local
        self._pac = pac
        self._out: list[bytes] = []
        self._request: h11.Request | None = None
        self._target = ""

    # input

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the client, in pieces of any size."""
        self._h11.receive_data(data)

    def receive_eof(self) -> None:
        """Take note that the client sends no more."""
        self._h11.receive_data(b"")

    def next_event(self) -> DoorEvent | None:
        """Return what the client asks or sends next.

        None when more bytes are needed, or, once `request_complete`, when nothing is read before `start_next_cycle`.
        """
        in_head = self._h11.their_state is h11.IDLE
        try:
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            if in_head:
                return self._turn_down(Failure(Reason.BAD_REQUEST, detail=str(error)))
            raise RemoteProtocolError(str(error)) from error
        if isinstance(event, h11.Request):
            self._request = event
            return self._sort(event)
        if isinstance(event, h11.ConnectionClosed):
            return Closed()
        if isinstance(event, h11.Data | h11.EndOfMessage):
            return event
        return None

    @property
    def request_complete(self) -> bool:
        """Whether the whole request, with its body, has been read."""
        return self._h11.their_state not in {h11.IDLE, h11.SEND_BODY}

    @property
    def trailing_data(self) -> bytes:
        """What followed the request: after an accepted CONNECT or an upgrade, the target's bytes."""
        return bytes(self._h11.trailing_data[0])

    # output

    def data_to_send(self) -> bytes:
        """Hand out what is to be sent to the client, once."""
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        return data

    def accept(self, bound: HostPort | None = None, connection: int | None = None) -> None:
        """Answer CONNECT with success; `connection` is told to clients that may ask about it later."""
        fields = [] if connection is None else [(CONNECTION_HEADER, str(connection))]
        self._send(h11.Response(status_code=200, reason=b"Connection established", headers=fields))

    def refuse(self, failure: Failure) -> None:
        """Answer with the failure's page, before a response has begun. The connection must then be closed."""
        fields = {"Proxy-Status": proxy_status(failure)}
        if failure.reason is Reason.BAD_CREDENTIALS:
            fields["Proxy-Authenticate"] = 'Basic realm="tuunel", charset="UTF-8"'
        if failure.retry_after:
            fields["Retry-After"] = str(failure.retry_after)
        self._answer(failure.answer.http, "text/html; charset=utf-8", failure_page(failure, self._target), fields)

    def inform(self, event: h11.InformationalResponse) -> None:
        """Pass an interim response on. HTTP/1.0 clients do not know them: RFC 9110 section 15.2."""
        if self._h11.their_http_version != b"1.0":
            fields = end_to_end(event)
            if event.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
                fields += [(b"Connection", b"Upgrade"), (b"Upgrade", upgrade(event))]
            self._send(h11.InformationalResponse(status_code=event.status_code, reason=event.reason, headers=fields))

    def respond(self, response: h11.Response) -> None:
        """Pass a response head on. The connection stays open only if the request has been read whole by now."""
        fields = end_to_end(response)
        options = []
        if response.status_code == HTTPStatus.UPGRADE_REQUIRED and (protocols := upgrade(response)):
            fields.append((b"Upgrade", protocols))
            options.append(b"Upgrade")
        if not self.request_complete:
            options.append(b"close")
        if options:
            fields.append((b"Connection", b", ".join(options)))
        self._send(h11.Response(status_code=response.status_code, reason=response.reason, headers=fields))

    def body(self, event: h11.Data) -> None:
        """Pass a piece of a response body on."""
        self._send(h11.Data(data=event.data))

    def end(self, event: h11.EndOfMessage) -> None:
        """End the response, with its trailers if the client can take them."""
        self._send(h11.EndOfMessage(headers=clean_trailers(event) if self._h11.their_http_version != b"1.0" else []))

    def start_next_cycle(self) -> bool:
        """Get ready for the next request; False when the connection must be closed instead."""
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            return False
        self._h11.start_next_cycle()
        self._request = None
        self._target = ""
        return True

    # requests

    def _sort(self, request: h11.Request) -> DoorEvent:
        try:
            check_framing(request)
            if request.method == b"CONNECT":
                return self._connect(request)
            if request.target.startswith(b"/") or request.target == b"*":
                return self._serve(request)
            return self._forward(request)
        except RemoteProtocolError as error:
            return self._turn_down(Failure(Reason.BAD_REQUEST, detail=str(error)))

    def _connect(self, request: h11.Request) -> Request | Refused:
        target = read_connect_target(request.target)
        self._target = str(target)
        # Bytes behind CONNECT are the target's; a body would make them two things at once.
        if is_chunked(request) or values(request, b"content-length") not in ([], [b"0"]):
            raise RemoteProtocolError("CONNECT has no body")
        if refused := self._ask_credentials(request):
            return refused
        self._h11.next_event()  # EndOfMessage: from here on everything is trailing data
        return Request(target, "http-connect", self.trailing_data, self._local)

    def _forward(self, request: h11.Request) -> Forward | Refused:
        if refused := self._ask_credentials(request):
            return refused
        target, authority, path = read_absolute_target(request.target)
        self._target = f"http://{authority.decode()}{path.decode()}"
        if under_tuunel(target.host) and (origin := foreign_origin(request)):
            return self._turn_down(Failure(Reason.FORBIDDEN_ORIGIN, detail=f"the page is from {origin.decode('ascii', 'replace')}"))
        if ends_here(request):
            return self._turn_down(Failure(Reason.UNSUPPORTED, detail="Max-Forwards is 0, and this proxy does not answer for the target"))
        has_body = is_chunked(request) or values(request, b"content-length") not in ([], [b"0"])
        repeatable = request.method in _IDEMPOTENT and not has_body
        head = forwarded_request(request, authority, path)
        return Forward(Request(target, "http", local=self._local), head, repeatable)

    def _ask_credentials(self, request: h11.Request) -> Refused | None:
        if self._credentials is None or authorised(request, self._credentials):
            return None
        return self._turn_down(Failure(Reason.BAD_CREDENTIALS))

    def _serve(self, request: h11.Request) -> Served:
        html = "text/html; charset=utf-8"
        if request.method not in {b"GET", b"HEAD"}:
            self._answer(405, html, page("Not a web site", _HELP), {"Allow": "GET, HEAD"})
        elif request.target != b"/proxy.pac":
            self._answer(200 if request.target == b"/" else 404, html, page("tuunel", _HELP), {})
        elif self._local and _is_loopback_host(request):
            self._answer(200, pac.MEDIA_TYPE, self._pac(), {})
        else:
            self._answer(
                403, html, page("Not for you", "<p>This file is only for browsers on this machine, under its loopback address.</p>"), {}
            )
        return Served()

    def _turn_down(self, failure: Failure) -> Refused:
        self.refuse(failure)
        return Refused(failure.reason, failure.detail)

    def _answer(self, status: int, media_type: str, text: str, fields: dict[str, str]) -> None:
        body = text.encode()
        always = {
            "Content-Type": media_type,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": page_policy(),
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
            "Connection": "close",
        }
        self._send(h11.Response(status_code=status, reason=HTTPStatus(status).phrase, headers=list({**fields, **always}.items())))
        if self._request is None or self._request.method != b"HEAD":
            self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())

    def _send(self, event: h11.Event) -> None:
        try:
            data = self._h11.send(event)
        except h11.LocalProtocolError as error:
            raise LocalProtocolError(str(error)) from error
        if data:
            self._out.append(data)


def _is_loopback_host(request: h11.Request) -> bool:
    """Whether Host names this machine by itself: any other name may be an attacker's that resolves to here (DNS rebinding)."""
    hosts = [value for field, value in request.headers if field == b"host"]
    if len(hosts) != 1:
        return False
    try:
        return HostPort.parse(hosts[0].decode("ascii"), 0).host in LOOPBACK_HOSTS
    except (UnicodeDecodeError, ValueError, UsageError):
        return False


class HttpOrigin:
    """The connection to one origin server, reused while it stays open. Whatever it sends wrongly is RemoteProtocolError."""

    def __init__(self) -> None:
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)

    def request(self, head: h11.Request) -> bytes:
        """Start a request: the bytes of its head."""
        return self._send(head)

    def body(self, event: h11.Data) -> bytes:
        """Return the bytes of a piece of the request's body."""
        return self._send(h11.Data(data=event.data))

    def end(self, event: h11.EndOfMessage) -> bytes:
        """Return the bytes that end the request, with its trailers."""
        return self._send(h11.EndOfMessage(headers=clean_trailers(event)))

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the origin server, in pieces of any size."""
        self._h11.receive_data(data)

    def receive_eof(self) -> None:
        """Take note that the origin server sends no more."""
        self._h11.receive_data(b"")

    def next_event(self) -> OriginEvent | None:
        """Return the next part of the response, ended by EndOfMessage, or by status 101; None when more bytes are needed."""
        try:
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise RemoteProtocolError(str(error)) from error
        if isinstance(event, h11.Response):
            check_framing(event)
        if isinstance(event, h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage):
            return event
        if isinstance(event, h11.ConnectionClosed):
            raise RemoteProtocolError("it closed the connection without an answer")
        return None

    @property
    def trailing_data(self) -> bytes:
        """What followed a response with status 101: the client's bytes."""
        return bytes(self._h11.trailing_data[0])

    def start_next_cycle(self) -> bool:
        """Get ready for the next request; False when the connection cannot be used again."""
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE or self._h11.trailing_data != (b"", False):
            return False
        self._h11.start_next_cycle()
        return True

    def _send(self, event: h11.Event) -> bytes:
        try:
            return self._h11.send(event) or b""
        except h11.LocalProtocolError as error:
            raise LocalProtocolError(str(error)) from error

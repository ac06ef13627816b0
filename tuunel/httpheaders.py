"""What a proxy changes in an HTTP message head on its way: RFC 9110 section 7.6 and RFC 9112 sections 3.2 and 6.

Source: docs/spec/front-doors.md section 5.
"""

import re
from base64 import b64decode
from binascii import Error as Base64Error
from typing import Final, TypeAlias

import h11

from tuunel.address import HostPort
from tuunel.errors import RemoteProtocolError, UsageError
from tuunel.frontdoor import Credentials, read_target, under_tuunel

Fields: TypeAlias = list[tuple[bytes, bytes]]

HTTP_PORT: Final = 80
MAX_FORWARDS_METHODS: Final = frozenset({b"OPTIONS", b"TRACE"})
MAX_FORWARDS_DIGITS: Final = 9  # more hops than any network has
_ORIGIN: Final = re.compile(rb"[a-z][a-z0-9+.-]*://([A-Za-z0-9._-]+)(?::[0-9]+)?")  # RFC 6454 section 6.2, names only
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Never removed because Connection names them: without these a message would mean something else to the next reader.
_ESSENTIAL: Final = frozenset({b"content-length", b"host"})
_NOT_IN_TRAILERS: Final = _ESSENTIAL | {b"authorization", b"cookie", b"set-cookie", b"trailer"}


def values(message: h11.Request | h11.Response | h11.InformationalResponse, name: bytes) -> list[bytes]:
    """Return the lower-case members of a comma-separated field, from all its lines."""
    lines = [value for field, value in message.headers if field == name]
    return [member.strip().lower() for line in lines for member in line.split(b",") if member.strip()]


def is_chunked(message: h11.Request | h11.Response) -> bool:
    """Whether the body is chunked: the only transfer coding that h11 lets through."""
    return bool(values(message, b"transfer-encoding"))


def check_framing(message: h11.Request | h11.Response) -> None:
    """Refuse a message whose end two readers could see in two places (request smuggling): RFC 9112 sections 6.1 and 6.3."""
    if not is_chunked(message):
        return
    if values(message, b"content-length"):
        raise RemoteProtocolError("both Content-Length and Transfer-Encoding")
    if message.http_version < b"1.1":
        raise RemoteProtocolError("Transfer-Encoding in an HTTP/1.0 message")


def read_absolute_target(target: bytes) -> tuple[HostPort, bytes, bytes]:
    """Take an absolute-form request target apart: where to, the authority as written (for Host), and the origin-form.

    RemoteProtocolError for any scheme but http, a user name in the address, a fragment, or no valid host.
    """
    text = target.decode("ascii")
    scheme, _, rest = text.partition("://")
    if scheme.lower() != "http":
        raise RemoteProtocolError(f"a proxy fetches http:// addresses only; {scheme.lower()[:20]}:// needs CONNECT")
    end = min((rest.find(mark) for mark in "/?#" if mark in rest), default=len(rest))
    authority, path = rest[:end], rest[end:]
    if "#" in path or "@" in authority:
        raise RemoteProtocolError("the address has a user name or a fragment, which must not be sent to a proxy")
    return _read_authority(authority, HTTP_PORT), authority.encode(), (path if path.startswith("/") else f"/{path}").encode()


def read_connect_target(target: bytes) -> HostPort:
    """Read CONNECT's `host:port`; the port must be there: RFC 9110 section 9.3.6."""
    return _read_authority(target.decode("ascii"), None)


def _read_authority(text: str, default_port: int | None) -> HostPort:
    # "host:" with an empty port means the default one (RFC 3986 section 3.2.3)
    try:
        address = HostPort.parse(text.removesuffix(":") if default_port else text, default_port)
    except UsageError as error:
        raise RemoteProtocolError("the target is no host with a port") from error
    return read_target(address.host, address.port)


def forwarded_request(request: h11.Request, authority: bytes, path: bytes) -> h11.Request:
    """Rewrite a request for its origin server: origin-form, Host from the address, hop-by-hop fields removed and made anew."""
    fields = end_to_end(request)
    if request.http_version < b"1.1":  # RFC 9110 section 10.1.1
        fields = [field for field in fields if field[0].lower() != b"expect"]
    if request.method in MAX_FORWARDS_METHODS:
        fields = [(name, str(int(value) - 1).encode() if name.lower() == b"max-forwards" else value) for name, value in fields]
    fields = [(b"Host", authority), *(field for field in fields if field[0].lower() != b"host")]
    options = []
    if is_chunked(request):
        fields.append((b"Transfer-Encoding", b"chunked"))
    if b"trailers" in values(request, b"te"):
        fields.append((b"TE", b"trailers"))
        options.append(b"TE")
    if protocols := upgrade(request):
        fields.append((b"Upgrade", protocols))
        options.append(b"Upgrade")
    if options:
        fields.append((b"Connection", b", ".join(options)))
    if request.method == b"OPTIONS" and path == b"/" and not request.target.endswith(b"/"):
        path = b"*"  # RFC 9112 section 3.2.4
    return h11.Request(method=request.method, target=path, headers=fields)


def ends_here(request: h11.Request) -> bool:
    """Whether Max-Forwards lets the request go no further: RFC 9110 section 7.6.2. RemoteProtocolError for what is no number."""
    if request.method not in MAX_FORWARDS_METHODS:
        return False
    hops = [value for name, value in request.headers if name == b"max-forwards"]  # one number, and no list of them
    if any(not hop.isdigit() or len(hop) > MAX_FORWARDS_DIGITS for hop in hops):
        raise RemoteProtocolError("Max-Forwards is no number")
    return any(int(hop) == 0 for hop in hops)


def upgrade(message: h11.Request | h11.Response | h11.InformationalResponse) -> bytes:
    """Return the protocols that the message really offers to change to; b"" for none.

    HTTP/1.0 cannot offer any, and h2c's settings are hop-by-hop, so that offer cannot be passed on.
    """
    if message.http_version < b"1.1" or b"upgrade" not in values(message, b"connection"):
        return b""
    lines = [value for field, value in message.headers if field == b"upgrade"]
    return b", ".join(member for line in lines for part in line.split(b",") if (member := part.strip()) and member.lower() != b"h2c")


def end_to_end(message: h11.Request | h11.Response | h11.InformationalResponse) -> Fields:
    """Return the fields that are meant for the far end, in their order and spelling: RFC 9110 section 7.6.1."""
    removed = (_HOP_BY_HOP | set(values(message, b"connection"))) - _ESSENTIAL
    return [(name, value) for name, value in message.headers.raw_items() if name.lower() not in removed]


def clean_trailers(end: h11.EndOfMessage) -> Fields:
    """Return the trailer fields that may be passed on: none that frames, routes or authorises (RFC 9110 section 6.5.1)."""
    return [(name, value) for name, value in end.headers.raw_items() if name.lower() not in _HOP_BY_HOP | _NOT_IN_TRAILERS]


def authorised(request: h11.Request, credentials: Credentials) -> bool:
    """Whether Proxy-Authorization carries the credentials, as Basic (RFC 7617)."""
    given = [value for field, value in request.headers if field == b"proxy-authorization"]
    scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    if scheme.lower() != b"basic":
        return False
    try:
        user, colon, password = b64decode(token.strip(), validate=True).partition(b":")
    except Base64Error:
        return False
    return bool(colon) and credentials.match(user, password)


def foreign_origin(request: h11.Request) -> bytes:
    """Return the Origin that is not under `.tuunel`; b"" when there is none. `null` is foreign."""
    for field, value in request.headers:
        if field == b"origin" and not ((origin := _ORIGIN.fullmatch(value)) and under_tuunel(origin[1].decode())):
            return value or b"(empty)"
    return b""

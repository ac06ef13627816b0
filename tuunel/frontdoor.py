"""The contract that all front doors keep: what a request is, who may ask, and how every failure is told.

Source: docs/spec/front-doors.md.
"""

import hmac
from base64 import b64encode
from dataclasses import dataclass, field
from hashlib import sha256
from html import escape
from typing import Final, Literal

from tuunel.address import MAX_PORT, TOP, HostPort
from tuunel.errors import Failure, Reason, RemoteProtocolError, Speaker, UsageError
from tuunel.proxystatus import printable

Door = Literal["socks5", "socks4a", "http-connect", "http", "forward"]
Opening = Literal["socks5", "socks4", "http"]

HEADER_DEADLINE: Final = 30.0  # seconds for a whole request head: a person's client needs one, a slow-loris gets no more
EARLY_LIMIT: Final = 65536  # bytes held while the target is dialled: the device holds as much (docs/spec/tunnel.md)


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks a front door for: a byte stream to `target`.

    `early` are the bytes that followed the request and belong to the target. `local` says that the client is on this machine
    (loopback or a unix socket).
    """

    target: HostPort
    door: Door
    early: bytes = b""
    local: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """A front door has refused by itself. The whole answer is in its `data_to_send`: send it, then close."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """The user name and password that a proxy demands."""

    user: str
    password: str = field(repr=False)

    def match(self, user: bytes, password: bytes) -> bool:
        """Compare both in constant time, whatever the lengths are."""
        pairs = ((user, self.user.encode()), (password, self.password.encode()))
        # digests have one length, and `&` asks for both: neither length nor the half that is wrong can be timed
        user_is_right, password_is_right = (hmac.compare_digest(sha256(given).digest(), sha256(known).digest()) for given, known in pairs)
        return user_is_right & password_is_right


def opening(first_byte: int) -> Opening:
    """Tell from a connection's first byte which protocol the client speaks. What is not SOCKS goes to HTTP, which refuses readably."""
    if first_byte == 0x05:
        return "socks5"
    return "socks4" if first_byte == 0x04 else "http"


def read_target(host: str, port: int) -> HostPort:
    """Check a host and port that a client sent. RemoteProtocolError for an empty or malformed host, a zone, or port 0."""
    if "%" in host:
        raise RemoteProtocolError("an address with a zone means nothing on another machine")
    if not 0 < port <= MAX_PORT:
        raise RemoteProtocolError(f"port {port} cannot be connected to")
    try:
        return HostPort.parse(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except UsageError as error:
        raise RemoteProtocolError("the host is no name and no IP address") from error


def under_tuunel(host: str) -> bool:
    """Whether `host` ends in `.tuunel`, well-formed or not."""
    return host.lower().removesuffix(".").rpartition(".")[2] == TOP


# -- the page that a person sees --

_TO_TARGET: Final = frozenset(
    {
        Reason.CONNECTION_REFUSED,
        Reason.HOST_UNREACHABLE,
        Reason.NET_UNREACHABLE,
        Reason.NAME_NOT_RESOLVED,
        Reason.CONNECT_TIMEOUT,
        Reason.BAD_RESPONSE,
    }
)
_HOPS: Final = {
    Reason.RELAY_UNREACHABLE: "between this proxy and the relay",
    Reason.RELAY_UNTRUSTED: "between this proxy and the relay",
    Reason.PEER_UNAVAILABLE: "between the relay and the device",
    Reason.OPEN_TIMEOUT: "between the relay and the device",
    Reason.PEER_MISMATCH: "between this proxy and the device",
    Reason.TUNNEL_LOST: "between this proxy and the device",
}
_SPEAKERS: Final = {Speaker.LOCAL: "at this proxy", Speaker.RELAY: "at the relay", Speaker.AGENT: "at the device"}


def failed_hop(failure: Failure) -> str:
    """Name the part of the way that failed, as in `between the relay and the device`."""
    if failure.reason in _TO_TARGET:
        return f"between {'the device' if failure.speaker is Speaker.AGENT else 'this proxy'} and the target"
    return _HOPS.get(failure.reason) or _SPEAKERS[failure.speaker]


_STYLE: Final = "body{font:16px/1.5 sans-serif;max-width:42em;margin:3em auto;padding:0 1em}code{overflow-wrap:anywhere}"


def failure_page(failure: Failure, target: str) -> str:
    """Write the HTML page for a failure on the way to `target`: what happened, which hop, the remedy. All text is escaped."""
    detail = printable(failure.detail)
    rows = [
        f"<h1>{escape(failure.answer.message)}</h1>",
        f"<p>Target: <code>{escape(printable(target))}</code></p>" if target else "",
        f"<p>Failed <strong>{failed_hop(failure)}</strong>.</p>",
        f"<p>{escape(detail)}</p>" if detail else "",
        f"<p>What to do: {escape(failure.answer.advice)}.</p>",
        f"<p><small>tuunel: {failure.reason}, said by {failure.speaker}</small></p>",
    ]
    return page(failure.answer.message, "\n".join(row for row in rows if row))


def page(title: str, body: str) -> str:
    """Wrap the escaped HTML `body` in a page that needs nothing from elsewhere."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def page_policy() -> str:
    """Return the Content-Security-Policy under which `page` works: nothing is loaded, no script runs, only the page's own style."""
    digest = b64encode(sha256(_STYLE.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

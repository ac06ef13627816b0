"""What a static forward is: where it listens, and what behind a device it leads to. Source: docs/spec/forward.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final

from tuunel.address import HostPort, parse_tuunel_name
from tuunel.errors import UsageError
from tuunel.policy import UNIX, read_unix_path

DEFAULT_BIND: Final = "127.0.0.1"
_EXAMPLE: Final = "write PORT:NAME.tuunel:PORT, for example 8080:home.tuunel:80"


@dataclass(frozen=True, slots=True)
class Destination:
    """A service behind a device: a port of `host`, over TCP or `udp`, or the unix socket `path` of the device's own machine.

    `host` is a well-formed name under `.tuunel` in lower case; `port` is 0 exactly where `path` is not empty. `str()` is what is shown.
    """

    host: str
    port: int
    path: str = ""
    udp: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{UNIX}{self.path}" if self.path else f"{self.host}:{self.port}{'/udp' if self.udp else ''}"


@dataclass(frozen=True, slots=True)
class Forwarding:
    """One static forward. `listen` is an address and port, or the path of a unix socket; its host is an IP address or `localhost`."""

    listen: HostPort | str
    to: Destination

    @classmethod
    def parse(cls, text: str) -> "Forwarding":
        """Read `[BIND:]PORT:HOST.NAME.tuunel:PORT[/udp]`; on either side a unix socket may stand: `/path` here, `unix:/path` there.

        Raises UsageError, and Failure(UNKNOWN_NAME) for a name under `.tuunel` that is malformed.
        """
        before, after = _split(text)
        listen = _read_listen(before, text)
        if not after:
            raise UsageError(f"{text!r} names no port to lead to", _EXAMPLE)
        forwarding = cls(listen, read_destination(after))
        if forwarding.to.udp and isinstance(forwarding.listen, str):
            raise UsageError(f"{text!r} cannot be forwarded: a unix socket here carries no UDP", "listen on a port")
        return forwarding


def parse_forwardings(texts: Sequence[str]) -> list[Forwarding]:
    """Read each with `Forwarding.parse`. UsageError when there is none, or two would listen in one place."""
    if not texts:
        raise UsageError("there is nothing to forward", _EXAMPLE)
    found: dict[tuple[object, bool], str] = {}
    forwardings = [Forwarding.parse(text) for text in texts]
    for text, forwarding in zip(texts, forwardings, strict=True):
        place = (forwarding.listen, forwarding.to.udp)
        if place in found and not _any_port(forwarding.listen):
            raise UsageError(f"{found[place]!r} and {text!r} listen in the same place", "give one of them another port")
        found[place] = text
    return forwardings


def read_destination(text: str) -> Destination:
    """Read `HOST.NAME.tuunel:PORT`, the same with `/udp`, or `NAME.tuunel:unix:/path`. Raises as `Forwarding.parse`."""
    host, _, service = text.partition(":")
    if service.startswith(UNIX):
        return _read_unix(host, service.removeprefix(UNIX))
    port, slash, protocol = service.partition("/")
    if slash and protocol != "udp":
        raise UsageError(f"{text!r} ends in an unknown protocol", "behind the port may stand /udp; without it the forward is TCP")
    if not port:
        raise UsageError(f"{text!r} names no port to lead to", _EXAMPLE)
    if not _is_number(port):
        raise UsageError(f"{text!r} needs a port at its end, and {port!r} is none", _EXAMPLE)
    target = HostPort.parse(f"{host}:{port}")
    if target.port == 0:
        raise UsageError(f"{text!r} cannot be reached: nothing listens on port 0", "name the port of the service, for example 80")
    return Destination(_read_name(host), target.port, udp=bool(slash))


def _read_unix(host: str, path: str) -> Destination:
    read_unix_path(path)
    if path.endswith("/udp"):
        raise UsageError(f"{path} cannot be reached: a unix socket carries no UDP", "leave /udp away")
    name = _read_name(host)
    parsed = parse_tuunel_name(name)
    if parsed is None or parsed.host:
        raise UsageError(
            f"{host} is another machine than the device: only the device's own unix sockets can be reached", "write NAME.tuunel"
        )
    return Destination(name, 0, path)


def _read_name(host: str) -> str:
    if parse_tuunel_name(host) is None:
        dotted = "." in host.rstrip(".")
        advice = f"write {host.rstrip('.')}{'.NAME' if dotted else ''}.tuunel" if host else _EXAMPLE
        raise UsageError(f"{host!r} is not a .tuunel name, and a forward leads nowhere else", advice)
    return host.lower().removesuffix(".")


def _split(text: str) -> tuple[str, str]:
    """The part before the colon behind which the destination stands, and the destination."""
    if text.startswith("["):
        bind, closed, rest = text.partition("]:")
        port, _, destination = rest.partition(":")
        if not closed:
            raise UsageError(f"{text!r} has no end of its IPv6 address", "write [ADDRESS]:PORT:NAME.tuunel:PORT")
        return f"{bind}]:{port}", destination
    first, _, rest = text.partition(":")
    if _is_number(first) or first.startswith("/"):
        return first, rest
    if "/" in first:
        raise UsageError(f"{first!r} is no place to listen on", "the path of a unix socket begins with /")
    port, _, destination = rest.partition(":")
    return f"{first}:{port}", destination


def _read_listen(before: str, text: str) -> HostPort | str:
    if before.startswith("/"):
        return before
    if _is_number(before):
        return HostPort.parse(f"{DEFAULT_BIND}:{before}")
    host, _, port = before.rpartition(":")
    if not host.startswith("[") and parse_tuunel_name(host) is not None:
        raise UsageError(f"{text!r} does not say where to listen", f"put a port in front: {port or 'PORT'}:{text}")
    if not _is_number(port):
        raise UsageError(f"{text!r} does not say on which port to listen", _EXAMPLE)
    listen = HostPort.parse(before)
    if listen.host == "localhost" or _is_address(listen.host):
        return listen
    raise UsageError(f"{host!r} is no address to listen on", "give an IP address of this machine, or localhost")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _is_address(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return not (isinstance(address, IPv6Address) and address.scope_id)


def _any_port(listen: HostPort | str) -> bool:
    return isinstance(listen, HostPort) and listen.port == 0

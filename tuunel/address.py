"""Host-and-port pairs, and the names under `.tuunel`: docs/spec/names.md sections 4 and 5."""

import re
import unicodedata
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, NamedTuple, Self

from tuunel.errors import Failure, Reason, UsageError

MAX_PORT: Final = 65535
MAX_HOST: Final = 253  # RFC 1035 section 2.3.4, without the length bytes
MAX_LABEL: Final = 63
TOP: Final = "tuunel"
IP6: Final = "ip6"
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9._])?")
_ZONE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")  # an interface, by number or name: 15 characters on Linux and BSD
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


class HostPort(NamedTuple):
    """A host and a port. `host` is a name, an IPv4 address or an IPv6 address without brackets; empty means the agent's own localhost."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Self:
        """Read `host:port` or `[ipv6]:port`; with `default_port` the port may be missing. Port 0 is read. UsageError says what is wrong."""
        if text.startswith("["):
            inside, closed, rest = text[1:].partition("]")
            if not closed or (rest and not rest.startswith(":")):
                raise UsageError(f"{text!r} is no address", "write an IPv6 address in brackets: [address]:port")
            return cls(_read_ipv6(inside, text), _read_port(rest[1:] if rest else None, default_port, text))
        if text.count(":") > 1:
            if default_port is None:
                raise UsageError(f"{text!r} is no address", "write an IPv6 address in brackets: [address]:port")
            return cls(_read_ipv6(text, text), default_port)
        host, colon, port = text.partition(":")
        if len(host) > MAX_HOST or not _HOST.fullmatch(host):
            raise UsageError(f"{text!r} is no address", "write HOST:PORT, where HOST is a name or an IP address")
        return cls(host, _read_port(port if colon else None, default_port, text))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _read_ipv6(text: str, whole: str) -> str:
    try:
        address = IPv6Address(text)
        if address.scope_id is not None and not _ZONE.fullmatch(address.scope_id):
            raise AddressValueError("a zone is the name or number of an interface")
        return str(address)
    except AddressValueError as error:
        raise UsageError(f"{whole!r} is no address: {text!r} is not IPv6", "write an IPv6 address in brackets: [address]:port") from error


def _read_port(text: str | None, default: int | None, whole: str) -> int:
    if text is None and default is not None:
        return default
    # isdecimal() alone would take the digits of other scripts
    if not text or not (text.isascii() and text.isdecimal()) or len(text) > 5 or int(text) > MAX_PORT:
        raise UsageError(f"{whole!r} needs a port from 0 to {MAX_PORT} at its end", "write HOST:PORT, as in host:80")
    return int(text)


class TuunelName(NamedTuple):
    """A name under `.tuunel`, taken apart, in lower case.

    `name` is the alias or device ID as typed (dashes kept). `host` is what to reach from there: a LAN name, an IPv4 address or an
    IPv6 address in its usual text; empty means the agent's own localhost.
    """

    name: str
    host: str


def parse_tuunel_name(host: str) -> TuunelName | None:
    """Take a host name under `.tuunel` apart; None when it is not under `.tuunel`.

    Any case, one trailing dot allowed. A malformed name under `.tuunel` is Failure(UNKNOWN_NAME), never None: it must not leak into DNS.
    """
    plain = _plain(host)
    if plain.rstrip(".").rpartition(".")[2] != TOP:
        return None
    plain = plain.removesuffix(".")
    labels = plain.split(".")
    if len(plain) > MAX_HOST:
        raise _malformed("the name is longer than 253 characters")
    *far, name = labels[:-1] or [""]
    if not name or name == IP6:
        raise _malformed(f"a device name is missing in front of .{TOP}")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise _malformed(f"{label!r} in {host!r} cannot be part of a name")
    if far[-1:] == [IP6]:
        return TuunelName(name, _decode_ip6(far[:-1]))
    if far and _NUMBER.fullmatch(far[-1]):
        return TuunelName(name, _check_ipv4(".".join(far)))
    return TuunelName(name, ".".join(far))


def _plain(host: str) -> str:
    """Fold what IDNA would fold: a name written with other full stops or letters must not slip past as a foreign name."""
    if not host.isascii():
        host = unicodedata.normalize("NFKC", host).replace("\N{IDEOGRAPHIC FULL STOP}", ".")
    return host.lower()


def ip6_label(address: IPv6Address) -> str:
    """Return the label that stands for `address` under `.ip6`, such as `fd00--1`.

    It starts and ends with a hex digit and has no `--` as third and fourth character, so that ssh and IDNA accept it: zeros are put in.
    UsageError for an address with a zone, which means nothing on another machine.
    """
    if address.scope_id is not None:
        raise UsageError(f"{address} has a zone, which only this machine understands", "write the address without it")
    label = _hex_text(address).replace(":", "-")
    label = f"{'0' if label.startswith('-') else ''}{label}{'0' if label.endswith('-') else ''}"
    return f"00{label}" if label[2:4] == "--" else label


def _hex_text(address: IPv6Address) -> str:
    head, _, last = str(address).rpartition(":")
    if "." not in last:
        return f"{head}:{last}"
    embedded = int(IPv4Address(last))  # Python 3.13 writes IPv4-mapped addresses with dots
    return f"{head}:{embedded >> 16:x}:{embedded & 0xFFFF:x}"


def _decode_ip6(labels: list[str]) -> str:
    text = ".".join(labels)
    try:
        address = IPv6Address(text.replace("-", ":"))
    except AddressValueError as error:
        raise _malformed(f"{text!r} in front of .ip6 is no IPv6 address with dashes for colons") from error
    if text[2:4] == "--":
        raise _malformed(f"write {ip6_label(address)}.ip6 for {address}: a label must not have -- at its third place")
    return str(address)


def _check_ipv4(text: str) -> str:
    try:
        return str(IPv4Address(text))
    except AddressValueError as error:
        raise _malformed(f"{text!r} is no IPv4 address") from error


def _malformed(detail: str) -> Failure:
    return Failure(Reason.UNKNOWN_NAME, detail=detail)

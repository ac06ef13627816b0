"""Whether a target may be dialled: target patterns, and the check of every resolved address. Pure; docs/spec/policy.md sections 3 and 4.

The agent resolves the name, asks here, and dials exactly an address that came back: what was checked is what is dialled.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

from tuunel.address import MAX_HOST, MAX_PORT
from tuunel.errors import Failure, Reason, Speaker, UsageError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_PATTERN: Final = 512  # a name of 253 characters and 40 ports
UNIX: Final = "unix:"
MAX_UNIX_PATH: Final = 107  # what the kernel's address of a unix socket holds
ALL_PORTS: Final = ((1, MAX_PORT),)
MAX_DETAIL: Final = 120  # characters of a grant's targets that an answer repeats: it must fit an ERROR record

LOCAL: Final[tuple[Network, ...]] = tuple(
    map(ip_network, ("127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
)

#: What no general pattern opens: only an address or a CIDR that lies inside the range does.
GUARDED: Final[tuple[tuple[str, Network], ...]] = tuple(
    (kind, ip_network(text))
    for kind, text in (
        ("link-local", "169.254.0.0/16"),
        ("link-local", "fe80::/10"),
        ("cloud metadata", "169.254.169.254/32"),  # AWS, Azure, Google Cloud, Oracle Cloud, DigitalOcean, ...
        ("cloud metadata", "169.254.170.2/32"),  # AWS ECS: credentials of the task
        ("cloud metadata", "169.254.170.23/32"),  # AWS EKS: credentials of the pod
        ("cloud metadata", "fd00:ec2::/32"),  # AWS over IPv6
        ("cloud metadata", "fd20:ce::254/128"),  # Google Cloud over IPv6
        ("cloud metadata", "100.100.100.200/32"),  # Alibaba Cloud
        ("cloud metadata", "168.63.129.16/32"),  # Azure's platform endpoint
        ("multicast", "224.0.0.0/4"),
        ("multicast", "ff00::/8"),
        ("broadcast", "255.255.255.255/32"),
        ("unspecified", "0.0.0.0/8"),  # the kernel takes 0.0.0.0 for this machine
        ("unspecified", "::/128"),
        ("translated", "64:ff9b:1::/48"),  # RFC 8215: where in it the IPv4 address stands is the network's own choice
    )
)

_GUARDED_OF: Final = {version: tuple(each for each in GUARDED if each[1].version == version) for version in (4, 6)}

_NAT64: Final = IPv6Network("64:ff9b::/96")
_IPV4_COMPATIBLE: Final = IPv6Network("::/96")
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_LOOPBACKS: Final[tuple[Network, ...]] = (IPv4Network("127.0.0.1/32"), IPv6Network("::1/128"))
_NAME: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_ENDS_IN_NUMBER: Final = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the agent's machine is made of, as far as policy must know it.

    `networks`: the prefixes on its interfaces. `relay`: addresses and ports of its relay. `listeners`: every address and port on which
    a tuunel of this machine listens; the unspecified address stands for any address.
    """

    networks: tuple[Network, ...] = ()
    relay: tuple[tuple[Address, int], ...] = ()
    listeners: tuple[tuple[Address, int], ...] = ()


class Scope(Enum):
    """What the part of a pattern before its ports means."""

    LOCAL = auto()  #: `*`: this machine and the networks around it
    INTERNET = auto()  #: `internet`: the rest
    NETWORK = auto()  #: addresses: matches what the name resolved to
    NAME = auto()  #: a name: matches what was asked for
    SUBDOMAINS = auto()  #: `*.name`: any name below
    UNIX = auto()  #: `unix:/path`: one unix socket of this machine, and no address


@dataclass(frozen=True, slots=True)
class TargetPattern:
    """One target pattern, taken apart. `str()` is its normal spelling."""

    text: str
    scope: Scope
    ports: tuple[tuple[int, int], ...]  #: ranges, both ends included
    networks: tuple[Network, ...] = ()
    name: str = ""  #: of the host, or the path of the unix socket

    def __str__(self) -> str:
        return self.text

    def covers_port(self, port: int) -> bool:
        """Tell whether the port is in one of the ranges."""
        return any(first <= port <= last for first, last in self.ports)

    def matches(self, name: str, address: Address, port: int, around: Surroundings) -> bool:
        """Tell whether the pattern covers this address, found under this name (lower case, no trailing dot), and port."""
        if not self.covers_port(port):
            return False
        match self.scope:
            case Scope.LOCAL | Scope.INTERNET:
                return _is_local(address, around) == (self.scope is Scope.LOCAL)
            case Scope.NETWORK:
                return any(address in network for network in self.networks)
            case Scope.NAME:
                return name == self.name
            case Scope.SUBDOMAINS:
                return name.endswith(f".{self.name}")
            case Scope.UNIX:
                return False

    def names(self, guard: "_Guard", address: Address, port: int) -> bool:
        """Tell whether the pattern names this guarded address explicitly, not as a part of something larger."""
        if self.scope is not Scope.NETWORK or not self.covers_port(port):
            return False
        if guard.endpoint and (port, port) not in self.ports:
            return False
        return any(address in network and _inside(network, guard.network) for network in self.networks)


@dataclass(frozen=True, slots=True)
class _Guard:
    """A reason why general patterns do not open an address. For an endpoint the port must be named as well."""

    kind: str
    network: Network
    endpoint: bool = False


@lru_cache(maxsize=4096)
def parse_target_pattern(text: str) -> TargetPattern:
    """Read one target pattern: `*`, `internet`, a name, `*.name`, an address or a CIDR, then `:ports` or nothing for all ports.

    Ports are numbers and ranges with commas between: `22`, `80,443`, `1000-2000`. IPv6 with ports stands in brackets. `localhost`
    stands for 127.0.0.1 and ::1. `unix:/path` is a unix socket. UsageError says what is wrong.
    """
    plain = text.strip()
    if len(plain) > MAX_PATTERN:
        raise UsageError(f"a target pattern has at most {MAX_PATTERN} characters", "give several: --target can be repeated")
    normal = plain.lower()
    if normal.startswith(UNIX):
        path = read_unix_path(plain[len(UNIX) :])
        return TargetPattern(f"{UNIX}{path}", Scope.UNIX, (), name=path)
    where, ports_text = _split(normal)
    ports = ALL_PORTS if ports_text is None else _read_ports(ports_text, normal)
    return _read_where(where, ports, normal)


def _read_where(where: str, ports: tuple[tuple[int, int], ...], normal: str) -> TargetPattern:
    if where == "*":
        return TargetPattern(normal, Scope.LOCAL, ports)
    if where == "internet":
        return TargetPattern(normal, Scope.INTERNET, ports)
    if where == "localhost":
        return TargetPattern(normal, Scope.NETWORK, ports, _LOOPBACKS)
    if ":" in where or "/" in where or _ENDS_IN_NUMBER.fullmatch(where):
        return TargetPattern(normal, Scope.NETWORK, ports, (_read_network(where),))
    if where.startswith("*."):
        return TargetPattern(normal, Scope.SUBDOMAINS, ports, name=_read_name(where[2:], normal))
    return TargetPattern(normal, Scope.NAME, ports, name=_read_name(where, normal))


def allowed_addresses(patterns: Sequence[str], host: str, port: int, resolved: Sequence[Address], around: Surroundings) -> list[Address]:
    """Return those of the `resolved` addresses of `host` that may be dialled, in their order and as they were given.

    An address that carries an IPv4 address inside is allowed only when both are. `host` is the name asked for, empty for the agent's
    own localhost. Failure(POLICY_DENIED, speaker AGENT) when none is left.
    """
    parsed = [parse_target_pattern(text) for text in patterns]
    asked = host.lower().removesuffix(".")
    name = asked if _NAME.fullmatch(asked) else ""  # "::1%.lab" ends in ".lab" and is no name: no name pattern may match it
    allowed = [address for address in resolved if all(_permits(parsed, name, face, port, around) for face in _faces(address))]
    if not allowed:
        raise Failure(Reason.POLICY_DENIED, Speaker.AGENT, _why(parsed, port, resolved, around))
    return allowed


def allowed_unix(patterns: Sequence[str], path: str) -> None:
    """Return when a pattern names exactly this path of a unix socket; no other pattern opens one. Failure as `allowed_addresses`."""
    parsed = [parse_target_pattern(text) for text in patterns]
    if not any(pattern.scope is Scope.UNIX and pattern.name == path for pattern in parsed):
        raise Failure(Reason.POLICY_DENIED, Speaker.AGENT, f"{_covered(parsed)}; a unix socket only where a target names it")


def _permits(patterns: Sequence[TargetPattern], name: str, address: Address, port: int, around: Surroundings) -> bool:
    guards = list(_guards(address, port, around))
    if guards:
        return all(any(pattern.names(guard, address, port) for pattern in patterns) for guard in guards)
    return any(pattern.matches(name, address, port, around) for pattern in patterns)


def _guards(address: Address, port: int, around: Surroundings) -> Iterator[_Guard]:
    yield from _guards_anywhere(address)
    for network in around.networks:
        if network.version == 4 and network.prefixlen < 31 and address in (network.broadcast_address, network.network_address):
            # the all-zeros host is the broadcast address of old, and kernels still know it
            yield _Guard("broadcast", ip_network(address))
    if any(port == relay_port and address in _faces(relay) for relay, relay_port in around.relay):
        yield _Guard("the relay", ip_network(address), endpoint=True)
    if any(port == own_port and _is_at(own, address) for own, own_port in around.listeners):
        yield _Guard("tuunel's own port", ip_network(address), endpoint=True)


@lru_cache(maxsize=1024)
def _guards_anywhere(address: Address) -> tuple[_Guard, ...]:
    """What guards the address on every machine: the same few are asked for at every open."""
    return tuple(_Guard(kind, network) for kind, network in _GUARDED_OF[address.version] if address in network)


def _is_at(listener: Address, address: Address) -> bool:
    faces = _faces(listener)
    return address in faces or any(face.is_unspecified for face in faces)


@lru_cache(maxsize=1024)
def _faces(address: Address) -> tuple[Address, ...]:
    """Return every address that a packet to `address` may end up at, without zones."""
    if isinstance(address, IPv4Address):
        return (address,)
    plain = IPv6Address(int(address))
    if plain.ipv4_mapped is not None:
        return (plain.ipv4_mapped,)  # the kernel speaks IPv4 to it
    if plain.sixtofour is not None:
        return (plain, plain.sixtofour)
    if plain in _NAT64 or (plain in _IPV4_COMPATIBLE and not plain.is_loopback and not plain.is_unspecified):
        return (plain, IPv4Address(int(plain) & 0xFFFFFFFF))
    return (plain,)


def _is_local(address: Address, around: Surroundings) -> bool:
    # a prefix of length 0 would make the whole internet local
    return any(address in network for network in LOCAL) or any(address in network for network in around.networks if network.prefixlen)


def _inside(inner: Network, outer: Network) -> bool:
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def _why(patterns: Sequence[TargetPattern], port: int, resolved: Sequence[Address], around: Surroundings) -> str:
    faces = [face for address in resolved for face in _faces(address)]
    kinds = [guard.kind for face in faces for guard in _guards(face, port, around)]
    if kinds:
        return f"{_covered(patterns)}; {kinds[0]} only where a target names it"
    if any(pattern.scope is Scope.LOCAL for pattern in patterns) and not all(_is_local(face, around) for face in faces):
        return f"{_covered(patterns)}; '*' does not include the Internet, a grant of 'internet' would"
    return _covered(patterns)


def _covered(patterns: Sequence[TargetPattern]) -> str:
    covered = ", ".join(map(str, patterns)) or "nothing"
    if len(covered) > MAX_DETAIL:
        covered = f"{covered[:MAX_DETAIL]}..."
    return f"it grants {covered}"


def _split(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        where, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")) or ":" not in where:
            raise _bad(text)
        return where, rest[1:] if rest else None
    if text.count(":") > 1:
        return text, None
    where, colon, ports = text.partition(":")
    return where, ports if colon else None


def _read_ports(text: str, whole: str) -> tuple[tuple[int, int], ...]:
    ranges = []
    for item in text.split(","):
        first, dash, last = item.partition("-")
        low, high = _read_port(first, whole), _read_port(last if dash else first, whole)
        if low > high:
            raise UsageError(f"{item!r} in the target pattern {whole!r} is no range", "write the smaller port first")
        ranges.append((low, high))
    return tuple(ranges)


def _read_port(text: str, whole: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= MAX_PORT:
        advice = "write ports as 22, 80,443 or 1000-2000"
        raise UsageError(f"{text!r} in the target pattern {whole!r} is no port from 1 to {MAX_PORT}", advice)
    return int(text)


def _read_network(text: str) -> Network:
    try:
        network = ip_network(text)
    except ValueError as error:
        try:
            advice = f"write {ip_network(text, strict=False)}, or the address alone"
        except ValueError:
            advice = "write an address like 192.168.1.10, or a range like 192.168.1.0/24 or fd00::/8"
        raise UsageError(f"{text!r} is no address and no range of addresses", advice) from error
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        raise UsageError(f"{text!r} is IPv4 in the clothes of IPv6", "write the IPv4 address")
    if isinstance(network.network_address, IPv6Address) and network.network_address.scope_id is not None:
        raise UsageError(f"{text!r} has a zone", "write the address without it")
    return network


def read_unix_path(text: str) -> str:
    """Check the path of a unix socket: absolute, without detours, as CONNECT can carry it. UsageError says what is wrong."""
    root, *parts = text.split("/")
    if root or not parts or any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{text!r} is no path of a unix socket", "write it from the root and without detours, as in unix:/run/docker.sock")
    if len(text) > MAX_UNIX_PATH or not all("!" <= character <= "~" for character in text):
        advice = "let the service listen under a shorter, plain path"
        raise UsageError(f"the path of a unix socket has at most {MAX_UNIX_PATH} characters of ASCII, and no spaces", advice)
    return text


def _read_name(text: str, whole: str) -> str:
    name = text.removesuffix(".")
    if len(name) > MAX_HOST or not _NAME.fullmatch(name) or _ENDS_IN_NUMBER.fullmatch(name):
        raise _bad(whole)
    return name


def _bad(text: str) -> UsageError:
    return UsageError(
        f"{text!r} is no target pattern", "write *, internet, host:port, *.domain:443, a range like 192.168.1.0/24:22,80-90, or unix:/path"
    )

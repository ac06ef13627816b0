"""Where a destination goes: through which device and to which host there, directly, or nowhere.

Source: docs/spec/names.md (names), docs/spec/front-doors.md (routes).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from tuunel.address import parse_tuunel_name
from tuunel.devices import Device, Devices
from tuunel.errors import Failure, Reason, UsageError


@dataclass(frozen=True, slots=True)
class ThroughDevice:
    """The destination lies behind `device`; `host` is what its agent is asked for ("" is the agent's own localhost)."""

    device: Device
    host: str


@dataclass(frozen=True, slots=True)
class Route:
    """Hosts that keep their ordinary names but go through the device called `name`: a host, `*.suffix`, or a network."""

    pattern: str
    network: IPv4Network | IPv6Network | None
    name: str

    @classmethod
    def parse(cls, text: str) -> "Route":
        """Read `PATTERN=NAME` or `CIDR=NAME`; raises UsageError."""
        pattern, equals, name = text.rpartition("=")
        if not (equals and pattern and name):
            raise UsageError(f"{text!r} is not a route", "write PATTERN=NAME, for example '*.lab.example.com=home' or 192.168.1.0/24=home")
        try:
            return cls(pattern, ip_network(pattern), name)
        except ValueError:
            pass
        host = pattern.lower().rstrip(".")
        if "/" in host or "*" in host.removeprefix("*.") or not host.removeprefix("*."):
            raise UsageError(f"{pattern!r} is no host name, *.suffix or network", "an asterisk stands for whole labels at the start only")
        if parse_tuunel_name(host) is not None:
            raise UsageError(f"{pattern!r} cannot be routed", "names under .tuunel name their device themselves")
        return cls(host, None, name)

    def __str__(self) -> str:
        return f"{self.network or self.pattern}={self.name}"

    def matches(self, host: str) -> bool:
        """Whether `host`, a lower-case name without trailing dot or an IP address, takes this route."""
        if self.network is not None:
            try:
                return ip_address(host) in self.network
            except ValueError:
                return False
        if self.pattern.startswith("*."):
            return host.endswith(self.pattern[1:])
        return host == self.pattern


def parse_other(text: str) -> str:
    """The way for other destinations as it is: "direct", "refuse" or "via:NAME". Raises UsageError."""
    if text not in {"direct", "refuse"} and not text.removeprefix("via:"):
        raise UsageError("via: needs the name of a device", "for example --other via:home")
    if text not in {"direct", "refuse"} and not text.startswith("via:"):
        raise UsageError(f"{text!r} is no way for other destinations", "use direct, refuse or via:NAME")
    return text


class Routing:
    """Decides for each destination; `other` ("direct", "refuse" or "via:NAME") is for what is no .tuunel name and takes no route."""

    def __init__(self, devices: Devices, other: str = "direct", routes: Sequence[Route] = ()) -> None:
        self._devices = devices
        self._other = parse_other(other)
        self.routes = tuple(routes)

    def unusable(self) -> list[str]:
        """One sentence for each route, and for `other`, whose device cannot be asked for now. A device may come later."""
        named = [(f"--route {route.pattern}={route.name}", route.name) for route in self.routes]
        if self._other.startswith("via:"):
            named.append((f"--other {self._other}", self._other.removeprefix("via:")))
        sentences = []
        for option, name in named:
            try:
                self._devices.resolve(name)
            except Failure as failure:
                sentences.append(f"{option} leads nowhere yet: {failure}")
        return sentences

    def decide(self, host: str) -> ThroughDevice | None:
        """The device and host behind it that `host` means; None to dial it directly.

        Raises Failure UNKNOWN_NAME, NOT_PAIRED or REFUSED_BY_SETTING.
        """
        if (name := parse_tuunel_name(host)) is not None:
            return ThroughDevice(self._devices.resolve(name.name), name.host)
        plain = host.lower().rstrip(".")
        route = self.route_of(plain)
        if route is not None:
            return ThroughDevice(self._devices.resolve(route.name), plain)
        if self._other == "direct":
            return None
        if self._other == "refuse":
            raise Failure(Reason.REFUSED_BY_SETTING, detail=host)
        return ThroughDevice(self._devices.resolve(self._other.removeprefix("via:")), plain)

    def route_of(self, host: str) -> Route | None:
        """The route that `host` takes, in lower case and without a trailing dot; None for what takes none."""
        return next((route for route in self.routes if route.matches(host)), None)


def resolve_name(devices: Devices, host: str) -> tuple[Device, str]:
    """The device that a .tuunel name means, and the host behind it. Raises Failure UNKNOWN_NAME or NOT_PAIRED."""
    name = parse_tuunel_name(host)
    if name is None:
        raise Failure(Reason.UNKNOWN_NAME, detail=f"{host} is not under .tuunel")
    return devices.resolve(name.name), name.host

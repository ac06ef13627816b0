"""The networks that this machine is part of, which is what `*` in a grant means beside loopback and the private ranges."""

import time
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Final

import ifaddr

Network = IPv4Network | IPv6Network
MAX_AGE: Final = 5.0  #: seconds that an answer is good for: asking the kernel at every open would cost more than the open


class Interfaces:
    """Knows the prefixes on this machine's interfaces, at most MAX_AGE seconds late."""

    def __init__(self) -> None:
        self._known: tuple[Network, ...] = ()
        self._asked = float("-inf")

    def networks(self) -> tuple[Network, ...]:
        """The prefix of every address on every interface. Routes do not count: the default route of a VPN is not a network of ours.

        While nothing has changed it is the same object, which is compared fast.
        """
        if time.monotonic() - self._asked > MAX_AGE:
            known = tuple(_network(address) for adapter in ifaddr.get_adapters() for address in adapter.ips)
            if known != self._known:
                self._known = known
            self._asked = time.monotonic()
        return self._known


def _network(address: ifaddr.IP) -> Network:
    if isinstance(address.ip, str):
        return IPv4Interface((address.ip, address.network_prefix)).network
    return IPv6Interface((address.ip[0], address.network_prefix)).network

"""What the forward proxy may dial directly, from this machine. Source: docs/spec/front-doors.md (direct destinations)."""

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from tuunel.errors import Failure, Reason
from tuunel.policy import GUARDED

Address = IPv4Address | IPv6Address


def direct_addresses(addresses: Sequence[Address], port: int, *, own_ports: Sequence[int], client_is_local: bool) -> list[Address]:
    """Those of `addresses` that may be dialled: never this proxy itself, and for a client from elsewhere neither loopback nor
    what policy guards: link-local and cloud metadata.

    Raises Failure REFUSED_BY_SETTING when none is left.
    """
    allowed = [address for address in addresses if _may_dial(address, port, own_ports, client_is_local=client_is_local)]
    if not allowed:
        raise Failure(
            Reason.REFUSED_BY_SETTING,
            detail="the proxy dials neither itself nor, for a client elsewhere, what only this machine should reach",
        )
    return allowed


def _may_dial(address: Address, port: int, own_ports: Sequence[int], *, client_is_local: bool) -> bool:
    plain = (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
    if plain.is_unspecified or plain.is_multicast:
        return False
    if port in own_ports and _is_this_machine(plain):
        return False
    return client_is_local or not (plain.is_loopback or any(plain in network for _, network in GUARDED))


def _is_this_machine(address: Address) -> bool:
    # only an address of this machine can be bound; asking the kernel beats comparing with a list that may be out of date
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True

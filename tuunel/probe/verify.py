"""`tuunel verify`: whom a name means on this machine, as device or as client, and the digits to compare with the other machine.

Source: docs/spec/names.md section 7.
"""

import difflib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tuunel import control
from tuunel.address import TOP
from tuunel.devices import LOOKS_LIKE_ID, Devices
from tuunel.errors import Failure, NotRunning, Reason, UsageError
from tuunel.grants import Grants
from tuunel.identity import DeviceID, IdentityKey
from tuunel.settings import Home
from tuunel.verification import verification


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody whose key this machine knows: a `device` that it reaches, or a `client` that may come in; `unnamed` for a bare ID."""

    name: str
    kind: Literal["device", "client", "unnamed"]
    device: DeviceID


@dataclass(frozen=True, slots=True)
class Verification:
    """The digits for this machine and `peer`."""

    own: DeviceID
    peer: Peer
    digits: str


def verify(home: Home, who: str) -> Verification:
    """Work out the digits for a device's or client's name, or a device ID. Nothing is asked of another machine.

    UsageError when the name means two machines; Failure(UNKNOWN_NAME), with the nearest known one, when it means none.
    """
    home.ensure()
    own = IdentityKey.load_or_create(home.identity_key).device_id
    peer = find_peer(home, who)
    if peer.device == own:
        raise UsageError(f"{who} is this machine itself", "name the other one: see 'tuunel devices' and 'tuunel clients'")
    return Verification(own, peer, verification(own, peer.device))


def find_peer(home: Home, who: str) -> Peer:
    """Whom `who` means. Raises as `verify`."""
    wanted = who.strip().casefold().removesuffix(f".{TOP}")
    known = list(known_peers(home))
    found = [peer for peer in known if peer.name.casefold() == wanted]
    if len({peer.device for peer in found}) > 1:
        raise UsageError(f"{who!r} is the name of a device and of another client here", "give the device ID instead")
    if found:
        return found[0]
    try:
        device = DeviceID.parse(wanted)
    except UsageError as error:
        detail = str(error) if len(wanted) >= LOOKS_LIKE_ID else _nearest(wanted, known)
        raise Failure(Reason.UNKNOWN_NAME, detail=detail) from error
    return next((peer for peer in known if peer.device == device), Peer(str(device), "unnamed", device))


def known_peers(home: Home) -> Iterator[Peer]:
    """The devices of this machine, and the clients of its agent: those that a running agent tells, else those of its book."""
    for device in Devices(home.devices_file).devices():
        yield Peer(device.name, "device", device.id)
    try:
        for client in control.call(home.socket("agent"), "clients")["clients"]:
            yield Peer(client["name"], "client", DeviceID.parse(client["device_id"]))
    except NotRunning:
        for grant in Grants(home.grants_file).grants(int(time.time())):
            yield Peer(grant.name, "client", grant.device)


def _nearest(wanted: str, known: list[Peer]) -> str:
    near = difflib.get_close_matches(wanted, [peer.name.casefold() for peer in known], n=1)
    return f"{wanted!r}; did you mean {near[0]!r}?" if near else repr(wanted)

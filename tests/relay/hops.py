"""Both ends of a hop with fixed keys and clocks, and ways to connect them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from tuunel.address import HostPort
from tuunel.identity import IdentityKey
from tuunel.relay.certificates import RelayCredentials, make_leaf, make_root
from tuunel.relay.handshake import DeviceHandshake, DeviceIdentified, Register, RelayHandshake, Welcomed
from tuunel.relay.protocol import HopChannel
from tuunel.relay.wire import Limits, Message, Open, Params, Purpose, Role

NOW = 1_800_000_000
LIMITS = Limits(ready=64, dial=64, pipes=1024)
OBSERVED = HostPort("203.0.113.7", 50123)
INSTANCE = bytes(range(16))
TOKEN = b"enrolment token!"


def key(value: int) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(value, ec.SECP256R1())


IDENTITY = IdentityKey.from_private_value(0x1D)
AGENT = IdentityKey.from_private_value(0xA6)
ROOT = make_root(key(0x5001), NOW)
CREDENTIALS = make_leaf(ROOT, key(0x5002), NOW)
OTHER_ROOT = make_root(key(0x6001), NOW)

OFFER = bytes([1]) + bytes(range(65)) + b"k" * 1353
OPEN = bytes([1, 0]) + AGENT.device_id.raw + bytes(range(65))
OPEN_WITH_INVITE = bytes([1, 1]) + AGENT.device_id.raw + bytes(range(65)) + b"invite-1"

ROLES = {Purpose.CONTROL: Role.AGENT, Purpose.READY: Role.AGENT, Purpose.DIAL: Role.FORWARD}


def device(purpose: Purpose = Purpose.CONTROL, **changes: Any) -> DeviceHandshake:
    arguments: dict[str, Any] = {
        "pin": ROOT.relay_id,
        "identity": IDENTITY,
        "register": Register(TOKEN, "home"),
        "purpose": purpose,
        "params": Params(ROLES[purpose], INSTANCE),
        "random": lambda length: b"D" * length,
        "ephemeral": lambda: key(0xD1),
        "now": NOW,
    }
    return DeviceHandshake(**(arguments | changes))


def relay(credentials: RelayCredentials = CREDENTIALS, **changes: Any) -> RelayHandshake:
    arguments: dict[str, Any] = {
        "credentials": credentials,
        "random": lambda length: b"R" * length,
        "ephemeral": lambda: key(0xE1),
        "now": NOW,
        "limits": LIMITS,
        "observed": OBSERVED,
    }
    return RelayHandshake(**(arguments | changes))


@dataclass
class Flights:
    """The four flights of one good handshake, for tests that spoil them."""

    m1: bytes
    m2: bytes
    m3: bytes
    m4: bytes

    def spoilt(self, name: str, data: bytes) -> "Flights":
        return replace(self, **{name: data})


def shake_hands(d: DeviceHandshake, r: RelayHandshake) -> tuple[HopChannel, HopChannel, Flights]:
    """Run a handshake that must succeed: the device's channel, the relay's, and what was said."""
    m1 = d.data_to_send()
    r.receive_data(m1)
    assert r.next_event() is None
    m2 = r.data_to_send()
    d.receive_data(m2)
    assert d.next_event() is not None
    m3 = d.data_to_send()
    r.receive_data(m3)
    identified = r.next_event()
    assert isinstance(identified, DeviceIdentified)
    r.verify(identified.public_key or IDENTITY.public_bytes)
    m4 = r.welcome()
    d.receive_data(m4)
    welcomed = d.next_event()
    assert isinstance(welcomed, Welcomed)
    return welcomed.channel, r.channel, Flights(m1, m2, m3, m4)


def channels(purpose: Purpose, first: Sequence[Message] = (), **changes: Any) -> tuple[HopChannel, HopChannel]:
    """The two ends of a fresh hop connection."""
    d, r, _ = shake_hands(device(purpose, register=None, first=first, **changes), relay())
    return d, r


def tell(sender: HopChannel, receiver: HopChannel, message: Message) -> None:
    """Send a message that must arrive as it is."""
    receiver.receive_data(sender.send(message))
    assert receiver.next_event() == message


def opening() -> tuple[HopChannel, HopChannel]:
    """The two ends of a DIAL connection whose OPEN waits for its answer."""
    d, r = channels(Purpose.DIAL)
    tell(d, r, Open(OPEN))
    return d, r


def cut(data: bytes, points: Iterable[int]) -> Iterator[bytes]:
    """`data` in pieces that end at `points`."""
    start = 0
    for point in [*sorted({point % (len(data) + 1) for point in points}), len(data)]:
        if point > start:
            yield data[start:point]
            start = point

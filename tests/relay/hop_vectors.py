"""The frozen vectors of the hop, tests/vectors/hop.json: what goes in, and the bytes that the product must make of it.

`python -m tests.relay.hop_vectors` writes them anew. Do that only for a new protocol version: they are what other implementations build on.
The secrets in the file do not come from the product but from `independent_hop`, which shares no code with it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.relay.hops import AGENT, IDENTITY, INSTANCE, LIMITS, NOW, OBSERVED, OFFER, OPEN_WITH_INVITE, TOKEN, key
from tests.relay.independent_hop import derive
from tuunel.errors import Reason
from tuunel.identity import IdentityKey
from tuunel.relay.certificates import RelayCredentials, make_leaf, make_root
from tuunel.relay.handshake import DeviceHandshake, Register, RelayHandshake, Welcomed
from tuunel.relay.protocol import HopChannel
from tuunel.relay.wire import (
    Admission,
    Demand,
    DropToken,
    HopError,
    Message,
    Mint,
    Minted,
    Notice,
    Offer,
    Open,
    PairedAgent,
    PairedForward,
    Params,
    Ping,
    Pong,
    Purpose,
    Role,
    Switch,
    Unenrol,
    tunnel_id,
)

PATH = Path(__file__).parent.parent / "vectors" / "hop.json"
ROOT_KEY, LEAF_KEY, DEVICE_EPHEMERAL, RELAY_EPHEMERAL, CLIENT, AGENT_KEY = 0x5001, 0x5002, 0xD1, 0xE1, 0x1D, 0xA6


@dataclass(frozen=True)
class Case:
    """One connection: how it starts, and what is said on it, in order; True for the device's messages."""

    name: str
    identity: IdentityKey
    register: Register | None
    purpose: Purpose
    role: Role
    first: tuple[Message, ...]
    said: tuple[tuple[bool, Message], ...]
    refusal: HopError | None = None  #: what the relay says in place of WELCOME


PING = Ping(b"pingpong")
PONG = Pong(b"pingpong")
CASES = (
    Case(
        "register, CONTROL of an agent",
        AGENT,
        Register(TOKEN, "home"),
        Purpose.CONTROL,
        Role.AGENT,
        (Admission(True, True, False, (IDENTITY.device_id,), (b"invite-1",), ()),),
        (
            (True, PING),
            (False, PONG),
            (False, Demand(8)),
            (True, Mint(7, b"h" * 32, b"invite-1", 1, NOW + 900)),
            (False, Minted(7)),
            (True, DropToken(b"h" * 32)),
            (True, Unenrol(IDENTITY.device_id)),
            (False, Notice(Reason.DEVICE_BANNED, "abcdefgh", "by the operator")),
        ),
    ),
    Case(
        "login, READY",
        AGENT,
        None,
        Purpose.READY,
        Role.AGENT,
        (Offer(OFFER),),
        ((False, PING), (True, PONG), (False, PairedAgent(IDENTITY.public_bytes, OPEN_WITH_INVITE)), (True, Switch())),
    ),
    Case(
        "login, DIAL",
        IDENTITY,
        None,
        Purpose.DIAL,
        Role.FORWARD,
        (Open(OPEN_WITH_INVITE),),
        ((False, HopError(Reason.OPEN_TIMEOUT, 1, "again")), (True, Open(OPEN_WITH_INVITE)), (False, PairedForward(OFFER))),
    ),
    Case("login refused", AGENT, None, Purpose.CONTROL, Role.AGENT, (), (), HopError(Reason.DEVICE_UNKNOWN, 0, "not enrolled here")),
)


def run(case: Case, chain: tuple[bytes, ...], pin: bytes) -> dict[str, Any]:
    """Every byte that the product says in this case."""
    device = DeviceHandshake(
        pin=pin,
        identity=case.identity,
        register=case.register,
        purpose=case.purpose,
        params=Params(case.role, INSTANCE),
        random=lambda length: b"D" * length,
        ephemeral=lambda: key(DEVICE_EPHEMERAL),
        now=NOW,
        first=case.first,
    )
    relay = RelayHandshake(
        credentials=RelayCredentials(key(LEAF_KEY), chain, pin, 0),
        random=lambda length: b"R" * length,
        ephemeral=lambda: key(RELAY_EPHEMERAL),
        now=NOW,
        limits=LIMITS,
        observed=OBSERVED,
    )
    flights = {"M1": device.data_to_send()}
    relay.receive_data(flights["M1"])
    relay.next_event()
    flights["M2"] = relay.data_to_send()
    device.receive_data(flights["M2"])
    device.next_event()
    flights["M3 and first messages"] = device.data_to_send()
    relay.receive_data(flights["M3 and first messages"])
    relay.next_event()
    if case.refusal is not None:
        flights["M4"] = relay.refuse(case.refusal.reason, case.refusal.retry_after, case.refusal.detail)
        return _told(case, flights, [])
    relay.verify(case.identity.public_bytes)
    flights["M4"] = relay.welcome()
    device.receive_data(flights["M4"])
    welcomed = device.next_event()
    assert isinstance(welcomed, Welcomed)
    for message in case.first:
        assert relay.channel.next_event() == message
    records = [converse(welcomed.channel, relay.channel, by_device, message) for by_device, message in case.said]
    return _told(case, flights, records)


def _told(case: Case, flights: dict[str, bytes], records: list[dict[str, str]]) -> dict[str, Any]:
    return {"name": case.name, "flights": {name: data.hex() for name, data in flights.items()}, "records": records}


def converse(device: HopChannel, relay: HopChannel, by_device: bool, message: Message) -> dict[str, str]:
    sender, receiver = (device, relay) if by_device else (relay, device)
    record = sender.send(message)
    receiver.receive_data(record)
    assert receiver.next_event() == message
    return {"from": "device" if by_device else "relay", "message": type(message).__name__, "record": record.hex()}


def inputs() -> dict[str, Any]:
    """Private values, randoms and the certificate chain, which is stored: its signatures need not be deterministic."""
    credentials = make_leaf(make_root(key(ROOT_KEY), NOW), key(LEAF_KEY), NOW)
    return {
        "leaf_private": LEAF_KEY,
        "device_ephemeral_private": DEVICE_EPHEMERAL,
        "relay_ephemeral_private": RELAY_EPHEMERAL,
        "client_private": CLIENT,
        "agent_private": AGENT_KEY,
        "pin": credentials.relay_id.hex(),
        "chain": [certificate.hex() for certificate in credentials.chain],
        "tunnel_id": tunnel_id(Offer(OFFER).point, Open(OPEN_WITH_INVITE).request.point),
    }


def compute(given: dict[str, Any]) -> list[dict[str, Any]]:
    """The product's side of every case."""
    chain = tuple(bytes.fromhex(certificate) for certificate in given["chain"])
    return [run(case, chain, bytes.fromhex(given["pin"])) for case in CASES]


def write() -> None:
    """Freeze them. What was drawn once stays as it is."""
    given = json.loads(PATH.read_text())["inputs"] if PATH.exists() else inputs()
    cases = [case | {"derived": derive(given, case)} for case in compute(given)]
    PATH.write_text(json.dumps({"inputs": given, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    write()

"""Makes tests/vectors/e2e.json from fixed keys: `python -m tests.e2e.vectors`. What the KEM drew once stays as it is."""

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from tests.e2e.decoder import read_handshake, read_uses
from tests.e2e.tunnels import AGENT, FORWARD, INVITE, NOW, RELAY_ID, private_point
from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.e2e.flows import FlowClose, FlowOpen, FlowOpened
from tuunel.e2e.handshake import Initiator, Responder, encapsulate
from tuunel.e2e.offer import make_offer
from tuunel.e2e.records import RecordSealer
from tuunel.e2e.service import Measure, RelayRtt, Taken
from tuunel.e2e.wire import ANNOUNCED, FIN_BODY, FIN_RECYCLABLE, Command, Connected, Error, Purpose, RecordType, Reset, Target
from tuunel.errors import Failure, Reason

PATH = Path(__file__).parents[1] / "vectors" / "e2e.json"
#: What the agent of a case announces besides the commands that every agent takes.
ANNOUNCED_BY = {"service": frozenset[int](ANNOUNCED)}
DERIVED = [
    "T0", "t1", "t2", "t2c", "ecdh", "kem_secret", "hs", "init_key",
    "init_iv", "init_plaintext", "t3", "t4", "accept_key", "accept_iv", "accept_plaintext", "t5",
    "f2r", "f2r_key", "f2r_iv", "r2f", "r2f_key", "r2f_iv", "tunnel_id", "purpose",
    "status", "initiator_label", "responder_label",
]  # fmt: skip


def make_case(name: str, fixed: dict[str, Any], *, refusal: Reason | None = None) -> dict[str, Any]:
    """Run one handshake of the product; `fixed` holds the KEM's random part."""
    buffers = BufferPool()
    with_invite = name == "invite"
    kem = MLKEM768PrivateKey.from_seed_bytes(bytes(range(64)))
    offer, secrets = make_offer(AGENT, RELAY_ID, NOW, ephemeral=private_point(0x111), kem=kem)
    initiator = Initiator(
        FORWARD,
        AGENT.device_id,
        RELAY_ID,
        NOW,
        buffers,
        ephemeral=private_point(0x222),
        encapsulate=lambda _: (bytes.fromhex(fixed["kem_secret"]), bytes.fromhex(fixed["kem_ciphertext"])),
        invite=INVITE if with_invite else None,
        label="laptop",
    )
    opened = initiator.open_message()
    initiator.receive_offer(offer)
    init = initiator.init(Purpose.STANDBY if name in ("standby", "refused") else Purpose.CONNECT)
    responder = Responder(AGENT, secrets, FORWARD.public_bytes, opened, NOW, buffers=buffers)
    responder.receive_init(init)
    accept = responder.accept("home", ANNOUNCED_BY.get(name, frozenset())) if refusal is None else responder.refuse(refusal)
    case: dict[str, Any] = {
        "agent_identity": f"{0xA6E47:x}",
        "forward_identity": f"{0xF0E:x}",
        "agent_ephemeral": f"{0x111:x}",
        "forward_ephemeral": f"{0x222:x}",
        "kem_seed": bytes(range(64)).hex(),
        "kem_ciphertext": fixed["kem_ciphertext"],
        "offer": offer.hex(),
        "open": opened.hex(),
        "init": init.hex(),
        "accept": accept.hex(),
    }
    if with_invite:
        case["invite_secret"] = INVITE.secret.hex()
    derived = read_handshake(case)
    names = [*DERIVED, "invite_id", "proof"] if with_invite else [*DERIVED, "commands"] if name in ANNOUNCED_BY else DERIVED
    case |= {key: derived[key].hex() if isinstance(derived[key], bytes) else derived[key] for key in names}
    if refusal is not None:
        try:
            initiator.receive_accept(accept)
        except Failure as failure:
            case["refused"] = str(failure.reason)
        return case
    initiator.receive_accept(accept)
    if name == "recycled":
        case |= _recycled(initiator.sealer, responder.sealer)
        return case | {"uses": [{"name": use.name(derived["tunnel_id"])} | use.secrets() for use in read_uses(case)]}
    forward_records, agent_records = RECORDS.get(name, (_forward_records, _agent_records))
    case["f2r_records"] = forward_records(initiator.sealer)
    case["r2f_records"] = agent_records(responder.sealer)
    return case


def _forward_records(sealer: RecordSealer) -> list[list[Any]]:
    return [
        _record(sealer, RecordType.PING, b"12345678"),
        _record(sealer, RecordType.CONNECT, Target(Command.TCP, "192.168.1.10", 8080).encode()),
        _record(sealer, RecordType.DATA, b"GET / HTTP/1.0\r\n\r\n"),
        _record(sealer, RecordType.KEY_UPDATE, b""),
        _record(sealer, RecordType.DATA, b"under the second key"),
        _record(sealer, RecordType.KEY_UPDATE, b""),
        _record(sealer, RecordType.PAD, bytes(5)),
        _record(sealer, RecordType.FIN, FIN_BODY),
        _record(sealer, RecordType.RESET, Reset(None).encode()),
    ]


def _agent_records(sealer: RecordSealer) -> list[list[Any]]:
    return [
        _record(sealer, RecordType.PONG, b"12345678"),
        _record(sealer, RecordType.CONNECTED, Connected(HostPort("192.168.1.2", 40000)).encode()),
        _record(sealer, RecordType.DATA, b"HTTP/1.0 200 OK\r\n\r\n"),
        _record(sealer, RecordType.FIN, FIN_BODY),
        _record(sealer, RecordType.RESET, Reset(Reason.POLICY_REVOKED).encode()),
    ]


def _forward_flows(sealer: RecordSealer) -> list[list[Any]]:
    return [
        _record(sealer, RecordType.CONNECT, Target(Command.UDP, "", 0).encode()),
        _record(sealer, RecordType.FLOW_OPEN, FlowOpen(0, "192.168.1.1", 53).encode()),
        _record(sealer, RecordType.DGRAM, b"\0\0question"),
        _record(sealer, RecordType.FLOW_OPEN, FlowOpen(1, "", 9999).encode()),
        _record(sealer, RecordType.DGRAM, b"\0\1"),
        _record(sealer, RecordType.FLOW_CLOSE, FlowClose(1, None, "").encode()),
        _record(sealer, RecordType.FLOW_CLOSE, FlowClose(0, None, "").encode()),
        _record(sealer, RecordType.FIN, FIN_BODY),
    ]


def _agent_flows(sealer: RecordSealer) -> list[list[Any]]:
    return [
        _record(sealer, RecordType.CONNECTED, Connected(HostPort("0.0.0.0", 0)).encode()),
        _record(sealer, RecordType.FLOW_OPEN, FlowOpened(0, HostPort("192.168.1.2", 40000)).encode()),
        _record(sealer, RecordType.FLOW_CLOSE, FlowClose(1, Reason.CONNECTION_REFUSED, "nobody listens").encode()),
        _record(sealer, RecordType.DGRAM, b"\0\0answer"),
        _record(sealer, RecordType.FLOW_CLOSE, FlowClose(0, None, "").encode()),
        _record(sealer, RecordType.FIN, FIN_BODY),
    ]


def _forward_service(sealer: RecordSealer) -> list[list[Any]]:
    return [
        _record(sealer, RecordType.CONNECT, Target(Command.SERVICE, "sink", 0).encode()),
        _record(sealer, RecordType.DATA, Measure(3000).encode()),
        _record(sealer, RecordType.DATA, bytes(1000)),
        _record(sealer, RecordType.FIN, FIN_BODY),
    ]


def _agent_service(sealer: RecordSealer) -> list[list[Any]]:
    return [
        _record(sealer, RecordType.CONNECTED, Connected(HostPort("0.0.0.0", 0)).encode()),
        _record(sealer, RecordType.DATA, Taken(1000, 2_999_000).encode()),
        _record(sealer, RecordType.FIN, FIN_BODY),
    ]


#: The records of each direction, where they are not the usual ones.
RECORDS = {"flows": (_forward_flows, _agent_flows), "service": (_forward_service, _agent_service)}


def _recycled(forward: RecordSealer, agent: RecordSealer) -> dict[str, list[Any]]:
    """Three uses of one tunnel: F begins the second one and R the third, in which R refuses the target."""
    sealers = {"f2r": forward, "r2f": agent}
    said: list[tuple[str, RecordType, bytes]] = [
        ("f2r", RecordType.CONNECT, Target(Command.TCP, "192.168.1.10", 8080).encode()),
        ("f2r", RecordType.DATA, b"of the first use"),
        ("r2f", RecordType.CONNECTED, Connected(HostPort("192.168.1.2", 40000)).encode()),
        ("r2f", RecordType.DATA, b"its answer"),
        ("f2r", RecordType.FIN, FIN_RECYCLABLE),
        ("r2f", RecordType.FIN, FIN_RECYCLABLE),
        ("f2r", RecordType.PING, b"12345678"),
        ("f2r", RecordType.KEY_UPDATE, b""),
        ("f2r", RecordType.CONNECT, Target(Command.TCP, "nas.lan", 22).encode()),
        ("r2f", RecordType.PONG, b"12345678"),
        ("r2f", RecordType.KEY_UPDATE, b""),
        ("r2f", RecordType.CONNECTED, Connected(HostPort("192.168.1.2", 40001)).encode()),
        ("f2r", RecordType.DATA, b"of the second use"),
        ("f2r", RecordType.KEY_UPDATE, b""),
        ("f2r", RecordType.DATA, b" under its second key"),
        ("r2f", RecordType.FIN, FIN_RECYCLABLE),
        ("f2r", RecordType.FIN, FIN_RECYCLABLE),
        ("r2f", RecordType.KEY_UPDATE, b""),
        ("f2r", RecordType.KEY_UPDATE, b""),
        ("f2r", RecordType.CONNECT, Target(Command.UNIX, "/run/docker.sock", 0).encode()),
        ("r2f", RecordType.ERROR, Error(Reason.POLICY_REVOKED, "").encode()),
    ]
    records: dict[str, list[Any]] = {"order": [direction for direction, _, _ in said], "f2r_records": [], "r2f_records": []}
    for direction, kind, body in said:
        records[f"{direction}_records"].append(_record(sealers[direction], kind, body))
    return records


def _record(sealer: RecordSealer, kind: RecordType, body: bytes) -> list[Any]:
    return [int(kind), body.hex(), sealer.seal(kind, body).hex()]


def make_vectors(fixed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    bodies = {
        "connect": Target(Command.TCP, "home.example", 443),
        "connect_localhost": Target(Command.TCP, "", 22),
        "connect_udp": Target(Command.UDP, "", 0),
        "connect_unix": Target(Command.UNIX, "/run/docker.sock", 0),
        "flow_open": FlowOpen(0x1234, "home.example", 53),
        "flow_opened": FlowOpened(0x1234, HostPort("127.0.0.1", 51000)),
        "flow_close": FlowClose(0x1234, Reason.POLICY_DENIED, "not for you"),
        "flow_idle": FlowClose(0x1234, None, ""),
        "connected": Connected(HostPort("127.0.0.1", 51000)),
        "error": Error(Reason.CONNECTION_REFUSED, "nobody listens"),
        "reset": Reset(None),
        "connect_service": Target(Command.SERVICE, "relay-rtt", 0),
        "relay_rtt": RelayRtt(12345),
        "measure": Measure(3000),
        "taken": Taken(1000, 2_999_000),
    }
    return {
        "invite": make_case("invite", fixed["invite"]),
        "standby": make_case("standby", fixed["standby"]),
        "flows": make_case("flows", fixed["flows"]),
        "refused": make_case("refused", fixed["refused"], refusal=Reason.NOT_PAIRED),
        "recycled": make_case("recycled", fixed["recycled"]),
        "service": make_case("service", fixed["service"]),
        "bodies": {name: body.encode().hex() for name, body in bodies.items()},
    }


def main() -> None:
    kem_public = MLKEM768PrivateKey.from_seed_bytes(bytes(range(64))).public_key().public_bytes_raw()
    fixed = {}
    stored = json.loads(PATH.read_text()) if PATH.exists() else {}
    for name in ("invite", "standby", "flows", "refused", "recycled", "service"):
        secret, ciphertext = encapsulate(kem_public)
        fixed[name] = stored.get(name) or {"kem_secret": secret.hex(), "kem_ciphertext": ciphertext.hex()}
    PATH.write_text(json.dumps(make_vectors(fixed), indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The frozen vectors: made again by tuunel, and read by a decoder that shares no code with it."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import decoder
from tests.e2e.decoder import RecordReader, read_flow_record, read_handshake, read_service, read_uses, xl
from tests.e2e.tunnels import AGENT, Stream
from tests.e2e.vectors import PATH, make_vectors
from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.e2e.flows import AgentFlows, FlowData, FlowEnded, FlowReady, FlowRequested, ForwardFlows
from tuunel.e2e.records import RecordOpener
from tuunel.e2e.wire import FLOW_RECORDS, Direction, RecordType
from tuunel.errors import Reason

VECTORS: dict[str, Any] = json.loads(PATH.read_text())
HANDSHAKES = ("invite", "standby", "flows", "refused", "recycled", "service")
DIRECTIONS = {"f2r": Direction.FORWARD_TO_AGENT, "r2f": Direction.AGENT_TO_FORWARD}
BOTH = [(name, direction) for name in ("invite", "standby", "flows", "recycled", "service") for direction in DIRECTIONS]


def test_tuunel_makes_the_frozen_bytes() -> None:
    if AGENT.sign("test", b"1") != AGENT.sign("test", b"1"):
        pytest.skip("this OpenSSL signs with randomness")
    assert make_vectors(VECTORS) == VECTORS


@pytest.mark.parametrize("name", HANDSHAKES)
def test_a_second_decoder_derives_every_secret(name: str) -> None:
    case = VECTORS[name]
    derived = read_handshake(case)
    known = {key: value.hex() if isinstance(value, bytes) else value for key, value in derived.items()}
    assert {key: case[key] for key in known if key in case} == {key: known[key] for key in known if key in case}
    assert {"T0", "t1", "t2", "t2c", "hs", "t3", "t4", "t5", "f2r", "r2f", "f2r_key", "r2f_key", "init_key", "accept_key"} <= case.keys()


@pytest.mark.parametrize(("name", "direction"), BOTH)
def test_a_second_decoder_reads_every_record(name: str, direction: str) -> None:
    case = VECTORS[name]
    reader = RecordReader(bytes.fromhex(case[direction]))
    for kind, body, record in case[f"{direction}_records"]:
        assert reader.read(bytes.fromhex(record)) == (kind, bytes.fromhex(body))


@pytest.mark.parametrize(("name", "direction"), BOTH)
def test_tuunel_reads_every_record(name: str, direction: str) -> None:
    case = VECTORS[name]
    stream = Stream(opened=False)
    stream.opener = RecordOpener(bytes.fromhex(case[direction]), DIRECTIONS[direction], BufferPool())
    whole = b"".join(bytes.fromhex(record) for _, _, record in case[f"{direction}_records"])
    assert stream.feed(whole) == [(kind, bytes.fromhex(body)) for kind, body, _ in case[f"{direction}_records"]]


def test_a_second_decoder_follows_a_tunnel_through_its_uses() -> None:
    case = VECTORS["recycled"]
    uses = read_uses(case)
    assert [{"name": use.name(case["tunnel_id"])} | use.secrets() for use in uses] == case["uses"]
    assert [use.data for use in uses] == [
        {"f2r": b"of the first use", "r2f": b"its answer"},
        {"f2r": b"of the second use under its second key", "r2f": b""},
        {"f2r": b"", "r2f": b""},
    ]
    assert [use.fin for use in uses] == [{"f2r": b"\1", "r2f": b"\1"}] * 2 + [{}]
    assert [use.kinds for use in uses] == [
        {"f2r": [0x10, 0x01, 0x02, 0x21], "r2f": [0x11, 0x01, 0x02, 0x22]},
        {"f2r": [0x10, 0x01, 0x20, 0x01, 0x02], "r2f": [0x11, 0x02]},
        {"f2r": [0x10], "r2f": [0x12]},
    ]


def test_no_two_uses_share_a_secret() -> None:
    secrets = [value for use in VECTORS["recycled"]["uses"] for key, value in use.items() if key != "name"]
    assert len(set(secrets)) == len(secrets) == 18


def flow_records(direction: str) -> list[tuple[RecordType, bytes]]:
    records = [(RecordType(kind), bytes.fromhex(body)) for kind, body, _ in VECTORS["flows"][f"{direction}_records"]]
    return [(kind, body) for kind, body in records if kind in FLOW_RECORDS]


def test_a_second_decoder_reads_what_flows_say() -> None:
    assert [read_flow_record(kind, body, from_agent=False) for kind, body in flow_records("f2r")] == [
        (0, "open", "192.168.1.1", 53),
        (0, "datagram", b"question"),
        (1, "open", "", 9999),
        (1, "datagram", b""),
        (1, "close", 0, ""),
        (0, "close", 0, ""),
    ]
    assert [read_flow_record(kind, body, from_agent=True) for kind, body in flow_records("r2f")] == [
        (0, "bound", "192.168.1.2", 40000),
        (1, "close", 0x10, "nobody listens"),
        (0, "datagram", b"answer"),
        (0, "close", 0, ""),
    ]


def test_tuunel_reads_what_flows_say() -> None:
    agent, forward = AgentFlows(lambda *_: None), ForwardFlows(lambda *_: None)
    assert [agent.receive(kind, body) for kind, body in flow_records("f2r")] == [
        FlowRequested(0, HostPort("192.168.1.1", 53)),
        FlowData(0, b"question"),
        FlowRequested(1, HostPort("", 9999)),
        FlowData(1, b""),
        FlowEnded(1, None, ""),
        FlowEnded(0, None, ""),
    ]
    assert [forward.open(HostPort("192.168.1.1", 53)), forward.open(HostPort("", 9999))] == [0, 1]
    assert [forward.receive(kind, body) for kind, body in flow_records("r2f")] == [
        FlowReady(0, HostPort("192.168.1.2", 40000)),
        FlowEnded(1, Reason.CONNECTION_REFUSED, "nobody listens"),
        FlowData(0, b"answer"),
        FlowEnded(0, None, ""),
    ]


def test_a_second_decoder_reads_what_a_service_says() -> None:
    case = VECTORS["service"]
    assert case["commands"] == read_handshake(case)["commands"] == [4]
    app = {d: b"".join(bytes.fromhex(body) for kind, body, _ in case[f"{d}_records"] if kind == 1) for d in DIRECTIONS}
    read = read_service(app["f2r"], app["r2f"], "sink")
    assert read == {"milliseconds": 3000, "sent": 1000, "size": 1000, "microseconds": 2_999_000}
    assert read_service(b"?", bytes.fromhex(VECTORS["bodies"]["relay_rtt"]), "relay-rtt") == {"rtt": 12345}
    assert read_service(bytes.fromhex(VECTORS["bodies"]["measure"]), bytes(7), "source") == {"milliseconds": 3000, "came": 7}


def test_the_decoder_is_independent() -> None:
    tree = ast.parse(Path(decoder.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name.split(".")[0] in ("tuunel", "tests", "")}


def test_the_refusal_names_its_reason() -> None:
    assert VECTORS["refused"]["refused"] == "NOT_PAIRED"
    assert VECTORS["refused"]["status"] == 0x01


def test_literal_bodies() -> None:
    assert VECTORS["bodies"]["connect"] == ("01" + "0c" + b"home.example".hex() + "01bb").ljust(512, "0")
    assert VECTORS["bodies"]["connect_localhost"] == "01000016".ljust(512, "0")
    assert VECTORS["bodies"]["connect_udp"] == "02000000".ljust(512, "0")
    assert VECTORS["bodies"]["connect_unix"] == ("03" + "10" + b"/run/docker.sock".hex() + "0000").ljust(512, "0")
    assert VECTORS["bodies"]["flow_open"] == ("1234" + "0c" + b"home.example".hex() + "0035").ljust(512, "0")
    assert VECTORS["bodies"]["flow_opened"] == ("1234" + "09" + b"127.0.0.1".hex() + "c738").ljust(512, "0")
    assert VECTORS["bodies"]["flow_close"] == ("1234" + "03" + "0b" + b"not for you".hex()).ljust(512, "0")
    assert VECTORS["bodies"]["flow_idle"] == "1234".ljust(512, "0")
    assert VECTORS["bodies"]["connected"] == ("09" + b"127.0.0.1".hex() + "c738").ljust(512, "0")
    assert VECTORS["bodies"]["error"] == ("10" + "0e" + b"nobody listens".hex()).ljust(512, "0")
    assert VECTORS["bodies"]["reset"] == "00"
    assert VECTORS["bodies"]["connect_service"] == ("04" + "09" + b"relay-rtt".hex() + "0000").ljust(512, "0")
    assert VECTORS["bodies"]["relay_rtt"] == "00003039"
    assert VECTORS["bodies"]["measure"] == "00000bb8"
    assert VECTORS["bodies"]["taken"] == "00000000000003e8" + "00000000002dc2d8"


@pytest.mark.parametrize("page", ["end-to-end.md", "records.md"])
def test_the_specification_quotes_the_vectors(page: str) -> None:
    text = (PATH.parents[2] / "docs" / "spec" / page).read_text()
    quoted = re.findall(r"\b[0-9a-f]{24,}\b", text)
    case = VECTORS["invite"]
    known = {value for value in case.values() if isinstance(value, str)}
    known |= {record for name, direction in BOTH for _, _, record in VECTORS[name][f"{direction}_records"]}
    known |= {VECTORS["flows"][direction] for direction in DIRECTIONS}
    known |= {value for use in VECTORS["recycled"]["uses"] for value in use.values()}
    known.add(xl(bytes.fromhex(case["f2r"]), "update").hex())
    assert len(quoted) > 7
    assert set(quoted) <= known

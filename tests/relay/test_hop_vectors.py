"""The frozen vectors: the product makes exactly these bytes, and a decoder that shares no code with it reads the same out of them."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.relay import independent_hop
from tests.relay.hop_vectors import CASES, PATH, compute
from tests.relay.hops import INSTANCE, NOW, key
from tuunel.errors import Failure, Reason, Speaker
from tuunel.relay.handshake import DeviceHandshake
from tuunel.relay.wire import MESSAGE_TYPES, Params, decode_message, encode_message

VECTORS: dict[str, Any] = json.loads(PATH.read_text())
NAMES = [case["name"] for case in VECTORS["cases"]]


def test_the_product_makes_the_frozen_bytes() -> None:
    made = compute(VECTORS["inputs"])
    frozen = [{name: value for name, value in case.items() if name != "derived"} for case in VECTORS["cases"]]
    assert made == frozen


@pytest.mark.parametrize("case", VECTORS["cases"], ids=NAMES)
def test_the_independent_decoder_derives_every_secret(case: dict[str, Any]) -> None:
    assert independent_hop.derive(VECTORS["inputs"], case) == case["derived"]


@pytest.mark.parametrize("case", VECTORS["cases"], ids=NAMES)
def test_every_plaintext_is_the_message_that_was_meant(case: dict[str, Any]) -> None:
    meant = next(known for known in CASES if known.name == case["name"])
    plaintexts = [bytes.fromhex(data) for data in case["derived"]["first messages"] + case["derived"]["records"]]
    messages = [*meant.first, *(message for _, message in meant.said)]
    assert list(map(decode_message, plaintexts)) == messages
    assert list(map(encode_message, messages)) == plaintexts


def test_the_vectors_cover_every_message() -> None:
    covered = {
        bytes.fromhex(data)[0] for case in VECTORS["cases"] for data in case["derived"]["first messages"] + case["derived"]["records"]
    }
    covered |= {bytes.fromhex(case["derived"]["WELCOME"])[0] for case in VECTORS["cases"] if "WELCOME" in case["derived"]}
    assert covered == MESSAGE_TYPES.keys() == independent_hop.NAMES.keys()


def test_the_refusal_stands_in_the_place_of_welcome() -> None:
    case = VECTORS["cases"][-1]
    meant = CASES[-1]
    assert decode_message(bytes.fromhex(case["derived"]["HOPERROR"])) == meant.refusal
    device = DeviceHandshake(
        pin=bytes.fromhex(VECTORS["inputs"]["pin"]),
        identity=meant.identity,
        register=None,
        purpose=meant.purpose,
        params=Params(meant.role, INSTANCE),
        random=lambda length: b"D" * length,
        ephemeral=lambda: key(VECTORS["inputs"]["device_ephemeral_private"]),
        now=NOW,
    )
    for name in ("M2", "M4"):
        device.receive_data(bytes.fromhex(case["flights"][name]))
        if name == "M2":
            device.next_event()
    with pytest.raises(Failure) as refused:
        device.next_event()
    assert (refused.value.reason, refused.value.speaker) == (Reason.DEVICE_UNKNOWN, Speaker.RELAY)


def test_the_tunnel_has_the_frozen_name() -> None:
    offer, request = (bytes.fromhex(VECTORS["cases"][index]["derived"]["first messages"][0])[1:] for index in (1, 2))
    assert independent_hop.name_of_tunnel(offer[1:66], request[27:92]) == VECTORS["inputs"]["tunnel_id"]


def test_the_decoder_is_independent() -> None:
    tree = ast.parse(Path(independent_hop.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name.split(".")[0] in ("tuunel", "tests", "")}

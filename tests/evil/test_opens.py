"""The relay tells the agent another OPEN, or another client, than the forward proxy's: the agent dials nothing."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.evil.relay import Plot
from tests.evil.stage import AGENT_MISMATCH, LOST, Stage
from tests.evil.verdict import Expected
from tuunel.identity import IdentityKey, encode_point
from tuunel.relay.client import fresh_key
from tuunel.relay.wire import OpenRequest, PairedAgent

pytestmark = pytest.mark.anyio

OWN = IdentityKey.generate()  #: the relay's own device
Edit = Callable[[Stage, PairedAgent], PairedAgent]


class EditPaired(Plot):
    """Hand the agent another PAIRED."""

    def __init__(self, stage: Stage, edit: Edit) -> None:
        super().__init__()
        self._stage, self._edit = stage, edit

    def paired(self, paired: PairedAgent) -> PairedAgent:
        self.struck += 1
        return self._edit(self._stage, paired)


def in_open(**changes: object) -> Edit:
    return lambda stage, paired: replace(paired, open=replace(OpenRequest.decode(paired.open), **changes).encode())


def client(public: Callable[[Stage], bytes]) -> Edit:
    return lambda stage, paired: replace(paired, public_key=public(stage))


def resized(size: Callable[[bytes], bytes]) -> Edit:
    return lambda stage, paired: replace(paired, open=size(paired.open))


def flipped(at: int) -> Edit:
    def flip(stage: Stage, paired: PairedAgent) -> PairedAgent:
        body = bytearray(paired.open)
        body[at] ^= 1
        return replace(paired, open=bytes(body))

    return flip


#: What the agent cannot take for an OPEN, and what is one that F did not send, end alike: it closes the connection without a word.
EDITS: dict[str, tuple[Edit, Expected]] = {
    "another device is asked for": (in_open(device=OWN.device_id), AGENT_MISMATCH),
    "another version below": (in_open(version=0), LOST),
    "another version above": (in_open(version=2), LOST),
    "an invite that nobody sent": (in_open(flags=1, invite=bytes(8)), LOST),
    "the flag of an invite without one": (in_open(flags=1), LOST),
    "an unknown flag": (in_open(flags=2), LOST),
    "the relay's own eF": (in_open(point=encode_point(fresh_key().public_key())), LOST),
    "an eF that is no point": (in_open(point=bytes(65)), LOST),
    "a bit of eF": (flipped(60), LOST),
    "a bit of the device ID": (flipped(10), LOST),
    "nothing": (resized(lambda body: b""), LOST),
    "all but one byte": (resized(lambda body: body[:-1]), LOST),
    "one byte more": (resized(lambda body: body + b"\0"), LOST),
    "another client: the relay's own device": (client(lambda stage: OWN.public_bytes), AGENT_MISMATCH),
    "another client: the agent itself": (client(lambda stage: stage.agent_identity.public_bytes), AGENT_MISMATCH),
    "another client: no key at all": (client(lambda stage: bytes(65)), AGENT_MISMATCH),
}


async def test_an_open_that_the_client_did_not_send_leads_nowhere(stage: Stage) -> None:
    assert await stage.attack((name, EditPaired(stage, edit), expected) for name, (edit, expected) in EDITS.items()) == {}

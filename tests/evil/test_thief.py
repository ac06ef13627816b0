"""Two devices of one person, and one of them has gone over to the relay: the other is not its prey."""

from dataclasses import replace

import pytest

from tests.evil.relay import Plot
from tests.evil.stage import LOST, MISMATCH, Stage, ask, ends
from tests.evil.thief import Thief
from tests.evil.verdict import AGENT, APP_WORDS, Expected, breaches
from tests.world import Running
from tuunel import pairing
from tuunel.agent import Agent
from tuunel.errors import Reason
from tuunel.events import Ready
from tuunel.identity import DeviceID, IdentityKey
from tuunel.links import parse_invite
from tuunel.pump import PumpEnd
from tuunel.relay.switchboard import Pipe
from tuunel.relay.wire import PairedAgent, PairedForward

pytestmark = pytest.mark.anyio


class LeadTo(Plot):
    """Pair the forward proxy with an agent that it has not asked for; with `offer` under that one's own offer."""

    def __init__(self, stage: Stage, device: DeviceID, *, offer: bool) -> None:
        super().__init__()
        self._stage, self._device, self._own_offer = stage, device, offer

    def paired(self, paired: PairedAgent) -> PairedAgent:
        self._asked = paired
        return paired

    async def carry(self, pipe: Pipe) -> PumpEnd:
        self.struck += 1
        await self.switch(pipe)
        other = await self._stage.tunnels.approach(self._device, self._asked)
        await pipe.forward.send(PairedForward((other if self._own_offer else pipe.agent).offer.body))
        try:
            return await self.pump(replace(pipe, agent=other))
        finally:
            self._stage.tunnels._drop(other)


@pytest.fixture(scope="module")
async def corrupt(stage: Stage) -> Running[Agent]:
    """An agent that the client is paired with too, under the name `corrupt`."""
    agent = await stage.world.agent((await stage.relay.until(Ready)).link)
    answer = await agent.role._make_invite({})
    await pairing.pair(stage.home, parse_invite(answer["invite"]), "corrupt")
    return agent


@pytest.mark.parametrize(("offer", "expected"), [(True, MISMATCH), (False, LOST)], ids=["under its offer", "under the agent's offer"])
async def test_another_device_that_is_enrolled_cannot_pose_as_the_agent(
    stage: Stage, corrupt: Running[Agent], offer: bool, expected: Expected
) -> None:
    device = IdentityKey.load(corrupt.home.identity_key).device_id
    assert await stage.attack([("led astray", LeadTo(stage, device, offer=offer), expected)]) == {}


async def test_a_signature_for_one_device_opens_no_other(stage: Stage, corrupt: Running[Agent]) -> None:
    thief = Thief(stage, IdentityKey.load(corrupt.home.identity_key))
    stage.begin(thief)
    story = await stage.story(await ask(stage.proxy, stage.target.port, APP_WORDS, device="corrupt"))
    assert len(thief.stolen) == 64
    assert breaches(story, Expected(ends(Reason.TUNNEL_LOST), frozenset({AGENT}))) == []
    assert await stage.serves_honestly()


async def test_with_a_transcript_that_binds_nothing_it_would(
    stage: Stage, corrupt: Running[Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuunel.e2e.handshake.keyed_transcript", lambda *parts: bytes(32))
    stage.begin(Thief(stage, IdentityKey.load(corrupt.home.identity_key)))
    story = await stage.story(await ask(stage.proxy, stage.target.port, APP_WORDS, device="corrupt"))
    found = breaches(story, Expected(ends(Reason.TUNNEL_LOST), frozenset({AGENT})))
    assert any("the decoy was dialled" in each for each in found)
    assert "alarms at the agent: []" in found

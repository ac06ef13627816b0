"""Two devices of one person, and one of them has gone over to the relay: the other is not its prey."""

import pytest

from tests.evil.stage import Stage, ask, ends
from tests.evil.thief import Thief
from tests.evil.verdict import AGENT, APP_WORDS, Expected, breaches
from tests.world import Running
from tuunel import pairing
from tuunel.agent import Agent
from tuunel.errors import Reason
from tuunel.events import Ready
from tuunel.identity import IdentityKey
from tuunel.links import parse_invite

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def corrupt(stage: Stage) -> Running[Agent]:
    """An agent that the client is paired with too, under the name `corrupt`."""
    agent = await stage.world.agent((await stage.relay.until(Ready)).link)
    answer = await agent.role._make_invite({})
    await pairing.pair(stage.home, parse_invite(answer["invite"]), "corrupt")
    return agent


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

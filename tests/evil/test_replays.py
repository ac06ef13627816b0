"""What was true once is not true again: offers, INITs, ACCEPTs and whole connections of the past open nothing."""

import pytest

from tests.evil.recorder import Recorder, ReplayMessage, ReplayToForward
from tests.evil.relay import Pieces, Plot
from tests.evil.stage import CUT_SHORT, LOST, UNHARMED, Stage, ends
from tests.evil.test_messages import DIALLED
from tests.evil.verdict import CLEAN, RESET, Expected, breaches
from tuunel.errors import Reason

pytestmark = pytest.mark.anyio

MESSAGES: dict[str, tuple[str, int, Expected]] = {
    "INIT": ("up", 0, LOST),
    "CONNECT": ("up", 1, Expected(ends(RESET, Reason.TUNNEL_LOST), dials=1)),
    "the app's bytes": ("up", 3, CUT_SHORT),
    "ACCEPT": ("down", 0, DIALLED),
    "CONNECTED": ("down", 1, DIALLED),
    "the target's bytes": ("down", 3, CUT_SHORT),
}


@pytest.fixture
async def recorded(stage: Stage) -> Recorder:
    recorder = Recorder()
    stage.begin(recorder)
    assert (await stage.story(await stage.ask())).outcome == CLEAN
    return recorder


async def test_a_connection_that_is_replayed_to_the_agent_dials_nothing(stage: Stage) -> None:
    recorder = Recorder()
    stage.begin(recorder)
    talk = await stage.ask()
    for _ in range(3):
        assert await recorder.replay_to_agent(stage) == b""
    assert breaches(await stage.story(talk), UNHARMED) == []
    assert await stage.serves_honestly()


async def test_a_connection_that_is_replayed_to_the_forward_proxy_says_nothing(stage: Stage, recorded: Recorder) -> None:
    with_its_offer, with_a_new_one = (ReplayToForward(recorded, offer=offer) for offer in (True, False))
    assert await stage.attack([("with its offer", with_its_offer, LOST), ("with a new offer", with_a_new_one, LOST)]) == {}


async def test_no_message_of_the_past_fits_into_another_connection(stage: Stage, recorded: Recorder) -> None:
    assert await stage.attack((name, ReplayMessage(recorded, way, at), told) for name, (way, at, told) in MESSAGES.items()) == {}


class Echo(Plot):
    """Give the forward proxy its own bytes back, `behind` so many messages of the agent."""

    def __init__(self, behind: int) -> None:
        super().__init__()
        self._behind = behind
        self._sent: list[bytes] = []

    def up(self, number: int, message: bytes) -> Pieces:
        self._sent.append(message[1088:] if number == 0 else message)  # what is sealed of INIT has the form of an ACCEPT
        return [message]

    def down(self, number: int, message: bytes) -> Pieces:
        if number < self._behind:
            return [message]
        self.struck += 1
        return list(self._sent[self._behind :])


async def test_the_forward_proxy_does_not_hear_itself(stage: Stage) -> None:
    echoes = {0: DIALLED, 1: DIALLED, 2: CUT_SHORT}
    assert await stage.attack((f"behind {behind}", Echo(behind), expected) for behind, expected in echoes.items()) == {}

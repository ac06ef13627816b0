"""The relay poses as one side to the other, with its own device behind it: both sides see another identity, and say so."""

from collections.abc import Callable

import pytest

from tests.evil.impostor import OWN, Host, Mask, Middle
from tests.evil.stage import MISMATCH, Stage, ends
from tests.evil.verdict import AGENT, FORWARD, Expected
from tuunel.errors import Reason

pytestmark = pytest.mark.anyio

BOTH_NOTICE = Expected(ends(Reason.PEER_MISMATCH), frozenset({FORWARD, AGENT}))

POSES: dict[str, tuple[Callable[[Stage], Middle], Expected]] = {
    "in the middle, under both names": (Middle, BOTH_NOTICE),
    "as the agent, as its own device": (lambda stage: Host(stage, as_agent=Mask(OWN.public_bytes, stage.device.id)), MISMATCH),
    "as the agent, under its name": (Host, MISMATCH),
    "as the agent, with the app's own name": (
        lambda stage: Host(stage, as_agent=Mask(stage.client.public_bytes, stage.device.id)),
        MISMATCH,
    ),
    # nobody has paired the relay's device: the agent refuses it, and the app hears of the offer that is not the agent's
    "as a client, as its own device": (lambda stage: Middle(stage, as_client=OWN), MISMATCH),
    # whoever knows no key of the agent's clients signs for nobody
    "as a client, under the agent's own name": (
        lambda stage: Middle(stage, as_client=Mask(stage.agent_identity.public_bytes)),
        BOTH_NOTICE,
    ),
}


async def test_the_relay_cannot_be_somebody_else(stage: Stage) -> None:
    plots = {name: pose(stage) for name, (pose, _) in POSES.items()}
    assert await stage.attack((name, plot, POSES[name][1]) for name, plot in plots.items()) == {}
    assert [plot.read for plot in plots.values()] == [b""] * len(POSES)

"""The relay swaps what the agent signed while somebody looks at the way: each command says so, asks no second time, and takes no figure."""

import anyio
import pytest

from tests.evil.relay import Plot
from tests.evil.stage import Stage
from tests.evil.test_offers import Swap, SwapOffer, own_offer, own_point
from tests.world import PATIENCE
from tuunel.address import HostPort
from tuunel.errors import Failure, Reason
from tuunel.probe.bench import Bench
from tuunel.probe.ping import Ping
from tuunel.probe.why import Why

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("swap", [own_point, own_offer])
async def test_why_finds_the_tunnel_broken_and_ping_and_bench_end_at_once(stage: Stage, swap: Swap) -> None:
    plot = SwapOffer(stage, swap)
    stage.begin(plot)
    try:
        with anyio.fail_after(3 * PATIENCE):
            why = Why(stage.home, HostPort("home.tuunel", stage.target.port), lambda _: None)
            broken = await why.walk()
            ping = Ping(stage.home, stage.device, lambda _: None)
            await ping.run(None)
            (measured,) = await Bench(stage.home, stage.device, 0.1, lambda *_: None).run()
    finally:
        stage.begin(Plot())
    assert isinstance(broken, Failure)
    assert broken.reason is Reason.PEER_MISMATCH
    assert (why.hops[-1].name, why.hops[-1].ok) == ("tunnel", False)
    (only,) = ping.rounds
    assert only.failure
    assert (only.failure.reason, only.end_to_end, only.relay_agent) == (Reason.PEER_MISMATCH, None, None)
    assert measured.failure
    assert (measured.failure.reason, measured.idle, measured.up) == (Reason.PEER_MISMATCH, [], None)
    assert plot.struck == 3, "an alarm is not asked again"
    assert not stage.target.visits
    honest = Why(stage.home, HostPort("home.tuunel", stage.target.port), lambda _: None)
    assert await honest.walk() is None

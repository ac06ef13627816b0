"""The relay is killed and comes back, also elsewhere: nobody restarts an agent, a proxy or a forward for that."""

import time

import pytest

from tests.journeys.figures import figure
from tests.journeys.lab import RELAY, RELAY_LATER, RELAY_NAME, Lab
from tests.journeys.processes import Running, tuunel_argv, until
from tests.journeys.restarts import LATE, SOON, carries, kills, outage, until_offline
from tests.journeys.targets import echo
from tuunel.errors import ANSWERS, Reason
from tuunel.relay.presence import STEADY

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]


def test_everybody_is_back_within_five_seconds_also_where_the_name_leads_elsewhere(lab: Lab) -> None:
    back = outage(lab, 3, RELAY_LATER)
    lab.network.set_relay_address(RELAY)
    assert max(back.values()) < SOON, back


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("lasting", "within"), [(15, SOON), (60, SOON), (150, LATE)], ids=["15 s", "60 s", "150 s"])
@pytest.mark.parametrize("address", [RELAY, RELAY_LATER], ids=["where it was", "at another address"])
def test_everybody_is_back_in_time_after_longer_outages(lab: Lab, address: str, lasting: float, within: float) -> None:
    time.sleep(STEADY)  # a relay that ends each connection sooner is not met anew at once
    back = outage(lab, lasting, address)
    figure(f"back after an outage of {lasting} s", {name: f"{seconds:.2f} s" for name, seconds in back.items()})
    assert max(back.values()) < within, back


@pytest.mark.parametrize("count", [2, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])])
def test_nothing_is_left_behind_by_kills(lab: Lab, count: int) -> None:
    for role, (before, after) in kills(lab, count).items():
        figure(f"{role} before and after {count} kills of the relay", f"{before.shown()}; {after.shown()}")
        assert after.descriptors <= before.descriptors, role
        assert after.threads <= before.threads, role
        assert after.files == before.files, role
        assert after.memory < before.memory + 20_000, role


def test_without_a_relay_agent_and_proxy_start_say_so_and_wait(lab: Lab) -> None:
    lab.relay.process.kill()
    lab.agent.process.stop()
    lab.proxy.process.stop()
    lab.proxy = lab.world.proxy(lab.laptop)
    until_offline(lab.proxy.process)
    machine = lab.agent.machine
    with lab.target(echo) as target, Running([*machine.inside, *tuunel_argv("agent")], machine.env) as agent:
        until(lambda: "offline" in agent.errors(), "the agent says what it waits for")
        assert RELAY_NAME in agent.errors()
        with lab.open(target.port) as refused:
            assert refused.answer.code == ANSWERS[Reason.RELAY_UNREACHABLE].socks
        lab.start_relay()
        until(lambda: "agent ready" in agent.errors(), "it is ready once the relay is there", 2 * SOON)
        until(lambda: carries(lambda: lab.open(target.port)), "the tunnel works", SOON)
    lab.agent = lab.world.agent(None, machine=machine)

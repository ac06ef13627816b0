"""The relay is killed and comes back, also elsewhere: nobody restarts an agent, a proxy or a forward for that."""

import pytest

from tests.journeys.lab import RELAY, RELAY_LATER, RELAY_NAME, Lab
from tests.journeys.processes import Running, tuunel_argv, until
from tests.journeys.restarts import SOON, carries, kills, outage, until_offline
from tests.journeys.targets import echo

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]


@pytest.mark.parametrize("address", [RELAY, RELAY_LATER], ids=["where it was", "at another address"])
def test_everybody_is_back_within_five_seconds(lab: Lab, address: str) -> None:
    back = outage(lab, 5, address)
    assert max(back.values()) < SOON, back


def test_nothing_is_left_behind_by_kills(lab: Lab) -> None:
    """`make soak` does it a hundred times."""
    for role, (before, after) in kills(lab, 4).items():
        assert after.descriptors <= before.descriptors, role
        assert after.threads <= before.threads, role
        assert after.files == before.files, role


def test_without_a_relay_agent_and_proxy_start_say_so_and_wait(lab: Lab) -> None:
    lab.relay.process.kill()
    lab.agent.process.stop()
    lab.proxy.process.stop()
    lab.agent.process = lab.world.watch(lab.agent.machine.start("agent"))
    lab.proxy = lab.world.proxy(lab.laptop)
    until_offline(lab.proxy.process)
    with lab.target(echo) as target:
        with lab.open(target.port) as opened:
            assert opened.answer.code == 1  # general failure: HTTP would say RELAY_UNREACHABLE
        lab.start_relay()
        ready = lab.agent.process.ready()
        assert ready["device_id"] == lab.agent.device_id
        told = lab.agent.process.told("relay")
        while told["state"] != "offline":
            told = lab.agent.process.told("relay")
        assert RELAY_NAME in told["detail"] or RELAY_NAME in told["relay"]
        until(lambda: carries(lambda: lab.open(target.port)), "the tunnel works", SOON + 1)


def test_people_read_that_the_relay_is_away(lab: Lab) -> None:
    """Without --json the agent says at once what it waits for."""
    machine = lab.world.machine(lab.network.prefix("laptop"))
    link = lab.relay.new_link()
    lab.relay.process.kill()
    with Running([*machine.inside, *tuunel_argv("agent", link)], machine.env) as agent:
        until(lambda: "offline" in agent.errors(), "the agent says that its relay is offline")
        assert RELAY_NAME in agent.errors()
        lab.start_relay()
        until(lambda: "agent ready" in agent.errors(), "it is ready once the relay is there", SOON + 5)

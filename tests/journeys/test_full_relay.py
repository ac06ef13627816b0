"""A relay that has no room left says so, keeps what it has, and takes new work as soon as there is room again."""

import contextlib
import resource

import pytest

from tests.journeys import doors
from tests.journeys.processes import until
from tests.journeys.targets import echo, read_exactly, serving
from tests.journeys.world import Machine, Trio, World
from tuunel.errors import ANSWERS, Reason
from tuunel.memory import memory_allowed
from tuunel.relay.server import capacity_within

pytestmark = pytest.mark.real

FILES = 400


def works(opened: doors.Opened) -> bool:
    opened.sock.sendall(b"hello")
    return read_exactly(opened.sock, 5) == b"hello"


def test_out_of_descriptors_it_refuses_new_work_and_keeps_the_old(own_world: World) -> None:
    here = own_world.machine()
    relay = own_world.relay(Machine(here.home, ("sh", "-c", f'ulimit -n {FILES}; exec "$@"', "sh")))
    assert str(capacity_within(FILES, memory_allowed())) in relay.process.told("notice")["text"]  # it says what it can hold
    agent = own_world.agent(relay.link)
    laptop = own_world.laptop(str(agent.invite))
    three = Trio(own_world, relay, agent, laptop, own_world.proxy(laptop))
    with serving(echo) as target, contextlib.ExitStack() as stack:
        held: list[doors.Opened] = []
        refused = None
        while refused is None and len(held) < FILES:
            opened = stack.enter_context(doors.http_connect(three.proxy.address, "home.tuunel", target.port))
            if opened.answer.code == 200:
                held.append(opened)
            else:
                refused = opened
        assert refused is not None
        assert refused.answer.code in {ANSWERS[Reason.QUOTA].http, ANSWERS[Reason.OPEN_TIMEOUT].http}, refused.answer
        assert len(held) > FILES // 10
        assert all(works(each) for each in held)
        assert relay.process.alive()
        for each in held[: len(held) // 2]:
            each.sock.close()

        def again() -> bool:
            with doors.socks5(three.proxy.address, "home.tuunel", target.port) as opened:
                return opened.answer.code == 0 and works(opened)

        until(again, "there is room again", 30, 0.2)
        assert all(works(each) for each in held[len(held) // 2 :])


def test_what_it_can_hold_is_reckoned_by_its_memory_too(own_world: World) -> None:
    kibibytes = 700_000
    here = own_world.machine()
    relay = own_world.relay(Machine(here.home, ("sh", "-c", f'ulimit -v {kibibytes}; exec "$@"', "sh")))
    room = capacity_within(resource.getrlimit(resource.RLIMIT_NOFILE)[1], kibibytes * 1024)
    assert f"room for {room} connections" in relay.process.told("notice")["text"]
    agent = own_world.agent(relay.link)
    assert agent.invite

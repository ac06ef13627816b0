"""A machine vanishes: no FIN, no reset, nothing. Whoever it was connected to is told the truth, in time, and nothing hangs."""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.journeys.lab import Lab
from tests.journeys.processes import until
from tests.journeys.restarts import SOON, carries
from tests.journeys.targets import echo, hold, note_how_it_ends, pour, read_exactly
from tests.journeys.world import Agent, Machine
from tuunel.errors import ANSWERS, Reason

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

ANSWERED = 15.0  #: seconds until a new open is answered
ENDED = 45.0  #: seconds until a tunnel has ended at the end that is left


def ending(work: Callable[[], object]) -> tuple[str, float]:
    """Work on a socket until it ends: how ("end" or "reset"), and after how many seconds."""
    began = time.monotonic()
    try:
        while work():
            pass
    except ConnectionResetError:
        return "reset", time.monotonic() - began
    except OSError as error:
        return str(error), time.monotonic() - began
    return "end", time.monotonic() - began


@contextlib.contextmanager
def vanished(lab: Lab, machine: str) -> Iterator[None]:
    lab.network.cut_off(machine)
    try:
        yield
    finally:
        lab.network.heal()


def test_when_the_agents_machine_vanishes(lab: Lab) -> None:
    with contextlib.ExitStack() as stack:
        targets = {name: stack.enter_context(lab.target(handler)) for name, handler in TARGETS.items()}
        opened = {name: stack.enter_context(lab.open(target.port)) for name, target in targets.items()}
        assert {each.answer.code for each in opened.values()} == {0}
        for each in opened.values():
            each.sock.settimeout(2 * ENDED)
        read_exactly(opened["down"].sock, 1_000_000)
        block = bytes(65536)
        with ThreadPoolExecutor() as threads, vanished(lab, "agent"):
            ends: dict[str, Future[tuple[str, float]]] = {
                "idle": threads.submit(ending, lambda: opened["idle"].sock.recv(1)),
                "down": threads.submit(ending, lambda: opened["down"].sock.recv(65536)),
                "up": threads.submit(ending, lambda: opened["up"].sock.send(block)),
            }
            began = time.monotonic()
            with lab.open(targets["idle"].port) as refused:
                assert refused.answer.code in {ANSWERS[Reason.PEER_UNAVAILABLE].socks, ANSWERS[Reason.TUNNEL_LOST].socks}
            assert time.monotonic() - began < ANSWERED
            for name, end in ends.items():
                how, after = end.result()
                assert (how, after < ENDED) == ("reset", True), (name, how, after)
            assert targets["up"].noted(deadline=ENDED) == ["reset"]  # the machine that is cut off lives, and ends its side as well
            with lab.open(targets["idle"].port) as refused:  # by now the relay knows
                assert refused.answer.code == ANSWERS[Reason.PEER_UNAVAILABLE].socks
        until(lambda: carries(lambda: lab.open(targets["echo"].port)), "the agent is back", SOON, 0.05)


TARGETS = {"idle": hold, "down": pour, "up": note_how_it_ends, "echo": echo}


def copy_of(lab: Lab, agent: Agent) -> Machine:
    """The agent's state, restored on a machine elsewhere."""
    copy = lab.world.machine(lab.network.prefix("laptop"))
    for name in ("identity.pem", "grants.json", "devices.json", "agent.json"):
        (copy.home / name).write_bytes((agent.machine.home / name).read_bytes())
        (copy.home / name).chmod(0o600)
    return copy


def told_of_a_duplicate(agent: Agent) -> bool:
    return Reason.DUPLICATE_DEVICE in agent.process.told("notice")["text"]


def test_two_live_copies_of_one_identity_are_told_to_both_people(lab: Lab) -> None:
    lab.agent.process.forget()
    copy = lab.world.watch(copy_of(lab, lab.agent).start("agent"))
    assert copy.wait() == ANSWERS[Reason.DUPLICATE_DEVICE].exit
    assert "copy" in copy.errors()
    assert told_of_a_duplicate(lab.agent)


def test_a_newer_instance_evicts_a_silent_one_which_is_told_when_it_can_be(lab: Lab) -> None:
    old = lab.agent
    with vanished(lab, "agent"):
        began = time.monotonic()
        new = lab.world.agent(None, machine=copy_of(lab, old))
        assert time.monotonic() - began < ANSWERED
        assert told_of_a_duplicate(new)
    assert old.process.wait() == ANSWERS[Reason.DUPLICATE_DEVICE].exit
    new.process.stop()
    lab.agent = lab.world.agent(None, machine=old.machine)

"""Outages of the relay, and how long everybody takes to be back: for the journeys, and for the soak with more and longer ones."""

import contextlib
import time
from collections.abc import Callable

from tests.journeys import doors
from tests.journeys.lab import RELAY, Lab, inside
from tests.journeys.leaks import Held
from tests.journeys.processes import Running, until
from tests.journeys.targets import echo, read_exactly
from tests.journeys.world import Forwards

SOON = 5.0  #: seconds until all are back after an outage of up to a minute
LATE = 30.0  #: seconds, after a longer one


def carries(sock_of: Callable[[], doors.Opened]) -> bool:
    """Whether a connection made so reaches an echo."""
    with contextlib.suppress(OSError), sock_of() as opened:
        if opened.answer.code == 0:
            opened.sock.sendall(b"hello")
            return read_exactly(opened.sock, 5) == b"hello"
    return False


def through_forward(forwards: Forwards) -> doors.Opened:
    """A connection to the place where a forward on the laptop listens."""
    with inside("laptop"):
        return doors.Opened(doors.Answer(0, {}), doors.connect(("127.0.0.1", forwards.port)))


def outage(lab: Lab, lasting: float, address: str = RELAY) -> dict[str, float]:
    """Kill the relay, let it be away, start it at `address`: seconds from its ready line until each way in works again."""
    with lab.target(echo) as target, lab.world.forward(lab.laptop, f"0:home.tuunel:{target.port}") as forwards:
        ways: dict[str, Callable[[], doors.Opened]] = {
            "proxy": lambda: lab.open(target.port),
            "forward": lambda: through_forward(forwards),
        }
        for name, way in ways.items():
            until(lambda way=way: carries(way), f"the {name} works before the outage")  # type: ignore[misc]
        roles = (lab.agent.process, lab.proxy.process, forwards.process)
        for process in roles:
            process.forget()
        lab.relay.process.kill()
        end = time.monotonic() + lasting
        for process in roles:
            until_offline(process)
        time.sleep(max(0.0, end - time.monotonic()))  # the outage itself
        lab.start_relay(address)
        began = time.monotonic()
        back = {}
        for name, way in ways.items():
            until(lambda way=way: carries(way), f"the {name} works again", LATE, 0.05)  # type: ignore[misc]
            back[name] = time.monotonic() - began
        return back


def until_offline(process: Running) -> None:
    """Wait until the role has said that its relay is gone."""
    while process.told("relay")["state"] != "offline":
        pass


def kills(lab: Lab, count: int) -> dict[str, tuple[Held, Held]]:
    """Kill and restart the relay `count` times, with a connection open each time: what agent and proxy held before and after."""

    def held() -> dict[str, Held]:
        return {"agent": Held.by(lab.agent.process, lab.agent.machine), "proxy": Held.by(lab.proxy.process, lab.laptop)}

    with lab.target(echo) as target:

        def again() -> None:
            with lab.open(target.port):
                lab.relay.process.kill()
            lab.start_relay()
            until(lambda: carries(lambda: lab.open(target.port)), "the tunnel works again", LATE, 0.05)

        again()  # what is made at the first loss, once, is no leak
        before = until(lambda: at_rest(held), "agent and proxy are at rest")
        for _ in range(count):
            again()
        after = until(lambda: at_rest(held), "agent and proxy are at rest")
    return {role: (before[role], after[role]) for role in before}


def at_rest(held: Callable[[], dict[str, Held]]) -> dict[str, Held] | None:
    """What they hold, when a second passes in which it does not change: pools fill in the background."""
    first = held()
    end = time.monotonic() + 1
    while time.monotonic() < end:
        second = held()
        if {role: (each.descriptors, each.threads) for role, each in second.items()} != {
            role: (each.descriptors, each.threads) for role, each in first.items()
        }:
            return None
        time.sleep(0.1)
    return first

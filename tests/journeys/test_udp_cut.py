"""UDP flows outlive what carries them: a relay or an agent that was killed and is up again carries them on."""

import contextlib

import pytest

from tests.journeys.datagrams import Association, DatagramTarget, answering, ask, associated, connected, shout
from tests.journeys.processes import until
from tests.journeys.world import Trio, World

pytestmark = pytest.mark.real

BACK_WITHIN = 30.0


def kill_and_restart(trio: Trio, who: str) -> None:
    """Kill it, and start it again where it was."""
    if who == "agent":
        trio.agent.process.kill()
        trio.world.agent(None, machine=trio.agent.machine)
    else:
        trio.relay.process.kill()
        trio.world.relay(trio.relay.machine, port=trio.relay.port)


def answered(association: Association, target: DatagramTarget, question: bytes) -> bool:
    """Ask once; whether the answer came within half a second."""
    association.sock.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        return association.ask("home.tuunel", target.port, question) == question.upper()
    return False


def test_flows_come_back_by_themselves(own_trio: Trio) -> None:
    with (
        answering(shout) as target,
        own_trio.world.forward(own_trio.walker, f"0:home.tuunel:{target.port}/udp") as forward,
        connected(forward.port) as app,
        associated(own_trio.proxy.address) as association,
    ):

        def app_is_answered() -> bool:
            app.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                return ask(app, b"and now?") == b"AND NOW?"
            return False

        until(lambda: answered(association, target, b"before") and app_is_answered(), "both work")
        for killed in ("agent", "relay"):
            kill_and_restart(own_trio, killed)
            until(lambda: answered(association, target, b"after"), f"the association works with the new {killed}", BACK_WITHIN)
            until(app_is_answered, f"the forward works with the new {killed}", BACK_WITHIN)
        association.control.settimeout(0.1)
        with pytest.raises(TimeoutError):  # the association itself has not ended
            association.control.recv(1)


def test_a_revoke_ends_the_flows_of_that_client(own_world: World, trio: Trio) -> None:
    guest = own_world.laptop(trio.agent.new_invite("--name", "player"))
    proxy = own_world.proxy(guest)
    with answering(shout) as target, associated(proxy.address) as theirs, associated(trio.proxy.address) as mine:
        for association in (theirs, mine):
            assert association.ask("home.tuunel", target.port, b"in") == b"IN"
        trio.agent.machine.ask("revoke", "player")
        until(lambda: not answered(theirs, target, b"still in?"), "the guest is out")
        assert answered(mine, target, b"mine")

"""The whole system under any order of events: what protocol and policy promise holds at every step, and everything ends.

    make test PYTEST_ARGS="tests/model --hypothesis-profile=deep"

runs it for an hour or so; see conftest.py.
"""

from ipaddress import ip_address

import anyio
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from tests.model.book import HOSTS
from tests.model.calls import FIRST_PORT, Call, Peer, new_call
from tests.model.conftest import SETTINGS
from tests.model.house import FORWARDS
from tests.model.system import ANY, PATIENCE, System
from tests.model.wires import Wire, WireStream
from tuunel.errors import Failure, Reason, Speaker
from tuunel.policy import Address
from tuunel.pump import PumpEnd

SIZES = st.sampled_from([1, 100, 20_000, 150_000])
PATTERN = bytes(range(251)) * 600  #: what everybody says: a byte that is missing or in a wrong place shows


class Calls(System):
    """Apps call, targets answer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    async def dialled(self, address: Address, port: int) -> WireStream:
        call = self._judged(address, port)
        if call.slow is not None:
            await call.slow.wait()
        if call.refuses:
            raise Failure(Reason.CONNECTION_REFUSED, Speaker.AGENT)
        return self._connect(call)

    def at_once(self, address: Address, port: int) -> WireStream:
        call = self._judged(address, port)
        if call.slow is not None or call.refuses:
            raise ConnectionRefusedError
        return self._connect(call)

    def _judged(self, address: Address, port: int) -> Call:
        call = self.calls[port - FIRST_PORT]
        if not self.book.may(call.forward, call.host, self.house.now):
            self.wrong.append("a target was dialled for somebody who may not reach it")
        if address != ip_address(call.host or "127.0.0.1"):
            self.wrong.append("another target was dialled than was asked for")
        return call

    def _connect(self, call: Call) -> WireStream:
        wire = Wire("agent", "target", immediate=True)
        call.targets.append(Peer(wire.far))
        call.dialled.append(wire.near)
        return wire.near

    def listen(self) -> bool:
        heard = [peer.listen() for peer in self.peers()]
        return any(heard)

    def is_cut_off(self, name: str) -> bool:
        return all(stream.closed for call in self.calls if call.forward == name for stream in call.dialled)

    def somebody_waits(self) -> bool:
        return any(call.slow for call in self.calls)

    def peers(self) -> list[Peer]:
        return [peer for call in self.calls for peer in (call.app, *call.targets)]

    # apps and targets

    @precondition(lambda self: len(self.calls) < 12)
    @rule(name=st.sampled_from(sorted(FORWARDS)), host=st.sampled_from(sorted(HOSTS)), early=st.sampled_from([0, 0, 5, 20_000]),
          kind=st.sampled_from(["quick", "quick", "slow", "refuses"]), calm=st.booleans())  # fmt: skip
    def call(self, name: str, host: str, early: int, kind: str, calm: bool) -> None:
        if not self.house.parties[name].alive:
            return
        call = new_call(len(self.calls), name, host, PATTERN[:early])
        call.refuses = kind == "refuses"
        call.slow = anyio.Event() if kind == "slow" else None
        self.calls.append(call)
        buffers = self.house.pools[name]._buffers
        self.house.parties[name].start(call.run, self.house.pools[name], self.house.device, buffers)
        self.run(calm=calm)

    @precondition(lambda self: any(call.slow for call in self.calls))
    @rule(calm=st.booleans())
    def targets_answer(self, calm: bool) -> None:
        for call in self.calls:
            if call.slow is not None:
                call.slow.set()
                call.slow = None
        self.run(calm=calm)

    @precondition(lambda self: any(peer.may_say for peer in self.peers()))
    @rule(which=ANY, size=SIZES, calm=st.booleans())
    def somebody_says(self, which: int, size: int, calm: bool) -> None:
        peers = [peer for peer in self.peers() if peer.may_say]
        peer = peers[which % len(peers)]
        at = len(peer.said)
        peer.say(PATTERN[(at + which) % 251 :][:size])
        self.run(calm=calm)

    @precondition(lambda self: any(peer.may_say for peer in self.peers()))
    @rule(which=ANY, calm=st.booleans())
    def somebody_ends(self, which: int, calm: bool) -> None:
        peers = [peer for peer in self.peers() if peer.may_say]
        peers[which % len(peers)].end()
        self.run(calm=calm)

    @precondition(lambda self: any(not peer.over for peer in self.peers()))
    @rule(which=ANY, calm=st.booleans())
    def somebody_resets(self, which: int, calm: bool) -> None:
        peers = [peer for peer in self.peers() if not peer.over]
        peer = peers[which % len(peers)]
        peer.reset()
        next(call for call in self.calls if peer in (call.app, *call.targets)).is_spoilt = True
        self.run(calm=calm)

    @precondition(lambda self: any(not peer.over for peer in self.peers()))
    @rule(which=ANY)
    def somebody_pauses_or_goes_on(self, which: int) -> None:
        peers = [peer for peer in self.peers() if not peer.over]
        peer = peers[which % len(peers)]
        peer.pauses = not peer.pauses
        self.run(calm=True)

    @rule()
    def everybody_has_ended(self) -> None:
        """So that tunnels become free for their next use."""
        for peer in self.peers():
            peer.pauses = False
            peer.end()
        self.run(calm=True)

    # what must hold

    @invariant()
    def what_is_heard_was_said(self) -> None:
        assert not [problem for call in self.calls for problem in call.problems()]

    def everything_ends(self) -> None:
        for call in self.calls:
            if call.slow is not None:
                call.slow.set()
        end = self.house.now + PATIENCE
        while self.house.now < end:
            for peer in self.peers():
                peer.pauses = False
                peer.end()
            self.run(calm=True)
            if all(call.outcome for call in self.calls) and all(target.over for call in self.calls for target in call.targets):
                break
            self.house.let_pass(2)
        self.nothing_is_wrong()
        self.what_is_heard_was_said()
        for call in self.calls:
            assert call.outcome, "an app waits for ever"
            assert all(target.over for target in call.targets), "a target waits for ever"
            if self.peaceful:
                self.was_served(call)

    def was_served(self, call: Call) -> None:
        """Nothing stood in its way: it reached its target, whole, if and only if it might."""
        if call.is_spoilt:
            return
        if not self.book.may(call.forward, call.host, self.house.now) and not call.targets:
            assert call.outcome in {"NOT_PAIRED", "POLICY_DENIED", "POLICY_REVOKED", "PEER_UNAVAILABLE"}
        elif call.refuses:
            assert call.outcome == "CONNECTION_REFUSED"
        else:
            assert call.outcome == PumpEnd.DONE
            (target,) = call.targets
            assert (call.app.heard, target.heard) == (target.said, call.app.said)


def test_a_tunnel_is_used_again_in_this_world() -> None:
    system = Calls()
    try:
        system.pair(two=False)
        for early in (5, 0, 20_000):
            system.call("one", "", early, "quick", calm=True)
            system.somebody_says(0, 20_000, calm=True)
            system.everybody_has_ended()
            system.nothing_is_wrong()
        first, second, third = (call.tunnel for call in system.calls)
        assert second == f"{first}.1"
        assert third == f"{first}.2"
    finally:
        system.teardown()


def test_what_one_target_may_have_heard_is_said_to_no_other() -> None:
    system = Calls()
    try:
        system.pair(two=False)
        system.call("one", "", 5, "slow", calm=True)
        system.targets_answer(calm=False)
        assert [bytes(target.heard) for target in system.calls[0].targets] == [PATTERN[:5]]
        for wire in system.house.wires:
            wire.cut()
        system.peaceful = False
        system.run(calm=True)
        system.nothing_is_wrong()
        assert system.calls[0].outcome == "TUNNEL_LOST"
    finally:
        system.teardown()


TestCalls = Calls.TestCase
TestCalls.settings = SETTINGS

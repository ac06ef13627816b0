"""The whole system under any order of events: what protocol and policy promise holds at every step, and everything ends.

    make test PYTEST_ARGS="tests/model --hypothesis-profile=deep"

runs it for an hour or so; see conftest.py.
"""

import gc
from contextlib import ExitStack, suppress
from ipaddress import ip_address

import anyio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.model.book import ANYWHERE_NEAR, HOSTS, ONE_HOST, Book, KnownInvite
from tests.model.calls import FIRST_PORT, Call, Peer, new_call
from tests.model.conftest import SETTINGS
from tests.model.house import FORWARDS, House, opened
from tests.model.wires import Lane, Wire, WireStream
from tuunel.errors import Failure, Reason, Speaker, UsageError
from tuunel.identity import DeviceID
from tuunel.links import Invite, parse_invite
from tuunel.policy import Address
from tuunel.pump import PumpEnd

NAMES = {key.device_id: name for name, key in FORWARDS.items()}
SIZES = st.sampled_from([1, 100, 20_000, 150_000])
ANY = st.integers(0, 1_000)
PATTERN = bytes(range(251)) * 600  #: what everybody says: a byte that is missing or in a wrong place shows
PATIENCE = 240.0  #: seconds in which everything must have ended on a network that works: three attempts with all their deadlines


class System(RuleBasedStateMachine):
    """Apps call, targets answer, people pair and revoke; processes crash, and the network does what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.house: House = self.stack.enter_context(opened())
        self.house.dialled = self.dialled
        self.house.on_redeemed = self.redeemed
        self.book = Book()
        self.links: list[str] = []
        self.calls: list[Call] = []
        self.wrong: list[str] = []
        self.peaceful = True  # nothing has happened that could cost anybody a connection
        self.watched = {id(wire) for wire in self.house.wires}

    # everybody's part that is not tuunel's

    def redeemed(self, device: DeviceID, invite_id: bytes) -> None:
        self.wrong += self.book.redeemed(NAMES[device], invite_id, self.house.now)

    async def dialled(self, address: Address, port: int) -> WireStream:
        call = self.calls[port - FIRST_PORT]
        if not self.book.may(call.forward, call.host, self.house.now):
            self.wrong.append("a target was dialled for somebody who may not reach it")
        if address != ip_address(call.host or "127.0.0.1"):
            self.wrong.append("another target was dialled than was asked for")
        if call.slow is not None:
            await call.slow.wait()
        if call.refuses:
            raise Failure(Reason.CONNECTION_REFUSED, Speaker.AGENT)
        wire = Wire("agent", "target", immediate=True)
        call.targets.append(Peer(wire.far))
        call.dialled.append(wire.near)
        return wire.near

    def run(self, *, calm: bool) -> None:
        """Let everybody do what is to be done: on a network that works, or on one that delivers nothing."""
        while True:
            self.house.loop.settle()
            if calm:
                self.house.calm()
            heard = [peer.listen() for peer in self.peers()]
            if not any(heard):
                return

    def peers(self) -> list[Peer]:
        return [peer for call in self.calls for peer in (call.app, *call.targets)]

    # people

    @initialize(two=st.booleans(), where=st.sampled_from([ANYWHERE_NEAR, ONE_HOST]))
    def pair(self, two: bool, where: tuple[str, ...] = ANYWHERE_NEAR) -> None:
        self.invite(2 if two else 1, where, None)
        for name in FORWARDS if two else ("one",):
            self.redeem(name, 0, calm=True)
        assert self.book.is_in("one", self.house.now)
        assert self.book.is_in("two", self.house.now) == two

    @precondition(lambda self: self.house.parties["agent"].alive and len(self.links) < 8)
    @rule(uses=st.integers(1, 2), where=st.sampled_from([ANYWHERE_NEAR, ONE_HOST]), access=st.sampled_from([None, None, 20]))
    def invite(self, uses: int, where: tuple[str, ...], access: int | None) -> None:
        asked: list[str] = []

        async def make() -> None:
            with suppress(Failure):  # the agent is offline
                answer = await self.house.agent._make_invite({"uses": uses, "targets": list(where), "for": access})
                asked.append(str(answer["invite"]))

        self.house.parties["agent"].start(make)
        self.run(calm=True)
        if asked:
            invite = parse_invite(asked[0])
            self.book.invites[invite.invite_id] = KnownInvite(invite.invite_id, uses, self.house.now + 900, where, access)
            self.links.append(asked[0])

    @precondition(lambda self: self.links)
    @rule(name=st.sampled_from(sorted(FORWARDS)), which=ANY, calm=st.booleans())
    def redeem(self, name: str, which: int, calm: bool) -> None:
        if self.house.parties[name].alive:
            self.house.parties[name].start(self.prove, name, parse_invite(self.links[which % len(self.links)]))
            self.run(calm=calm)

    @precondition(lambda self: self.links)
    @rule(which=ANY)
    def both_redeem_at_once(self, which: int) -> None:
        for name in FORWARDS:
            self.redeem(name, which, calm=False)
        self.run(calm=True)

    async def prove(self, name: str, invite: Invite) -> None:
        with suppress(Failure):
            await self.house.pools[name].prove(self.house.device, invite)

    @precondition(lambda self: self.house.parties["agent"].alive)
    @rule(name=st.sampled_from(sorted(FORWARDS)))
    def revoke(self, name: str) -> None:
        done: list[bool] = []

        async def revoke() -> None:
            with suppress(UsageError):  # nobody of that name may come in
                await self.house.agent._revoke({"who": str(FORWARDS[name].device_id)})
                done.append(True)

        was_in = self.book.is_in(name, self.house.now)
        self.house.parties["agent"].start(revoke)
        # Its whole effect must be there before anything else happens, and without the network.
        self.house.loop.settle()
        assert done or not was_in
        if done:
            self.peaceful = False
            self.book.revoked(name)
        for call in self.calls:
            assert call.forward != name or all(stream.closed for stream in call.dialled), "a revoke has left a connection"
        self.run(calm=False)

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

    # the network

    def lanes(self) -> list[Lane]:
        return [lane for wire in self.house.wires for lane in wire.lanes if lane.news]

    @precondition(lambda self: self.lanes())
    @rule(which=ANY, many=st.sampled_from([1, 3, 700, 1_000_000]))
    def something_arrives(self, which: int, many: int) -> None:
        lanes = self.lanes()
        lanes[which % len(lanes)].deliver(many)
        self.run(calm=False)

    @rule()
    def everything_arrives(self) -> None:
        self.run(calm=True)

    @precondition(lambda self: any(lane.moving for lane in self.lanes()))
    @rule(which=ANY, at=st.integers(0, 1 << 20), how=st.sampled_from(["flip", "lose", "double", "swap", "add"]), calm=st.booleans())
    def the_relay_meddles(self, which: int, at: int, how: str, calm: bool) -> None:
        lanes = [lane for lane in self.lanes() if lane.moving]
        moving = lanes[which % len(lanes)].moving
        at %= len(moving)
        part = moving[at : at + 100]
        match how:
            case "flip":
                moving[at] ^= 1 << which % 8
            case "lose":
                del moving[at : at + 100]
            case "double":
                moving[at:at] = part
            case "swap":
                moving[at : at + 100] = part[len(part) // 2 :] + part[: len(part) // 2]
            case _:
                moving[at:at] = bytes(20)
        self.peaceful = False
        self.run(calm=calm)

    @precondition(lambda self: any(not wire.over for wire in self.house.wires))
    @rule(which=ANY, calm=st.booleans())
    def a_connection_is_cut(self, which: int, calm: bool) -> None:
        wires = [wire for wire in self.house.wires if not wire.over]
        wires[which % len(wires)].cut()
        self.peaceful = False
        self.run(calm=calm)

    @precondition(lambda self: len(self.house.wires) > 1)
    @rule(which=ANY)
    def two_tunnels_are_crossed(self, which: int) -> None:
        """What is under way on one connection arrives on another."""
        one, other = (self.house.wires[(which + n) % len(self.house.wires)] for n in range(2))
        one.forth.moving, other.forth.moving = other.forth.moving, one.forth.moving
        self.peaceful = False
        self.run(calm=False)

    @rule(seconds=st.sampled_from([1, 4, 16, 70]), calm=st.booleans())
    def time_passes(self, seconds: int, calm: bool) -> None:
        if calm:
            self.house.let_pass(seconds)
        else:
            self.peaceful = False
            self.house.loop.advance(seconds)
        if any(call.slow for call in self.calls) or any(invite.access for invite in self.book.invites.values()):
            self.peaceful = False  # somebody may have waited too long, or was let in for a while only
        self.run(calm=calm)

    @rule(name=st.sampled_from(["relay", "agent", *FORWARDS]), back=st.booleans())
    def somebody_crashes(self, name: str, back: bool) -> None:
        self.peaceful = False
        self.house.crash(name)
        if back:
            self.house.start(name)
        self.run(calm=False)

    @precondition(lambda self: any(not party.alive for party in self.house.parties.values()))
    @rule()
    def everybody_is_started(self) -> None:
        self.start_all()
        self.run(calm=True)

    def start_all(self) -> None:
        for name, party in self.house.parties.items():
            if not party.alive:
                self.peaceful = False
                self.house.start(name)

    # what must hold

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert not self.wrong
        assert not self.house.faults()
        assert not [problem for call in self.calls for problem in call.problems()]

    def teardown(self) -> None:
        try:
            self.everything_ends()
            self.nothing_is_left()
        finally:
            self.stack.close()

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

    def nothing_is_left(self) -> None:
        self.house.end()
        assert not self.house.faults()
        assert not any(pool.lent for pool in self.house.buffers), "a buffer was kept"
        gc.collect()
        assert not self.house.witness.prekeys, "an offer's keys were kept"
        assert not self.house.witness.ciphers, "a cipher was kept"


def test_a_tunnel_is_used_again_in_this_world() -> None:
    system = System()
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
    system = System()
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


TestSystem = System.TestCase
TestSystem.settings = SETTINGS

"""What every model of the system shares: people who pair and revoke, processes that crash, and a network that does what it likes."""

import gc
from contextlib import ExitStack, suppress

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.model.book import ANYWHERE_NEAR, ONE_HOST, Book, KnownInvite
from tests.model.house import FORWARDS, House, opened
from tests.model.wires import Lane, WireStream
from tuunel.errors import Failure, UsageError
from tuunel.identity import DeviceID
from tuunel.links import Invite, parse_invite
from tuunel.policy import Address

NAMES = {key.device_id: name for name, key in FORWARDS.items()}
ANY = st.integers(0, 1_000)
PATIENCE = 240.0  #: seconds in which everything must have ended on a network that works: three attempts with all their deadlines


class System(RuleBasedStateMachine):
    """People pair and revoke; processes crash, and the network does what it likes. What apps do, a subclass says."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.house: House = self.stack.enter_context(opened())
        self.house.dialled = self.dialled
        self.house.at_once = self.at_once
        self.house.on_redeemed = self.redeemed
        self.book = Book()
        self.links: list[str] = []
        self.wrong: list[str] = []
        self.peaceful = True  # nothing has happened that could cost anybody a connection

    # what apps and targets do

    async def dialled(self, address: Address, port: int) -> WireStream:
        """The agent connects to a target."""
        raise NotImplementedError

    def at_once(self, address: Address, port: int) -> WireStream:
        """The agent connects to a target of its own machine. OSError when that takes a wait, or fails."""
        raise NotImplementedError

    def listen(self) -> bool:
        """Let apps and targets hear what has come; whether there was anything."""
        raise NotImplementedError

    def is_cut_off(self, name: str) -> bool:
        """Whether nothing of a forward proxy leads to a target any more."""
        raise NotImplementedError

    def somebody_waits(self) -> bool:
        """Whether an app waits for its target to answer."""
        return False

    def everything_ends(self) -> None:
        """Let all apps and targets end, and see that everything does."""
        raise NotImplementedError

    # everybody's part that is not tuunel's

    def redeemed(self, device: DeviceID, invite_id: bytes) -> None:
        self.wrong += self.book.redeemed(NAMES[device], invite_id, self.house.now)

    def run(self, *, calm: bool) -> None:
        """Let everybody do what is to be done: on a network that works, or on one that delivers nothing."""
        while True:
            self.house.loop.settle()
            if calm:
                self.house.calm()
            if not self.listen():
                return

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
            assert self.is_cut_off(name), "a revoke has left a connection"
        self.run(calm=False)

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
        if self.somebody_waits() or any(invite.access for invite in self.book.invites.values()):
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
        assert not self.house.faults(), self.house.faults()

    def teardown(self) -> None:
        try:
            self.everything_ends()
            self.nothing_is_left()
        finally:
            self.stack.close()

    def nothing_is_left(self) -> None:
        self.house.end()
        assert not self.house.faults(), self.house.faults()
        assert not any(pool.lent for pool in self.house.buffers), "a buffer was kept"
        gc.collect()
        assert not self.house.witness.prekeys, "an offer's keys were kept"
        assert not self.house.witness.ciphers, "a cipher was kept"

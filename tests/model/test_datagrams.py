"""UDP in the whole system under any order of events: no datagram reaches anybody whom it is not for, and no socket is kept.

    make test PYTEST_ARGS="tests/model --hypothesis-profile=deep"

runs it for an hour or so; see conftest.py.
"""

from ipaddress import ip_address

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from tests.model.book import HOSTS
from tests.model.conftest import SETTINGS
from tests.model.datagrams import FIRST_PORT, Client, Place, TargetSocket
from tests.model.house import FORWARDS
from tests.model.system import ANY, PATIENCE, System
from tests.model.wires import WireStream
from tuunel.policy import Address

LOOPBACK = {ip_address("127.0.0.1"), ip_address("::1")}
WATCH = 1.5  #: seconds in which the agent notices that a grant has ended: it looks once a second


class Datagrams(System):
    """Clients ask, targets answer."""

    def __init__(self) -> None:
        super().__init__()
        self.clients: list[Client] = []
        self.places: list[Place] = []
        self.serial = 0
        self.house.connected = self.connected

    # everybody's part that is not tuunel's

    async def dialled(self, address: Address, port: int) -> WireStream:
        raise AssertionError("nobody asks for TCP here")

    def at_once(self, address: Address, port: int) -> WireStream:
        raise AssertionError("nobody asks for TCP here")

    def connected(self, address: Address, port: int) -> TargetSocket:
        place = self.places[port - FIRST_PORT]
        if not self.book.may(place.client.forward, place.host, self.house.now):
            self.wrong.append("a socket was made for somebody who may not reach its target")
        if address not in ({ip_address(place.host)} if place.host else LOOPBACK):
            self.wrong.append("another target was connected than was asked for")

        def judge(_: bytes) -> None:
            allowed = any(self.book.may(place.client.forward, place.host, self.house.now - late) for late in (0, WATCH))
            if not allowed:
                self.wrong.append("a target was sent a datagram of somebody who may not reach it")

        socket = TargetSocket(address, judge)
        place.sockets.append(socket)
        return socket

    def listen(self) -> bool:
        return False  # what comes is heard at once

    def sockets(self) -> list[tuple[Place, TargetSocket]]:
        return [(place, socket) for place in self.places for socket in place.sockets if not socket.closed]

    def is_cut_off(self, name: str) -> bool:
        return all(place.client.forward != name for place, _ in self.sockets())

    def fresh(self, words: str) -> bytes:
        self.serial += 1
        return f"{words} {self.serial}".encode()

    # clients and targets

    @precondition(lambda self: len(self.clients) < 6)
    @rule(name=st.sampled_from(sorted(FORWARDS)))
    def a_client_comes(self, name: str) -> None:
        if self.house.parties[name].alive:
            client = Client(len(self.clients), name, self.wrong.append)
            self.clients.append(client)
            self.house.parties[name].start(client.run, self.house.pools[name], self.house.device)

    def present(self) -> list[Client]:
        return [client for client in self.clients if not (client.over or client.leaving.is_set())]

    @precondition(lambda self: self.present() and len(self.places) < 24)
    @rule(which=ANY, host=st.sampled_from(["", "", *sorted(HOSTS)]), many=st.sampled_from([1, 1, 5]), calm=st.booleans())
    def somebody_asks(self, which: int, host: str, many: int, calm: bool) -> None:
        client = self.present()[which % len(self.present())]
        place = next((place for place in client.places.values() if place.host == host), None)
        if place is None:
            place = Place(len(self.places), client, host)
            self.places.append(place)
            client.places[place.name] = place
        place.is_spoilt = place.is_spoilt or not self.book.may(client.forward, host, self.house.now)
        for _ in range(many):
            self.house.parties[client.forward].start(client.ask, place, self.fresh(f"to {place.number}"))
        self.run(calm=calm)

    @precondition(lambda self: self.sockets())
    @rule(which=ANY, many=st.sampled_from([1, 1, 5]), calm=st.booleans())
    def a_target_says(self, which: int, many: int, calm: bool) -> None:
        place, socket = self.sockets()[which % len(self.sockets())]
        for _ in range(many):
            socket.say(self.fresh(f"of {place.number}"))
        self.run(calm=calm)

    @precondition(lambda self: self.sockets())
    @rule(which=ANY, calm=st.booleans())
    def a_target_refuses(self, which: int, calm: bool) -> None:
        place, socket = self.sockets()[which % len(self.sockets())]
        place.is_spoilt = True
        socket.refuse()
        self.run(calm=calm)

    @precondition(lambda self: self.present())
    @rule(which=ANY, calm=st.booleans())
    def a_client_leaves(self, which: int, calm: bool) -> None:
        self.present()[which % len(self.present())].leaving.set()
        self.run(calm=calm)

    # what must hold

    @invariant()
    def what_is_heard_was_said(self) -> None:
        assert not [problem for place in self.places for problem in place.problems()]

    def everything_ends(self) -> None:
        self.run(calm=True)
        if self.peaceful:
            for place in self.places:
                self.was_served(place)
        for client in self.clients:
            client.leaving.set()
        if self.peaceful:
            self.house.let_pass(5)
            assert not self.sockets(), "a client's leave has left a socket"
        end = self.house.now + PATIENCE
        while self.house.now < end and not (all(client.over for client in self.clients) and not self.sockets()):
            self.house.let_pass(2)
        self.nothing_is_wrong()
        self.what_is_heard_was_said()
        assert all(client.over for client in self.clients), "a client cannot leave"
        assert not self.sockets(), "a socket is kept for nobody"

    def was_served(self, place: Place) -> None:
        """Nothing stood in its way: every datagram arrived, both ways."""
        if not place.is_spoilt and not place.client.leaving.is_set():
            assert [payload for socket in place.sockets for payload in socket.got] == place.asked
            assert place.heard == [payload for socket in place.sockets for payload in socket.said]


def test_datagrams_go_both_ways_in_this_world_and_an_idle_flow_ends() -> None:
    system = Datagrams()
    try:
        system.pair(two=False)
        system.a_client_comes("one")
        system.somebody_asks(0, "", 5, calm=True)
        ((place, first),) = system.sockets()
        assert first.got == place.asked
        system.a_target_says(0, 5, calm=True)
        assert place.heard == first.said
        system.somebody_asks(0, "8.8.8.8", 1, calm=True)
        assert len(system.sockets()) == 1
        system.house.let_pass(70)
        assert first.closed
        system.somebody_asks(0, "", 1, calm=True)
        ((_, second),) = system.sockets()
        assert second.got == place.asked[5:]
        system.revoke("one")
        assert second.closed
        system.somebody_asks(0, "", 1, calm=True)
        assert not system.sockets()
    finally:
        system.teardown()


def test_a_flow_that_is_idle_ends_alone() -> None:
    system = Datagrams()
    try:
        system.pair(two=False)
        system.a_client_comes("one")
        system.somebody_asks(0, "", 1, calm=True)
        system.house.let_pass(45)
        system.somebody_asks(0, "192.168.7.5", 1, calm=True)
        (_, idle), (busy, socket) = system.sockets()
        system.house.let_pass(30)
        assert idle.closed
        assert [each for _, each in system.sockets()] == [socket]
        system.a_target_says(0, 1, calm=True)
        assert busy.heard == socket.said
        system.somebody_asks(0, "", 1, calm=True)  # a new number, or the old one again
        assert [len(place.sockets) for place in system.places] == [2, 1]
    finally:
        system.teardown()


TestDatagrams = Datagrams.TestCase
TestDatagrams.settings = SETTINGS

"""A game's traffic: a thousand datagrams of 1,200 bytes a second, each answered, none lost, in order."""

import concurrent.futures
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.journeys.datagrams import DatagramTarget, answering, associated, connected, echo_datagrams, read_udp, udp_header
from tests.journeys.world import Forwards, Trio, World

pytestmark = pytest.mark.real

RATE, SECONDS, SIZE = 1000, 10, 1200
PLAYERS = 4  # each a flow of its own; together they send at RATE
SHARE = RATE * SECONDS // PLAYERS
GAMES = 3  # a machine that stands still for half a second has lost datagrams wherever they wait: another game, then
SILENCE = 5.0  # what has not come by then is lost


@dataclass(frozen=True)
class Player:
    """One flow: `header` stands before each payload, both ways."""

    sock: socket.socket
    header: bytes = b""

    def say(self, number: int) -> None:
        self.sock.send(self.header + struct.pack(">I", number) + bytes(SIZE - 4))

    def hear(self) -> int:
        """The number of the next answer."""
        data = self.sock.recv(65536)
        answer = read_udp(data)[2] if self.header else data
        assert len(answer) == SIZE
        return int(struct.unpack_from(">I", answer)[0])

    def play(self) -> list[int]:
        """Send this player's share by the clock; return the numbers of the answers as they came."""
        came: list[int] = []
        began, sent = time.monotonic(), 0
        while len(came) < SHARE:
            due = min(SHARE, int((time.monotonic() - began) * RATE / PLAYERS) + 1)
            for number in range(sent, due):
                self.say(number)
            sent = due
            patience = began + sent * PLAYERS / RATE - time.monotonic() if sent < SHARE else SILENCE
            if select.select([self.sock], [], [], max(0.0, patience))[0]:
                came.append(self.hear())
            elif sent == SHARE:
                break
        return came


@pytest.fixture
def target() -> Iterator[DatagramTarget]:
    with answering(echo_datagrams) as made:
        yield made


@pytest.fixture
def forward(own_world: World, trio: Trio, target: DatagramTarget) -> Forwards:
    return own_world.forward(trio.walker, f"0:home.tuunel:{target.port}/udp")


@pytest.fixture
def players(trio: Trio, target: DatagramTarget, forward: Forwards) -> Iterator[list[Player]]:
    """Half of them through a forward, half through an association of SOCKS each; all have greeted, so that their flows are open."""
    with (
        associated(trio.proxy.address) as first,
        associated(trio.proxy.address) as second,
        connected(forward.port) as third,
        connected(forward.port) as fourth,
    ):
        header = udp_header("home.tuunel", target.port)
        for association in (first, second):
            association.sock.connect(association.relay)
        made = [Player(first.sock, header), Player(second.sock, header), Player(third), Player(fourth)]
        for player in made:
            player.say(0)
            assert player.hear() == 0
        yield made


def test_a_game_at_a_thousand_datagrams_a_second(players: list[Player]) -> None:
    def game() -> Iterator[list[int]]:
        with concurrent.futures.ThreadPoolExecutor(PLAYERS) as pool:
            yield from pool.map(Player.play, players)

    lost = RATE * SECONDS
    for _ in range(GAMES):
        answers = list(game())
        for came in answers:
            assert came == sorted(set(came)), "each once, and in order"
        lost = RATE * SECONDS - sum(map(len, answers))
        if not lost:
            break
    assert lost == 0

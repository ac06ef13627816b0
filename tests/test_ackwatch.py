"""A peer that is gone is told from one that does not read, by what its kernel acknowledges."""

import socket
import sys
from collections.abc import Iterator

import pytest

from tuunel.ackwatch import AckWatch
from tuunel.rawstream import RawStream


class Peer:
    """What the kernel says of a stream: how long ago the last acknowledgement came, None while nothing is sent again."""

    def __init__(self) -> None:
        self.age: float | None = None

    def unacknowledged(self) -> float | None:
        return self.age


@pytest.fixture
def peer() -> Peer:
    return Peer()


def ask(watch: AckWatch, peer: Peer, now: float, age: float | None) -> float:
    peer.age = age
    return watch.unanswered(peer, now)  # type: ignore[arg-type]


def test_silence_counts_from_the_first_look_that_saw_it(peer: Peer) -> None:
    """The last acknowledgement may be as old as the last byte: an hour of rest is no silence."""
    watch = AckWatch()
    assert ask(watch, peer, 100, 3600) == 0
    assert ask(watch, peer, 105, 3605) == 5
    assert ask(watch, peer, 131, 3631) == 31


def test_an_acknowledgement_begins_it_anew(peer: Peer) -> None:
    """A reader that pauses answers the question whether there is room, however seldom that is asked."""
    watch = AckWatch()
    ask(watch, peer, 100, 10)
    assert ask(watch, peer, 125, 3) == 3
    assert ask(watch, peer, 128, None) == 0
    assert ask(watch, peer, 200, 75) == 0


@pytest.fixture
def pair() -> Iterator[tuple[RawStream, socket.socket]]:
    """A stream, and the other end of its connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = RawStream(socket.create_connection(listener.getsockname()))
        other, _ = listener.accept()
    with other:
        yield stream, other
    stream.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not say")
def test_a_live_peer_that_does_not_read_is_not_gone(pair: tuple[RawStream, socket.socket]) -> None:
    stream, _ = pair
    while stream.send_now(bytes(65536)):
        pass
    watch = AckWatch()
    for now in range(0, 100, 5):  # as if it took so long: each question has been answered
        assert watch.unanswered(stream, now) < 30


def test_a_closed_stream_says_nothing(pair: tuple[RawStream, socket.socket]) -> None:
    stream, _ = pair
    stream.close()
    assert stream.unacknowledged() is None

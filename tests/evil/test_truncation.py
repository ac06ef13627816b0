"""The relay ends the tunnel: at every boundary between two messages and inside them, in each direction, cleanly or by a reset.

No app takes it for an end: what it has heard is the beginning of what was said, and then the connection is reset, or the request
fails with a name.
"""

import pytest

from tests.evil.relay import Cut, Pieces, Plot
from tests.evil.stage import CUT_SHORT, Stage, ends
from tests.evil.verdict import RESET, Expected
from tuunel.errors import Reason

pytestmark = pytest.mark.anyio

FIN_SIZE = 21  #: bytes of a FIN record, and of no other in these tunnels
LAST = 99  #: stands for the FIN
WITHOUT_ANSWER = Expected(ends(Reason.TUNNEL_LOST), dials=1)
SOMETIME = Expected(ends(RESET, Reason.TUNNEL_LOST), dials=1)


class CutAt(Plot):
    """End one direction behind `kept` bytes (from the end, if negative) of its message `at`."""

    def __init__(self, way: str, at: int, kept: int, *, clean: bool) -> None:
        super().__init__()
        self._way, self._at, self._kept, self._clean = way, at, kept, clean

    def _change(self, way: str, number: int, message: bytes) -> Pieces:
        if way != self._way or (len(message) != FIN_SIZE if self._at == LAST else number != self._at):
            yield message
            return
        self.struck += 1
        yield message[: self._kept]
        raise Cut if self._clean else ConnectionResetError

    def up(self, number: int, message: bytes) -> Pieces:
        return self._change("up", number, message)

    def down(self, number: int, message: bytes) -> Pieces:
        return self._change("down", number, message)


#: up: INIT, CONNECT, app bytes, FIN. down: ACCEPT, CONNECTED, app bytes, FIN.
MESSAGES = (0, 1, 2, 3, 4, 5, LAST)


def expected(way: str, at: int) -> Expected:
    if at == 0 or (way, at) == ("down", 1):
        return WITHOUT_ANSWER
    # behind INIT the agent may answer before it sees the end
    return SOMETIME if (way, at) in {("up", 1), ("up", 2)} else CUT_SHORT


@pytest.mark.parametrize("clean", [True, False], ids=["end", "reset"])
@pytest.mark.parametrize("way", ["up", "down"])
async def test_no_end_between_two_messages_passes_for_an_end_of_the_app(stage: Stage, way: str, clean: bool) -> None:
    assert await stage.attack((f"before {at}", CutAt(way, at, 0, clean=clean), expected(way, at)) for at in MESSAGES) == {}


@pytest.mark.parametrize("kept", [1, 3, -1], ids=["behind a byte", "behind the length", "before the last byte"])
@pytest.mark.parametrize("way", ["up", "down"])
async def test_no_end_inside_a_message_passes_for_an_end_of_the_app(stage: Stage, way: str, kept: int) -> None:
    assert await stage.attack((f"inside {at}", CutAt(way, at, kept, clean=True), expected(way, at)) for at in (0, 1, 3, LAST)) == {}

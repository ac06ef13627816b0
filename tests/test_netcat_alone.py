"""A tunnel of `nc`'s own: what standard input has to say at the start goes along in its first flight, once."""

import socket

import anyio
import pytest

from tests.world import PATIENCE, echo, trio, world
from tuunel import firstwords
from tuunel.earlybytes import EarlyBytes
from tuunel.forwarding import Destination
from tuunel.netcat_alone import _OwnTunnel
from tuunel.rawstream import RawStream

pytestmark = pytest.mark.anyio


async def test_first_words_go_with_the_request_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    took: list[bytes] = []
    really_take = EarlyBytes.take

    def note(self: EarlyBytes) -> bytes:
        took.append(really_take(self))
        return took[-1]

    async with world() as made:
        roles = await trio(made)
        port = await made.target(echo)
        own = _OwnTunnel(roles.home, Destination("home.tuunel", port))
        monkeypatch.setattr(firstwords, "_look", lambda: b"hello")
        monkeypatch.setattr(EarlyBytes, "take", note)
        ours, theirs = socket.socketpair()
        with theirs, anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(own._pump, theirs)
                stream = RawStream(ours)
                assert await stream.receive_exactly(5) == b"hello"
                await stream.send_all(b" and more")
                await stream.write_eof()
                assert await stream.receive_exactly(9) == b" and more"
                assert await stream.receive() == b""
                stream.close()
        assert took == [b"hello"]
        assert own.words.said == 5
        assert own.pumped.result() == "done"


def test_they_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firstwords, "_look", lambda: b"hello")
    words = firstwords.FirstWords()
    assert (words.look(), words.look(), words.said) == (b"hello", b"", 5)

"""A dial for a client that may go meanwhile: what became of the client is never forgotten, whoever hears of it first."""

import socket
from dataclasses import replace
from typing import Any, Final, Self

import anyio
import pytest

from tests.streams import receive_all, tcp_pair
from tests.world import PATIENCE, until
from tuunel import outbound as module
from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.earlybytes import EarlyBytes
from tuunel.events import Traffic
from tuunel.frontdoor import EARLY_LIMIT, Request
from tuunel.outbound import Outbound, _ClientWatch, dial_for_client, pipe
from tuunel.pump import BROKEN
from tuunel.rawstream import RESET_ON_CLOSE, RawStream

pytestmark = pytest.mark.anyio

REQUEST: Final = Request(HostPort("target", 80), "forward", b"")


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


async def test_a_reset_that_was_seen_stays_seen() -> None:
    """The kernel tells of it once, and whoever is told may be cancelled before he can tell."""
    near, far = tcp_pair()
    client = RawStream(near)
    reset(far)
    await client.wait_readable()
    with pytest.raises(ConnectionResetError):
        _ClientWatch(client, 100)._read()
    assert client.broken()


class Asking:
    """A dial for a client, whose request leaves when the test says so. It is answered where the context is left."""

    def __init__(self, request: Request, *, verbatim: bool) -> None:
        self.traffic = Traffic()
        self.took = self.ahead = b""  #: what the request took along, and what was read behind it
        self._near, self.app = tcp_pair()
        self.client = RawStream(self._near)
        self._request, self._verbatim = request, verbatim
        self._leaves, self._left, self._answered = anyio.Event(), anyio.Event(), anyio.Event()

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._answered.set()
        await self._tasks.__aexit__(*error)
        self.app.close()

    async def leave(self) -> None:
        """Let the request leave."""
        self._leaves.set()
        await self._left.wait()

    def unread(self) -> bytes:
        """What the client has sent, and nobody has read."""
        try:
            return self._near.recv(EARLY_LIMIT, socket.MSG_PEEK)
        except BlockingIOError:
            return b""

    async def _run(self) -> None:
        outbound, self.ahead = await dial_for_client(self._dial, self._request, self.client, verbatim=self._verbatim)
        outbound.reset()

    async def _dial(self, request: Request, early: EarlyBytes) -> Outbound:
        await self._leaves.wait()
        self.took = early.take()
        self._left.set()
        await self._answered.wait()
        near, far = tcp_pair()
        far.close()
        return Outbound(RawStream(near), self.traffic, lambda _: None)


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("verbatim", [False, True])
async def test_what_comes_before_the_request_leaves_goes_with_it(monkeypatch: pytest.MonkeyPatch, verbatim: bool, watched: bool) -> None:
    """If it is the target's as it is: else somebody has to read it first, and nothing but what he has read goes along."""
    monkeypatch.setattr(module, "PROMPT", 0 if watched else 3600)
    async with Asking(replace(REQUEST, early=b"one "), verbatim=verbatim) as asking:
        asking.app.sendall(b"two ")
        await until(lambda: not (watched and asking.unread()))
        asking.app.sendall(b"three ")
        await asking.leave()
        asking.app.sendall(b"four")
        await until(lambda: not (watched and asking.unread()))
        asking.app.shutdown(socket.SHUT_WR)
    assert asking.took == (b"one two three " if verbatim else b"one ")
    assert asking.took + asking.ahead + await receive_all(asking.client) == b"one two three four"
    assert asking.traffic.up == len(asking.took)
    asking.client.close()


@pytest.mark.parametrize("watched", [False, True])
async def test_no_more_than_the_limit_is_read_before_the_target_is_there(monkeypatch: pytest.MonkeyPatch, watched: bool) -> None:
    monkeypatch.setattr(module, "PROMPT", 0 if watched else 3600)
    monkeypatch.setattr(module, "EARLY_LIMIT", 10)
    async with Asking(replace(REQUEST, early=b"01"), verbatim=True) as asking:
        asking.app.sendall(b"23456")
        await until(lambda: not (watched and asking.unread()))
        await asking.leave()
        asking.app.sendall(b"789abc")
        await until(lambda: not watched or asking.unread() == b"abc")
        asking.app.shutdown(socket.SHUT_WR)
    assert asking.took == b"0123456"
    assert asking.ahead == (b"789" if watched else b"")
    assert asking.took + asking.ahead + await receive_all(asking.client) == b"0123456789abc"
    asking.client.close()


async def test_room_that_was_used_up_while_the_client_is_watched_is_no_end_of_it() -> None:
    near, app = tcp_pair()
    client = RawStream(near)
    watch = _ClientWatch(client, 3)
    app.sendall(b"1234")
    await client.wait_readable()
    assert watch.take() == b"123"
    assert watch._read() is False
    assert not client.at_end
    assert watch.take() == b""
    assert client.receive_now() == b"4"
    client.close()
    app.close()


@pytest.mark.parametrize("verbatim", [False, True])
async def test_nothing_more_is_read_where_more_than_the_limit_came_with_the_request(
    monkeypatch: pytest.MonkeyPatch, verbatim: bool
) -> None:
    """As behind the guard of --http-hosts, which reads one byte more to tell a head that is too long."""
    monkeypatch.setattr(module, "PROMPT", 0)
    async with Asking(replace(REQUEST, early=bytes(EARLY_LIMIT + 1)), verbatim=verbatim) as asking:
        asking.app.sendall(b"more")
        await asking.leave()
        assert asking.unread() == b"more"
    assert (len(asking.took), asking.ahead) == (EARLY_LIMIT + 1, b"")
    asking.client.close()


@pytest.mark.parametrize("how", ["ends", "resets"])
async def test_a_client_that_has_gone_when_the_request_leaves_is_met_by_who_reads_it_next(how: str) -> None:
    """The request takes along what there is, and does not fail for it."""
    async with Asking(REQUEST, verbatim=True) as asking:
        asking.app.sendall(b"one")
        if how == "resets":
            reset(asking.app)
            await asking.client.wait_readable()
        else:
            asking.app.shutdown(socket.SHUT_WR)
        await asking.leave()
    if how == "ends":
        assert (asking.took, asking.ahead, await receive_all(asking.client)) == (b"one", b"", b"")
    else:
        with pytest.raises(BROKEN):
            await receive_all(asking.client)
    asking.client.close()


@pytest.mark.parametrize("answer_first", [True, False])
async def test_a_reset_beside_the_answer_is_no_clean_end(*, answer_first: bool) -> None:
    """Half of an upload must not look like the whole of it to the target."""
    near, app = tcp_pair()
    far, target = tcp_pair()
    answer, answered = socket.socketpair()
    ended: list[str] = []
    buffers = BufferPool()

    async def dial(_: Request, early: EarlyBytes) -> Outbound:
        await anyio.wait_readable(answered)
        return Outbound(RawStream(far), Traffic(), ended.append)

    async def serve(client: RawStream) -> None:
        outbound, ahead = await dial_for_client(dial, REQUEST, client)
        await outbound.send(buffers, ahead)
        await pipe(client, outbound, buffers)

    with answer, answered, target:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, RawStream(near))
            app.sendall(b"half")
            await anyio.wait_all_tasks_blocked()
            if answer_first:
                answer.send(b"!")
            reset(app)
            answer.send(b"!")
            target.settimeout(PATIENCE)
        assert target.recv(100) == b"half"
        with pytest.raises(ConnectionResetError):
            target.recv(100)
    assert ended == ["reset"]

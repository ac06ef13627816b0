"""A dial for a client that may go meanwhile: what became of the client is never forgotten, whoever hears of it first."""

import socket
from typing import Final

import anyio
import pytest

from tests.streams import tcp_pair
from tests.world import PATIENCE
from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.events import Traffic
from tuunel.frontdoor import Request
from tuunel.outbound import Outbound, _ClientWatch, dial_for_client, pipe
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
        _ClientWatch(client, 100)._take()
    assert client.broken()


@pytest.mark.parametrize("answer_first", [True, False])
async def test_a_reset_beside_the_answer_is_no_clean_end(*, answer_first: bool) -> None:
    """Half of an upload must not look like the whole of it to the target."""
    near, app = tcp_pair()
    far, target = tcp_pair()
    answer, answered = socket.socketpair()
    ended: list[str] = []
    buffers = BufferPool()

    async def dial(_: Request) -> Outbound:
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

"""A connection that never leaves this machine is not paced; any other is left to the system."""

import socket
import sys
from collections.abc import Sequence

import anyio
import pytest

from tuunel.address import HostPort
from tuunel.dial import Address, dial
from tuunel.listen import address_of, close_listener, open_listeners

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system's own is kept"),
]

NAME_SIZE = 16  # TCP_CA_NAME_MAX in linux/tcp.h


def everything(addresses: Sequence[Address]) -> Sequence[Address]:
    return addresses


def control_of(sock: socket.socket) -> str:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, NAME_SIZE).rstrip(b"\0").decode()


@pytest.fixture
def own() -> str:
    """What the system gives a connection of which nothing else is said."""
    with socket.socket() as sock:
        return control_of(sock)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_both_ends_within_the_machine_are_not_paced(host: str) -> None:
    [listener] = await open_listeners(HostPort.parse(f"{host}:0"))
    stream = await dial(address_of(listener), allow=everything)
    await anyio.wait_readable(listener)
    accepted, _ = listener.accept()
    with accepted, socket.socket(fileno=socket.dup(stream.fileno())) as dialled:
        assert control_of(dialled) == control_of(accepted) == "reno"
    stream.close()
    close_listener(listener)


async def test_the_systems_choice_is_kept_for_what_may_come_from_elsewhere(own: str) -> None:
    [listener] = await open_listeners(HostPort.parse("0.0.0.0:0"))
    assert control_of(listener) == own
    stream = await dial(address_of(listener), allow=everything)
    with socket.socket(fileno=socket.dup(stream.fileno())) as dialled:
        assert control_of(dialled) == own
    stream.close()
    close_listener(listener)


async def test_a_system_that_lets_nobody_choose_is_connected_all_the_same(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(socket.socket):
        def setsockopt(self, level: int, name: int, *value: object) -> None:  # type: ignore[override]
            if (level, name) == (socket.IPPROTO_TCP, socket.TCP_CONGESTION):
                raise PermissionError
            super().setsockopt(level, name, *value)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "socket", Fixed)
    [listener] = await open_listeners(HostPort.parse("127.0.0.1:0"))
    stream = await dial(address_of(listener), allow=everything)
    assert control_of(listener) == own
    stream.close()
    close_listener(listener)

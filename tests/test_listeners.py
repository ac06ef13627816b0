"""Roles know each other's listeners through files in their common home."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.world import LOOPBACK, world
from tuunel.address import HostPort
from tuunel.errors import StateError
from tuunel.listeners import announced, known_listeners
from tuunel.relay.server import RelayServer
from tuunel.settings import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.ensure()
    return made


def test_listeners_are_known_while_their_role_runs(home: Home) -> None:
    assert known_listeners(home) == ()
    with announced(home, "proxy", [HostPort("127.0.0.1", 1080), HostPort("::1", 1080)]), announced(home, "relay", [HostPort("::", 7443)]):
        assert set(known_listeners(home)) == {
            (ip_address("127.0.0.1"), 1080),
            (ip_address("::1"), 1080),
            (ip_address("::"), 7443),
        }
    assert known_listeners(home) == ()


def test_they_are_withdrawn_when_the_role_fails(home: Home) -> None:
    with pytest.raises(KeyError), announced(home, "proxy", [HostPort("127.0.0.1", 1080)]):
        raise KeyError
    assert known_listeners(home) == ()


@pytest.mark.parametrize("content", [b"", b"{}x", b"[1]", b'["nonsense"]', b'["name:80"]', b"17"])
def test_a_damaged_file_is_an_error_and_not_an_open_door(home: Home, content: bytes) -> None:
    path = home.run_dir / "proxy.listen"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StateError):
        known_listeners(home)


@pytest.mark.anyio
async def test_a_second_relay_of_the_same_home_leaves_the_first_announced() -> None:
    async with world() as made:
        first = await made.relay()
        known = known_listeners(first.home)
        assert known
        second = made.start(
            first.home, lambda emit: RelayServer(first.home, listen=LOOPBACK, advertise=None, open_enrolment=True, emit=emit)
        )
        await second.over.wait()
        assert second.error is not None
        assert known_listeners(first.home) == known

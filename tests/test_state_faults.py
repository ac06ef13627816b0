"""State on disk under kills, damage, full disks and read-only directories: what was acknowledged stays, errors name file and remedy."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from tests.kill_points import WRITES
from tests.world import trio, world
from tuunel.address import HostPort
from tuunel.agent import Agent
from tuunel.errors import ANSWERS, Reason, StateError
from tuunel.events import Alarm, Ready, RelayStateChanged
from tuunel.grants import Grants
from tuunel.identity import IdentityKey
from tuunel.links import parse_link
from tuunel.proxy import Proxy
from tuunel.relay import store
from tuunel.relay.server import RelayServer
from tuunel.settings import Home
from tuunel.statefile import read_private, write_private


@pytest.mark.parametrize("write", WRITES)
def test_a_kill_at_any_step_of_a_write_leaves_the_old_state_or_the_new(write: str) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.kill_points", write], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 15  # kills


# damage

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "garbage": lambda data: os.urandom(len(data)),
}


def build_agent(home: Home) -> Agent:
    return Agent(home, link=None, allow=[], admit_enrolled=False, emit=lambda _: None)


def build_proxy(home: Home) -> Proxy:
    return Proxy(home, listen=HostPort("127.0.0.1", 0), other="direct", routes=[], credentials=None, emit=lambda _: None)


async def run_relay(home: Home) -> None:
    relay = RelayServer(home, listen=HostPort("127.0.0.1", 0), advertise=None, open_enrolment=False, emit=lambda _: None)
    with anyio.fail_after(10):
        await relay.run()


@pytest.fixture(scope="module")
def homes() -> Iterator[dict[str, Home]]:
    """The state of a relay, an agent and a proxy that were used; they do not run any more."""
    made: dict[str, Home] = {}

    async def use() -> None:
        async with world() as living:
            three = await trio(living)
            for name, home in (("relay", three.relay.home), ("agent", three.agent.home), ("proxy", three.home)):
                made[name] = Home(living.home().root)
                shutil.copytree(home.root, made[name].root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("run"))
            living._homes[:] = [path for path in living._homes if path not in {home.root for home in made.values()}]

    anyio.run(use)
    yield made
    for home in made.values():
        shutil.rmtree(home.root)


@contextmanager
def damaged(path: Path, damage: str) -> Iterator[bytes]:
    whole = path.read_bytes()
    spoilt = DAMAGES[damage](whole)
    path.write_bytes(spoilt)
    try:
        yield spoilt
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("role", "name"),
    [("agent", "identity.pem"), ("agent", "grants.json"), ("agent", "devices.json"), ("agent", "agent.json"), ("proxy", "identity.pem"),
     ("proxy", "devices.json"), ("relay", "relay/root.pem"), ("relay", "relay/devices.db")],
)  # fmt: skip
def test_a_damaged_file_ends_the_start_with_its_name_and_the_remedy(homes: dict[str, Home], role: str, name: str, damage: str) -> None:
    """And nothing is made anew in its place."""
    path = homes[role].root / name
    with damaged(path, damage) as spoilt, pytest.raises(StateError) as caught:
        if role == "relay":
            anyio.run(run_relay, homes[role])
        else:
            {"agent": build_agent, "proxy": build_proxy}[role](homes[role])
        assert path.read_bytes() == spoilt
    assert str(path) in str(caught.value)
    assert caught.value.advice


# full and read-only


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of a quarter of a megabyte. Its path is short: a relay's unix socket lies there."""
    if os.geteuid() != 0:
        pytest.skip("mounting is root's")
    disk = Path(tempfile.mkdtemp(prefix="tuu", dir="/tmp"))
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "none", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("this machine does not let us mount")
        try:
            yield disk
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)
    finally:
        disk.rmdir()


def fill(disk: Path) -> Path:
    """Take all the room there is, in a file."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return filler


def test_a_full_disk_is_told_and_nothing_is_lost(small_disk: Path) -> None:
    grants = Grants(small_disk / "grants.json")
    grants.make_invite(bytes(16), ("*",), uses=1, expires=2000, name="old", now=1000, access=None)
    filler = fill(small_disk)
    with pytest.raises(StateError, match="No space left") as caught:
        grants.make_invite(os.urandom(16), ("*",), uses=1, expires=2000, name="new", now=1000, access=None)
    assert "grants.json" in str(caught.value)
    assert "make room" in caught.value.advice
    assert [invite.name for invite in grants.open_invites(1000)] == ["old"]
    filler.unlink()
    grants.make_invite(os.urandom(16), ("*",), uses=1, expires=2000, name="new", now=1000, access=None)
    assert [invite.name for invite in grants.open_invites(1000)] == ["old", "new"]
    assert not list(small_disk.glob(".*"))


def test_no_identity_is_made_where_it_cannot_be_kept(small_disk: Path) -> None:
    write_private(small_disk / "before", b"x")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StateError, match="Read-only") as caught:
        IdentityKey.load_or_create(small_disk / "identity.pem")
    assert str(small_disk) in str(caught.value)
    assert read_private(small_disk / "before") == b"x"


@pytest.mark.anyio
async def test_a_relay_whose_disk_is_full_serves_whom_it_knows_and_tells_the_others(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SEEN_RESOLUTION", -1)  # so that each arrival is a write
    async with world() as made:
        relay = await made.relay(Home(small_disk))
        link = (await relay.until(Ready)).link
        known = await made.agent(link)
        filler = fill(small_disk)
        try:
            await known.kill()
            assert (await (await made.agent(None, known.home)).until(Ready)).device_id  # it logs in as ever
            await relay.until(Alarm, lambda alarm: "disk" in alarm.text)
            home = made.home()
            newcomer = made.start(home, lambda emit: Agent(home, link=parse_link(str(link)), allow=[], admit_enrolled=False, emit=emit))
            told = await newcomer.until(RelayStateChanged, lambda change: change.state == "offline")
            assert ANSWERS[Reason.INTERNAL].message in told.detail
        finally:
            filler.unlink()
        await newcomer.until(Ready)  # and comes in by itself when there is room

"""Roles know each other's listeners through files in their common home."""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.world import LOOPBACK, open_descriptors, world
from tuunel import listeners
from tuunel.address import HostPort
from tuunel.errors import ListenError, StateError
from tuunel.listeners import Announcement, KnownListeners, known_listeners, listeners_stamp
from tuunel.relay.server import RelayServer
from tuunel.settings import Home

DOOR = HostPort("127.0.0.1", 1080)
KNOWN_DOOR = (ip_address("127.0.0.1"), 1080)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.ensure()
    return made


@contextmanager
def crashed(home: Home, role: str) -> Iterator[None]:
    """A process that announced DOOR and was killed; while the block runs, what it left lies there."""
    code = (
        "import os, pathlib, sys\n"
        "from tuunel.address import HostPort\n"
        "from tuunel.listeners import Announcement\n"
        "from tuunel.settings import Home\n"
        "announcement = Announcement(Home(pathlib.Path(sys.argv[1])), sys.argv[2]).__enter__()\n"
        "announcement.add(HostPort('127.0.0.1', 1080))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(home.root), role], check=False)
    assert ended.returncode == -9
    assert (home.run_dir / f"{role}.listen").exists()
    yield


def test_listeners_are_known_while_their_role_runs(home: Home) -> None:
    assert known_listeners(home.run_dir) == ()
    with Announcement(home, "proxy") as proxy, Announcement(home, "relay") as relay:
        proxy.add(DOOR, HostPort("::1", 1080))
        relay.add(HostPort("::", 7443))
        assert set(known_listeners(home.run_dir)) == {KNOWN_DOOR, (ip_address("::1"), 1080), (ip_address("::"), 7443)}
    assert known_listeners(home.run_dir) == ()


def test_a_stamp_is_the_same_only_while_nothing_is_announced_or_taken_back(home: Home) -> None:
    def settle() -> object:
        """Some time later."""
        nonlocal moment
        moment += 10**9
        os.utime(home.run_dir, ns=(0, moment))
        return listeners_stamp(home.run_dir)

    moment = 10**18 + 1
    with Announcement(home, "proxy") as proxy:
        seen = [settle()]
        assert listeners_stamp(home.run_dir) == seen[-1]
        proxy.add(DOOR)
        assert listeners_stamp(home.run_dir) not in seen
        seen.append(settle())
        proxy.remove(DOOR)
        assert listeners_stamp(home.run_dir) not in seen
        seen.append(settle())
    assert listeners_stamp(home.run_dir) not in seen


@pytest.mark.parametrize(
    ("changed", "age", "settled"),
    [
        (10**18 + 1, 0.0, False),
        (10**18 + 1, 0.09, False),
        (10**18 + 1, 0.11, True),
        (10**18 + 1, -100.0, False),  # the clock was set back
        (10**18, 2.4, False),  # a whole second: it may be all that the file system knows
        (10**18, 2.6, True),
    ],
)
def test_a_time_that_another_change_could_get_too_equals_none(
    home: Home, monkeypatch: pytest.MonkeyPatch, changed: int, age: float, settled: bool
) -> None:
    os.utime(home.run_dir, ns=(0, changed))
    monkeypatch.setattr(time, "time_ns", lambda: changed + int(age * 10**9))
    assert (listeners_stamp(home.run_dir) == listeners_stamp(home.run_dir)) is settled


def test_a_directory_that_is_gone_equals_none(tmp_path: Path) -> None:
    assert listeners_stamp(tmp_path / "none") != listeners_stamp(tmp_path / "none")


def test_addresses_come_and_go_while_the_role_runs(home: Home) -> None:
    with Announcement(home, "proxy") as proxy:
        proxy.add(DOOR)
        proxy.add(HostPort("127.0.0.1", 40000), HostPort("127.0.0.1", 40001))
        proxy.remove(HostPort("127.0.0.1", 40000))
        assert known_listeners(home.run_dir) == (KNOWN_DOOR, (ip_address("127.0.0.1"), 40001))
        assert proxy.addresses == (DOOR, HostPort("127.0.0.1", 40001))


def test_a_port_of_tcp_stays_known_when_the_same_one_of_udp_goes(home: Home) -> None:
    with Announcement(home, "proxy") as proxy:
        proxy.add(DOOR)
        proxy.add(DOOR)
        proxy.remove(DOOR)
        assert known_listeners(home.run_dir) == (KNOWN_DOOR,)


def test_what_is_added_before_entering_is_known_from_then_on(home: Home) -> None:
    early = Announcement(home, "proxy")
    early.add(DOOR)
    assert known_listeners(home.run_dir) == ()
    with early:
        assert known_listeners(home.run_dir) == (KNOWN_DOOR,)


def test_an_interface_in_an_address_does_not_hide_it(home: Home) -> None:
    with Announcement(home, "proxy") as proxy:
        proxy.add(HostPort("fe80::1%eth0", 1080))
        assert known_listeners(home.run_dir) == ((ip_address("fe80::1"), 1080),)


def test_roles_of_one_kind_live_side_by_side(home: Home) -> None:
    with ExitStack() as running:
        for number in range(20):
            running.enter_context(Announcement(home, f"forward-{number}")).add(HostPort("127.0.0.1", 8000 + number))
        assert {port for _, port in known_listeners(home.run_dir)} == set(range(8000, 8020))
    assert known_listeners(home.run_dir) == ()


def test_a_second_one_under_the_same_name_is_refused_and_harms_nothing(home: Home) -> None:
    with Announcement(home, "proxy") as first:
        first.add(DOOR)
        with pytest.raises(ListenError), Announcement(home, "proxy"):
            raise AssertionError("entered")
        assert known_listeners(home.run_dir) == (KNOWN_DOOR,)


def test_they_are_withdrawn_when_the_role_fails(home: Home) -> None:
    with pytest.raises(KeyError), Announcement(home, "proxy") as proxy:
        proxy.add(DOOR)
        raise KeyError
    assert known_listeners(home.run_dir) == ()


def test_what_a_crash_left_is_ignored_and_removed(home: Home) -> None:
    with crashed(home, "forward-1"), crashed(home, "proxy"):
        assert known_listeners(home.run_dir) == ()
        with Announcement(home, "relay"):
            assert [path.name for path in home.run_dir.glob("*.listen")] == ["relay.listen"]


def test_a_role_starts_again_after_its_own_crash(home: Home) -> None:
    with crashed(home, "proxy"), Announcement(home, "proxy") as proxy:
        proxy.add(HostPort("127.0.0.1", 1081))
        assert known_listeners(home.run_dir) == ((ip_address("127.0.0.1"), 1081),)


def test_an_announcement_holds_one_descriptor_and_gives_it_back(home: Home) -> None:
    before = open_descriptors()
    with Announcement(home, "proxy") as proxy:
        for port in range(1, 50):
            proxy.add(HostPort("127.0.0.1", port))
        assert open_descriptors() == before + 1
    assert open_descriptors() == before


def test_what_cannot_be_announced_is_told_and_what_cannot_be_taken_back_stays(home: Home) -> None:
    with Announcement(home, "proxy") as proxy:
        proxy.add(DOOR)
        in_the_way = home.run_dir / "proxy.listen.new"
        in_the_way.mkdir()
        with pytest.raises(StateError):
            proxy.add(HostPort("127.0.0.1", 40000))
        assert proxy.addresses == (DOOR,)
        proxy.remove(DOOR)
        assert known_listeners(home.run_dir) == (KNOWN_DOOR,)
        in_the_way.rmdir()
        proxy.add()
        assert known_listeners(home.run_dir) == ()


@pytest.mark.parametrize("content", [b"", b"{}x", b"[1]", b'["nonsense"]', b'["name:80"]', b"17"])
def test_a_damaged_file_of_a_living_role_is_an_error_and_not_an_open_door(home: Home, content: bytes) -> None:
    with Announcement(home, "proxy"):
        (home.run_dir / "proxy.listen").write_bytes(content)
        with pytest.raises(StateError):
            known_listeners(home.run_dir)


@pytest.mark.parametrize("content", [b"", b"17", json.dumps([str(DOOR)]).encode()])
def test_a_file_without_owner_counts_for_nothing(home: Home, content: bytes) -> None:
    path = home.run_dir / "proxy.listen"
    path.write_bytes(content)
    assert known_listeners(home.run_dir) == ()


def test_a_reader_sees_every_list_whole_while_it_changes(home: Home) -> None:
    """A guest who asks while a list is being replaced must not find the door forgotten."""
    over = threading.Event()
    faults: list[object] = []

    def read() -> None:
        while not over.is_set():
            try:
                known = known_listeners(home.run_dir)
            except StateError as error:
                faults.append(error)
            else:
                faults.extend([known] if KNOWN_DOOR not in known else [])

    with Announcement(home, "proxy") as proxy:
        proxy.add(DOOR)
        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for port in range(1, 500):
            proxy.add(HostPort("127.0.0.1", port))
            if port > 20:
                proxy.remove(HostPort("127.0.0.1", port - 20))
        over.set()
        for reader in readers:
            reader.join()
    assert faults == []


def test_starting_roles_never_remove_a_living_one(home: Home) -> None:
    faults: list[object] = []

    def run(number: int) -> None:
        for _ in range(50):
            with Announcement(home, f"forward-{number}") as mine:
                mine.add(HostPort("127.0.0.1", number))
                if (ip_address("127.0.0.1"), number) not in known_listeners(home.run_dir):
                    faults.append(number)

    runners = [threading.Thread(target=run, args=[number]) for number in range(1, 5)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert faults == []


def test_a_child_process_does_not_inherit_the_lock(home: Home) -> None:
    with Announcement(home, "proxy"):
        code = "import sys; print('running', flush=True); sys.stdin.read()"
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False)
        assert child.stdout is not None
        child.stdout.readline()  # before it runs its program, it still has what it will not inherit
        path = home.run_dir / "proxy.listen"
        copy = path.open("rb")
    with copy, child:
        fcntl.flock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.anyio
async def test_a_second_relay_of_the_same_home_leaves_the_first_announced() -> None:
    async with world() as made:
        first = await made.relay()
        known = known_listeners(first.home.run_dir)
        assert known
        second = made.start(
            first.home, lambda emit: RelayServer(first.home, listen=LOOPBACK, advertise=None, open_enrolment=True, emit=emit)
        )
        await second.over.wait()
        assert second.error is not None
        assert known_listeners(first.home.run_dir) == known


@pytest.fixture
def settled(home: Home) -> Callable[[], None]:
    """Call it to let time pass, so that the next change of the directory is told from the last."""
    moment = 10**18 + 1

    def settle() -> None:
        nonlocal moment
        moment += 10**9
        os.utime(home.run_dir, ns=(0, moment))

    return settle


def test_what_a_role_announces_is_known_at_once(home: Home, settled: Callable[[], None]) -> None:
    known = KnownListeners(home.run_dir)
    with Announcement(home, "proxy") as proxy:
        settled()
        assert known.now() == ()
        proxy.add(DOOR)
        assert known.now() == (KNOWN_DOOR,)
        settled()
        assert known.now() == (KNOWN_DOOR,)
        proxy.remove(DOOR)
        assert known.now() == ()
        proxy.add(DOOR)
        settled()
        assert known.now() == (KNOWN_DOOR,)
    assert known.now() == ()


def test_nothing_is_read_again_while_nothing_has_changed(home: Home, settled: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownListeners(home.run_dir)
    with Announcement(home, "proxy") as proxy:
        proxy.add(DOOR)
        settled()
        assert known.now() == (KNOWN_DOOR,)
        monkeypatch.setattr(listeners, "known_listeners", lambda _: pytest.fail("read"))
        assert known.now() == (KNOWN_DOOR,)


def test_the_listeners_of_a_role_that_has_crashed_are_forgotten(
    home: Home, settled: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = KnownListeners(home.run_dir)
    crashing = Announcement(home, "proxy")
    crashing.__enter__()
    crashing.add(DOOR)
    settled()
    assert known.now() == (KNOWN_DOOR,)
    crashing._release()
    assert known.now() == (KNOWN_DOOR,)
    monkeypatch.setattr(listeners, "REMEMBERED", 0.0)
    assert known.now() == ()


def test_a_list_that_cannot_be_read_is_never_taken_for_an_empty_one(home: Home, settled: Callable[[], None]) -> None:
    known = KnownListeners(home.run_dir)
    with Announcement(home, "proxy"):
        assert known.now() == ()
        (home.run_dir / "proxy.listen").write_bytes(b"damaged")
        os.utime(home.run_dir)
        for _ in range(2):
            with pytest.raises(StateError):
                known.now()
            settled()

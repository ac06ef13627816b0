"""Kills a writer before each of its steps, and looks at what is left: python -m tests.kill_points WRITE.

A step is a call into the operating system's or the database's module, as the interpreter's profiler sees it: nothing is replaced.
The writer is a forked child that kills itself by SIGKILL; what it had acknowledged goes through a pipe. Prints how often it was killed.
"""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from tuunel.address import HostPort
from tuunel.devices import Devices
from tuunel.grants import Grants
from tuunel.identity import IdentityKey
from tuunel.links import RelayLink
from tuunel.relay import store as relay_store
from tuunel.relay.credentials import create_root, load_root
from tuunel.relay.store import Store

STEPS: Final = frozenset({"posix", "_io", "io", "fcntl", "sqlite3", "_sqlite3"})
NOW: Final = 1_800_000_000
OLD, NEW = IdentityKey.generate(), IdentityKey.generate()


@dataclass(frozen=True)
class Write:
    """`prepare` makes the old state in a directory, `act` changes it and returns what it acknowledges, `look` returns what is there now.

    After a kill that is what was there before, or `after` (None: any state that is whole, such as a new key), and `act` works.
    """

    prepare: Callable[[Path], object]
    act: Callable[[Path], str]
    look: Callable[[Path], str]
    after: str | None = None


def _identity(home: Path) -> str:
    return str(IdentityKey.load_or_create(home / "identity.pem").device_id)


def _stored_identity(home: Path) -> str:
    return _identity(home) if (home / "identity.pem").exists() else ""


def _allowed(home: Path) -> str:
    return " ".join(invite.name for invite in Grants(home / "grants.json").open_invites(NOW))


def _invite(home: Path, name: str) -> str:
    Grants(home / "grants.json").make_invite(os.urandom(16), ("*",), uses=1, expires=NOW + 900, name=name, now=NOW, access=None)
    return _allowed(home)


def _relays(home: Path) -> str:
    return " ".join(str(relay.address) for relay in Devices(home / "devices.json").relays())


def _remember(home: Path, number: int) -> str:
    link = RelayLink(HostPort(f"relay{number}.example", 7443), bytes([number]) * 32, None)
    Devices(home / "devices.json").remember_relay(link, enrolled=True)
    return _relays(home)


def _root(home: Path) -> str:
    root = load_root(home / "root.pem")
    return "" if root is None else root.relay_id.hex()


def _create_root(home: Path) -> str:
    return create_root(home / "root.pem", NOW).relay_id.hex()


def _database(home: Path, work: Callable[[Store], object]) -> str:
    """Do as the store's own thread does, in this one: the profiler sees only this one."""
    writer, reader = relay_store._connect(home / "devices.db")
    with closing(writer), closing(reader):
        store = Store(home / "devices.db", writer, reader, lambda: NOW)
        with relay_store._translated(store._path), relay_store._transaction(writer):
            work(store)
        return " ".join(f"{device.id}{'!' * device.banned}" for device in store._load_all())


def _register(home: Path, identity: IdentityKey) -> str:
    return _database(home, lambda store: store._register(identity.public_bytes, "x", None, open_enrolment=True))


def _devices(home: Path) -> str:
    return _database(home, lambda _: None) if (home / "devices.db").exists() else ""


WRITES: Final = {
    "identity": Write(lambda home: None, _identity, _stored_identity),
    "grants": Write(lambda home: _invite(home, "old"), lambda home: _invite(home, "new"), _allowed, "old new"),
    "devices": Write(lambda home: _remember(home, 1), lambda home: _remember(home, 2), _relays, "relay2.example:7443 relay1.example:7443"),
    "root": Write(lambda home: None, _create_root, _root),
    "database": Write(lambda home: None, lambda home: _register(home, OLD), _devices, str(OLD.device_id)),
    "registration": Write(
        lambda home: _register(home, OLD),
        lambda home: _register(home, NEW),
        _devices,
        " ".join(map(str, sorted((OLD.device_id, NEW.device_id), key=lambda device: device.raw))),
    ),
    "ban": Write(
        lambda home: _register(home, OLD),
        lambda home: _database(home, lambda store: store._ban(OLD.device_id)),
        _devices,
        f"{OLD.device_id}!",
    ),
}


def kill_at(step: int, act: Callable[[Path], str], home: Path) -> tuple[bool, str]:
    """Let a child act and kill itself before its `step`-th step: whether it lived to the end, and what it has acknowledged."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        left = step

        def count(_frame: FrameType, event: str, called: object) -> None:
            nonlocal left
            owner = getattr(called, "__module__", None) or type(getattr(called, "__self__", None)).__module__
            if event == "c_call" and owner in STEPS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        acknowledged = act(home)
        sys.setprofile(None)
        os.write(writer, acknowledged.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        acknowledged = pipe.read().decode()
    return os.waitpid(child, 0)[1] == 0, acknowledged


def main(name: str) -> None:
    """Kill the write before each of its steps."""
    write = WRITES[name]
    step, done = 0, False
    while not done:
        home = Path(tempfile.mkdtemp(prefix="tuu"))
        try:
            write.prepare(home)
            before = write.look(home)
            done, acknowledged = kill_at(step, write.act, home)
            found = write.look(home)
            assert found in {before, write.after} or (write.after is None and found), f"killed at step {step}: {found!r}"
            if done:
                assert found == acknowledged, f"acknowledged {acknowledged!r}, found {found!r}"
            elif found == before:
                assert write.act(home) == write.look(home)
            assert not list(home.glob(".*")), f"killed at step {step}: a temporary file is left"
        finally:
            shutil.rmtree(home)
        step += 1
    print(step - 1)


if __name__ == "__main__":
    main(sys.argv[1])

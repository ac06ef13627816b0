"""Real databases of a test's own: throw-away data, a free port of loopback and a unix socket, no user but the test."""

import contextlib
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.journeys.peers import missing, program
from tests.journeys.processes import Running, clean_environment, run, until
from tests.journeys.targets import closed_port
from tests.journeys.world import LOOPBACK


@dataclass(frozen=True)
class Database:
    """Where a server listens."""

    port: int
    socket: Path


def _unprivileged() -> tuple[list[str], int, int]:
    """What runs a program as the user that PostgreSQL's package made, and that user's ids; PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return [], os.geteuid(), os.getegid()
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        missing("a user for PostgreSQL")
    identity = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return [program("setpriv"), *identity], user.pw_uid, user.pw_gid


@contextlib.contextmanager
def postgres() -> Iterator[Database]:
    """PostgreSQL, whose user `postgres` needs no password."""
    initdb, server = program("initdb"), program("postgres")
    as_user, uid, gid = _unprivileged()
    directory = Path(tempfile.mkdtemp(prefix="tuupg", dir="/tmp"))
    try:
        os.chown(directory, uid, gid)
        data, port = directory / "data", closed_port()
        env = clean_environment(TZ="UTC")
        run([*as_user, initdb, "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"], env, cwd=directory)
        settings = {"listen_addresses": LOOPBACK, "port": port, "unix_socket_directories": directory, "fsync": "off"}
        options = [f"--{name}={value}" for name, value in settings.items()]
        with Running([*as_user, server, "-D", str(data), *options], env, cwd=directory) as process:
            until(lambda: "ready to accept connections" in process.errors() or not process.alive(), "PostgreSQL is ready")
            assert process.alive(), process.errors()
            yield Database(port, directory / f".s.PGSQL.{port}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def redis() -> Iterator[Database]:
    """Redis, which keeps nothing."""
    server = program("redis-server")
    with tempfile.TemporaryDirectory(prefix="tuured", dir="/tmp") as name:
        directory, port = Path(name), closed_port()
        settings = {"port": port, "bind": LOOPBACK, "unixsocket": directory / "redis.sock", "save": "", "dir": directory}
        options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        with Running([server, *options], clean_environment()) as process:
            while "eady to accept connections" not in process.line():
                pass
            yield Database(port, directory / "redis.sock")

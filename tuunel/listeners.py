"""Where the tuunel roles of one state directory listen: no guest may be let in there, for he would inherit this machine's own pairings.

Each running role keeps one file in the run directory, and holds its lock for as long as it lives: a file that nobody holds was left by
a crash. It is replaced whole, by one that is locked already, so a reader sees an old list or the new one, and never one without owner.
Source: docs/spec/policy.md section 4 (tuunel's own ports).
"""

import fcntl
import json
import os
import time
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tuunel.address import HostPort
from tuunel.errors import ListenError, StateError, UsageError
from tuunel.policy import Address
from tuunel.settings import Home
from tuunel.statefile import damaged, locked, read_private

SUFFIX: Final = ".listen"
REMEMBERED: Final = 1.0  #: seconds for which the listeners of a role that has crashed are still guarded
FINE: Final = 100_000_000  #: nanoseconds in which two changes of a directory may get the same time: kernels count in ticks of up to 10 ms
COARSE: Final = 2_500_000_000  #: the same where file systems count in seconds, or in pairs of them


class Announcement:
    """Tells the other roles of this home on which addresses `role` listens, TCP and UDP alike.

    As a context manager it is in force from entering to leaving. Entering removes what crashed roles have left. ListenError when a
    living process announces under the same role, StateError when the file cannot be written.
    """

    def __init__(self, home: Home, role: str) -> None:
        self._path = home.run_dir / (role + SUFFIX)
        self._addresses: tuple[HostPort, ...] = ()  # no set: TCP and UDP have the same port numbers
        self._held: int | None = None  # the descriptor of the file in place

    @property
    def addresses(self) -> tuple[HostPort, ...]:
        """What is announced now."""
        return self._addresses

    def add(self, *addresses: HostPort) -> None:
        """Announce addresses before anybody can use them; before entering they are only noted. StateError: none of them is announced."""
        self._addresses += addresses
        try:
            self._renew()
        except StateError:
            self.remove(*addresses)
            raise

    def remove(self, *addresses: HostPort) -> None:
        """Take back what `add` announced. Never fails: what cannot be written stays announced until the next change."""
        left = list(self._addresses)
        for address in addresses:
            left.remove(address)
        self._addresses = tuple(left)
        with suppress(StateError):
            self._renew()

    def __enter__(self) -> Self:
        with locked(self._path.parent / "listeners"):  # no other role may remove or replace what is looked at here
            for path in self._path.parent.glob("*" + SUFFIX):
                if _is_left_over(path):
                    path.unlink(missing_ok=True)
            if self._path.exists():
                raise ListenError(f"already running: {self._path} belongs to another process", "stop it first, or use another TUUNEL_HOME")
            self._publish()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)  # first: once the lock is gone, the path may belong to the next owner
        self._release()

    def _renew(self) -> None:
        if self._held is not None:
            self._publish()

    def _publish(self) -> None:
        new = self._path.with_name(self._path.name + ".new")
        descriptor = -1
        try:
            descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.write_text(json.dumps([str(address) for address in self._addresses]), encoding="ascii")
            new.replace(self._path)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            raise StateError(
                f"cannot write {self._path}: {error.strerror}", "check the directory's owner and modes, and the free space"
            ) from error
        self._release()
        self._held = descriptor

    def _release(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


def known_listeners(run_dir: Path) -> tuple[tuple[Address, int], ...]:
    """Address and port of every listener of a living tuunel role in the state directory to which `run_dir` belongs.

    StateError when a living role's file, or the directory, cannot be read: nothing may then be taken for free.
    """
    found: tuple[tuple[Address, int], ...] = ()
    for path in _announcements(run_dir):
        content = None if _is_left_over(path) else read_private(path)
        if content is not None:  # else its role has ended, just now or long ago
            found += _parse(path, content)
    return found


class KnownListeners:
    """What `known_listeners` says, asked for at every open of a tunnel: read anew when a role has announced something or taken it back.

    A role that has crashed has done neither: its listeners are known for REMEMBERED more.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._known: tuple[tuple[Address, int], ...] = ()
        self._stamp: object = None
        self._read = float("-inf")

    def now(self) -> tuple[tuple[Address, int], ...]:
        """Address and port of every listener. StateError as `known_listeners`."""
        stamp, now = listeners_stamp(self._run_dir), time.monotonic()
        if stamp != self._stamp or now - self._read >= REMEMBERED:
            self._known = known_listeners(self._run_dir)
            self._stamp, self._read = stamp, now  # looked at before reading: what comes in between is read once more
        return self._known


def _announcements(run_dir: Path) -> list[Path]:
    try:
        return [run_dir / name for name in os.listdir(run_dir) if name.endswith(SUFFIX)]  # noqa: PTH208 - of all ways by far the fastest
    except FileNotFoundError:  # no role has run here yet
        return []
    except OSError as error:
        raise StateError(f"cannot read {run_dir}: {error.strerror}", "check the directory's owner and modes") from error


def listeners_stamp(run_dir: Path) -> object:
    """A value that equals an earlier one only if no role has announced or taken back anything in between; it costs one `stat`.

    It rests on the time at which the directory was changed. While that is so recent that another change could get the same time, the
    value equals no other, and so it is when the directory cannot be looked at.
    """
    try:
        changed = os.stat(run_dir).st_mtime_ns  # noqa: PTH116 - asked for every datagram
    except OSError:
        return object()
    age = time.time_ns() - changed
    return changed if age > (FINE if changed % 1_000_000_000 else COARSE) else object()


def _is_left_over(path: Path) -> bool:
    """Whether no living role owns the file, or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # whoever reads it is told why it cannot be
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), path.stat())  # another one there by now: its owner lives
    except FileNotFoundError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


@lru_cache(maxsize=64)
def _parse(path: Path, content: bytes) -> tuple[tuple[Address, int], ...]:
    """Read a file's content; the same content is asked for at every open of a tunnel, and may name hundreds of ports."""
    try:
        endpoints = [HostPort.parse(str(text)) for text in json.loads(content)]
        return tuple((ip_address(endpoint.host.partition("%")[0]), endpoint.port) for endpoint in endpoints)
    except (ValueError, TypeError, UsageError) as error:
        raise damaged(path, str(error)) from error

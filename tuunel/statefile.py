"""State files: private to their owner, replaced whole or not at all, and changed by one process at a time.

A crash or a full disk leaves the old file or the new one, never a mixture. Every fault is a StateError that names the file and the remedy.
"""

import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Generic, NoReturn, TypeVar

from tuunel.errors import StateError, UsageError

MAX_SIZE: Final = 16 * 1024 * 1024  # room for some 50,000 grants; anything larger is not a file of ours
Content = TypeVar("Content")
Result = TypeVar("Result")
OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
ROOT: Final = 0
_WRITE_ANEW: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW


def read_private(path: Path) -> bytes | None:
    """Return the file's bytes, or None when there is no such file.

    StateError when it is no regular file, belongs to somebody else, can be opened by others, or is above MAX_SIZE.
    The checks are made on the opened file, so it cannot be exchanged between check and reading.
    """
    try:
        # non-blocking, so that a FIFO in its place is refused instead of waited for
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123 - opens a descriptor
            status = os.fstat(file.fileno())
            check_private(path, status)
            data = file.read(min(status.st_size, MAX_SIZE) + 1)  # no more: a read takes as much memory as it is asked for
    except FileNotFoundError:
        return None
    except OSError as error:
        _unusable(path, "read", error)
    if len(data) > MAX_SIZE:
        raise StateError(f"{path} is larger than any state file of tuunel", "see what it is, and move it away")
    return data


def write_private(path: Path, data: bytes) -> None:
    """Replace the file by `data` with mode 0600, on disk when this returns. StateError leaves the old file as it was.

    Hold the file's lock (`locked`) where another process may write it too. What a writer that was killed has left is written over.
    """
    if len(data) > MAX_SIZE:
        raise StateError(f"{path} would grow above {MAX_SIZE} bytes", "revoke or forget what is no longer used")
    new = path.with_name(f".{path.name}.new")
    try:
        try:
            with open(os.open(new, _WRITE_ANEW, 0o600), "wb") as file:  # noqa: PTH123 - opens a descriptor
                os.fchmod(file.fileno(), 0o600)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except BaseException:
            with suppress(OSError):
                new.unlink()
            raise
        _sync_directory(path.parent)
    except OSError as error:
        _unusable(path, "write", error)


def lock_of(path: Path) -> Path:
    """Where the file's lock lies."""
    return path.with_name(path.name + ".lock")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file's lock across processes and threads, for read-modify-write; waits for a holder.

    The lock lies in `<name>.lock` beside the file, because the file itself is replaced at every write. A lock dies with its
    process. It is not re-entrant.
    """
    lock = lock_of(path)
    try:
        lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        _unusable(lock, "open", error)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_json(path: Path, expected_version: int) -> dict[str, Any] | None:
    """Return the file's JSON object without its `version`, or None when there is no such file.

    StateError when it is damaged or was written by another version of the format.
    """
    data = read_private(path)
    if data is None:
        return None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise damaged(path, "it holds no JSON object")
    version = content.pop("version", None)
    if version != expected_version:
        raise StateError(
            f"{path} has format {version!r}, this tuunel reads {expected_version}", "bring tuunel up to date, or move the file away"
        )
    return content


def write_json(path: Path, version: int, content: Mapping[str, object]) -> None:
    """Replace the file by the JSON object `content` with its `version`; promises as for write_private."""
    write_private(path, json.dumps({"version": version, **content}, indent=1).encode() + b"\n")


def damaged(path: Path, what: str) -> StateError:
    """Return the error for a state file whose content cannot be meant."""
    return StateError(f"{path} is damaged: {what}", "restore it from a backup, or move it away and set this machine up again")


class StateFile(Generic[Content]):
    """One JSON state file as an immutable value: read whenever it changed on disk, changed by one process at a time.

    `decode` makes the value from the JSON object ({} while there is no file yet) and raises KeyError, TypeError, ValueError or
    UsageError when it cannot be meant; `encode` is its inverse. Threads may share it.
    """

    def __init__(
        self, path: Path, version: int, decode: Callable[[dict[str, Any]], Content], encode: Callable[[Content], Mapping[str, object]]
    ) -> None:
        self.path = path
        self._name = os.fspath(path)
        self._version = version
        self._decode = decode
        self._encode = encode
        self._known: tuple[tuple[int, ...], Content] | None = None

    def read(self) -> Content:
        """Return what the file says now. StateError as for read_json, and when the content cannot be meant."""
        seen = self._look()
        known = self._known
        if known is not None and known[0] == seen:
            return known[1]
        content = self._load()
        self._known = (seen, content)  # looked at before reading: a file replaced in between is read once more
        return content

    def change(self, step: Callable[[Content], tuple[Content, Result]]) -> Result:
        """Replace the content by what `step` makes of it, and return the step's result.

        `step` sees the newest content and nobody changes it meanwhile. When it raises, nothing is written; when it returns the content
        that it got, nothing needs to be.
        """
        with locked(self.path):
            before = self._load()
            after, result = step(before)
            if after != before:
                write_json(self.path, self._version, self._encode(after))
        return result

    def _load(self) -> Content:
        content = read_json(self.path, self._version)
        try:
            return self._decode(content or {})
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise damaged(self.path, f"{type(error).__name__}: {error}") from error

    def _look(self) -> tuple[int, ...]:
        try:
            status = os.stat(self._name)  # noqa: PTH116 - asked at each connection: a path would be spelt out anew
        except FileNotFoundError:
            return ()
        except OSError as error:
            _unusable(self.path, "read", error)
        # ctime too: a chmod must be noticed, because unsafe modes are refused
        return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def check_private(path: Path, status: os.stat_result) -> None:
    """Refuse what somebody else could have written or can read: StateError unless it is a regular file of this user (or root) alone."""
    if not stat.S_ISREG(status.st_mode):
        raise StateError(f"{path} is not a regular file", "move it away")
    if status.st_uid not in (os.geteuid(), ROOT):
        raise StateError(f"{path} belongs to another user", "run tuunel as the user who owns it, or point TUUNEL_HOME elsewhere")
    if status.st_mode & OTHERS:
        raise StateError(f"{path} can be opened by other users (mode {stat.S_IMODE(status.st_mode):04o})", f"chmod 600 '{path}'")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_ADVICE: Final = {
    errno.EROFS: "make that file system writable, or set TUUNEL_HOME to a directory elsewhere",
    errno.ENOSPC: "make room on that file system, then try again",
    errno.EDQUOT: "make room: your quota on that file system is used up",
    errno.EACCES: "run tuunel as the user who owns it, or set TUUNEL_HOME to a directory of yours",
}


def _unusable(path: Path, verb: str, error: OSError) -> NoReturn:
    advice = _ADVICE.get(error.errno or 0, "check the directory's owner and modes, and the free space")
    raise StateError(f"cannot {verb} {path}: {error.strerror}", advice) from error

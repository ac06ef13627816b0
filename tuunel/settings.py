"""Where this machine's tuunel keeps its state."""

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple, Self

from tuunel.errors import StateError

VARIABLE: Final = "TUUNEL_HOME"
MAX_SOCKET_PATH: Final = 103  # sun_path has 104 bytes on macOS (108 on Linux), and ends with a zero
PRIVATE: Final = 0o700
WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


class Home(NamedTuple):
    """The one directory that holds all of tuunel's state for one user."""

    root: Path

    @classmethod
    def find(cls) -> Self:
        """Return the directory named by TUUNEL_HOME, else the platform's usual place for state. Nothing is created."""
        chosen = os.environ.get(VARIABLE)
        if chosen:
            return cls(Path(chosen).expanduser().absolute())
        import platformdirs  # noqa: PLC0415 - not needed, so not paid for, when TUUNEL_HOME is set

        return cls(platformdirs.user_state_path("tuunel", appauthor=False))

    @property
    def identity_key(self) -> Path:
        """This machine's identity key, PEM."""
        return self.root / "identity.pem"

    @property
    def grants_file(self) -> Path:
        """Who may come in here: the agent's book."""
        return self.root / "grants.json"

    @property
    def devices_file(self) -> Path:
        """Which devices and relays this machine can reach: the forward side's book."""
        return self.root / "devices.json"

    @property
    def relay_dir(self) -> Path:
        """What a relay on this machine keeps: its keys and its registry."""
        return self.root / "relay"

    @property
    def run_dir(self) -> Path:
        """The sockets of the running roles."""
        return self.root / "run"

    def socket(self, role: str) -> Path:
        """Return the path of the role's control socket. StateError when a unix socket cannot have so long a path."""
        path = self.run_dir / f"{role}.sock"
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise StateError(f"{path} is too long for a unix socket ({MAX_SOCKET_PATH} bytes at most)", f"set {VARIABLE} to a shorter path")
        return path

    def ensure(self) -> None:
        """Make the directories that are missing, mode 0700. StateError when one is not ours, or others could put files into it."""
        for directory in (self.root, self.run_dir, self.relay_dir):
            try:
                directory.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
                status = directory.stat()
            except OSError as error:
                raise StateError(
                    f"cannot make the directory {directory}: {error.strerror}", f"set {VARIABLE} to a directory of yours"
                ) from error
            if status.st_uid != os.geteuid():
                raise StateError(f"{directory} belongs to another user", f"set {VARIABLE} to a directory of yours")
            if status.st_mode & WRITABLE_BY_OTHERS:
                raise StateError(f"other users can write in {directory}", f"chmod 700 '{directory}'")

"""Where the programs of the peers are, and which versions."""

import os
import shutil
import subprocess
from collections.abc import Sequence

_SERVERS = ("/usr/local/sbin", "/usr/sbin")  # where sshd is, which is not on every user's PATH


class PeerMissing(Exception):
    """A peer's program was not found. The message names it."""


def find(program: str) -> str:
    """Return the path of `program`: in the directory that BENCH_PEERS names, else on PATH. PeerMissing when it is in neither."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SERVERS])
    found = shutil.which(program, path=os.environ.get("BENCH_PEERS", "")) or shutil.which(program, path=path)
    if found is None:
        raise PeerMissing(f"{program} is neither in BENCH_PEERS nor on PATH")
    return found


def output(argv: Sequence[str]) -> str:
    """Run a short command of a peer and return what it printed; subprocess.SubprocessError when it fails."""
    done = subprocess.run(list(argv), capture_output=True, text=True, timeout=20, check=True, stdin=subprocess.DEVNULL)
    return (done.stdout or done.stderr).strip()

"""The real programs that the journeys drive: found, or the test is skipped; with TUUNEL_REQUIRE_PEERS=1 a missing one fails it."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

_VERSIONED = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)  # Debian keeps each PostgreSQL apart
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", *_VERSIONED])


def missing(what: str) -> NoReturn:
    """End the test: something that it drives is not on this machine."""
    if os.environ.get("TUUNEL_REQUIRE_PEERS"):
        pytest.fail(f"{what} is missing, and TUUNEL_REQUIRE_PEERS is set")
    pytest.skip(f"{what} is missing")


def program(*names: str) -> str:
    """Return the path of the first of `names` that is installed."""
    for name in names:
        found = shutil.which(name, path=SEARCH_PATH)
        if found:
            return found
    missing(" / ".join(names))


@cache
def _namespaces_work() -> bool:
    unshare, ip = shutil.which("unshare", path=SEARCH_PATH), shutil.which("ip", path=SEARCH_PATH)
    if os.geteuid() != 0 or unshare is None or ip is None:
        return False
    return subprocess.run([unshare, "--net", "--mount", ip, "link", "show"], capture_output=True, timeout=20, check=False).returncode == 0


def network_namespaces() -> str:
    """Return the path of `ip`, or skip: making a network is a right that a machine gives or not, no program that can be installed."""
    if not _namespaces_work():
        pytest.skip("this machine does not let us make network namespaces")
    return program("ip")

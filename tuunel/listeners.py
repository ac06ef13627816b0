"""Where the tuunel roles of one state directory listen: no guest may be let in there, for he would inherit this machine's own pairings.

Source: docs/spec/policy.md (never allowed unless named).
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

from tuunel.address import HostPort
from tuunel.errors import UsageError
from tuunel.policy import Address
from tuunel.settings import Home
from tuunel.statefile import damaged, read_private, write_private

_SUFFIX = ".listen"


@contextmanager
def announced(home: Home, role: str, addresses: Iterable[HostPort]) -> Iterator[None]:
    """Make `addresses` known as this role's listeners. After a crash they stay known, and refused, until the role's next start."""
    path = home.run_dir / (role + _SUFFIX)
    write_private(path, json.dumps([str(address) for address in addresses]).encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def known_listeners(home: Home) -> tuple[tuple[Address, int], ...]:
    """Address and port of every listener of a tuunel role in this state directory."""
    found: list[tuple[Address, int]] = []
    for path in home.run_dir.glob("*" + _SUFFIX):
        found += _read(path)
    return tuple(found)


def _read(path: Path) -> list[tuple[Address, int]]:
    content = read_private(path)
    if content is None:
        return []  # its role has ended just now
    try:
        endpoints = [HostPort.parse(str(text)) for text in json.loads(content)]
        return [(ip_address(endpoint.host), endpoint.port) for endpoint in endpoints]
    except (ValueError, TypeError, UsageError) as error:
        raise damaged(path, str(error)) from error

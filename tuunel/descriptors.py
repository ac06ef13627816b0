"""How many files and sockets this process may have open at once."""

import resource
from contextlib import suppress


def raise_limit() -> int:
    """Allow this process as many open files as it may have, and return how many: a tunnel takes two at each party, what waits takes one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS says "no limit" and means another one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

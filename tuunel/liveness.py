"""Looks at every live tunnel once a second: PINGs the quiet ones, cuts the dead ones, forgets the closed ones."""

import time
from contextlib import suppress
from typing import Final

import anyio
from anyio.abc import TaskGroup

from tuunel.recordstream import RecordStream

TICK: Final = 1.0  #: seconds


async def watch_tunnels(live: set[RecordStream], tasks: TaskGroup) -> None:
    """Run until cancelled. Whoever opens a tunnel adds it to `live`; it leaves by being closed."""
    while True:
        await anyio.sleep(TICK)
        now = time.monotonic()
        for tunnel in list(live):
            if tunnel.closed:
                live.discard(tunnel)
            elif tunnel.tick(now):
                tasks.start_soon(_flush, tunnel)


async def _flush(tunnel: RecordStream) -> None:
    with suppress(OSError, anyio.ClosedResourceError):  # whoever reads the tunnel, or writes to it next, is told
        await tunnel.flush()

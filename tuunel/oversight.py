"""What every running role answers to those who watch it: how it stands, what it carries, and a person's wish to end a connection.

One shape for all roles. Source: docs/reference/control-socket.md.
"""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from tuunel.control import Handler
from tuunel.ledger import Ledger

Facts = Callable[[], Mapping[str, Any]]


class Oversight:
    """The control commands `status`, `connections` and `kill` of one role.

    `facts` gives what the role itself knows of its state: `listen`, `device_id`, `relays` and `devices` as the reference page has them,
    and whatever only this role has. What it leaves out is empty.
    """

    def __init__(self, role: str, ledger: Ledger, facts: Facts) -> None:
        self._role = role
        self._ledger = ledger
        self._facts = facts
        self._started = int(time.time())

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The commands by name."""
        return {"status": self._status, "connections": self._connections, "kill": self._kill}

    async def _status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "role": self._role,
            "pid": os.getpid(),
            "started": self._started,
            "device_id": None,
            "listen": [],
            "relays": [],
            "devices": [],
            **self._facts(),
            "connections": self._ledger.summary(),
        }

    async def _connections(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"status": await self._status(request), "connections": self._ledger.document()}

    async def _kill(self, request: Mapping[str, Any]) -> dict[str, Any]:
        number = int(request["connection"])
        self._ledger.kill(number)
        return {"killed": number}

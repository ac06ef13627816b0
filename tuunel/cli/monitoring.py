"""`--metrics`: a running role's numbers, for Prometheus."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Protocol, runtime_checkable

from anyio.abc import TaskGroup

from tuunel.address import HostPort
from tuunel.config import metrics_address
from tuunel.events import Event, Measures, Notice, Ready
from tuunel.exposition import serve_metrics
from tuunel.metrics import Metrics
from tuunel.settings import Home


@runtime_checkable
class Measured(Protocol):
    """A role that counts."""

    async def measures(self) -> Measures:
        """What it counts, at this moment. Raises StateError."""


class Monitor:
    """Serves the metrics of the role `name` at `where`, as `--metrics` has it. Raises UsageError when that is no address."""

    def __init__(self, name: str, where: str) -> None:
        self._name = name
        self._where = metrics_address(where)
        self._metrics = Metrics(name)
        self._address: HostPort | None = None

    def hear(self, event: Event) -> Event:
        """Take note of `event`; a `Ready` comes back with the address of the metrics."""
        self._metrics(event)
        return replace(event, metrics=str(self._address)) if isinstance(event, Ready) and self._address else event

    async def start(self, tasks: TaskGroup, role: object) -> list[Notice]:
        """Serve in `tasks` from now on; returns what a person should know of it. Raises ListenError, StateError."""
        if isinstance(role, Measured):
            self._metrics.measures = role.measures
        address: HostPort = await tasks.start(serve_metrics, Home.find(), self._name, self._where, self._metrics.page)
        self._address = address
        if address.host == "localhost" or ip_address(address.host).is_loopback:
            return []
        return [Notice(f"whoever can connect to {address} can read how much is carried when; who and where to is not among the metrics")]

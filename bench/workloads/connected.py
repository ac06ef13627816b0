"""A service, a system and an app, connected."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.door import Door
from bench.place import ON_LOOPBACK, Places
from bench.process import Process, Processes, ProcessFailed, python
from bench.systems.system import System, Transport

_REACHED_SECONDS = 40.0  # the app itself gives up before


@dataclass(frozen=True)
class Connected:
    app: Process
    service: int  # its port
    door: Door  # that the app uses
    roles: dict[str, Processes]  # all, app and service too, in the order of the way
    reached: Mapping[str, float]  # what the app said of its first connection


@contextmanager
def connected(
    system: System, transport: Transport, app: str, places: Places = ON_LOOPBACK, settle_seconds: float = 0.0
) -> Iterator[Connected]:
    """Start the service of `transport`, `system` and the program `app`, and wait until the service has answered the app.

    `settle_seconds` are left to the system before the app's first connection.
    """
    with ExitStack() as ending:
        serve = python(f"bench.apps.{transport.value}_service", places.service.listen)
        service = ending.enter_context(Process(serve, place=places.service))
        port = int(service.line())
        route = ending.enter_context(system.route(port, transport, places))
        time.sleep(settle_seconds)
        asking = ending.enter_context(Process(python(app, *route.door.arguments()), place=places.app))
        roles = {"app": Processes(asking), **route.roles, "service": Processes(service)}
        try:
            reached = asking.answer(_REACHED_SECONDS)
        except ProcessFailed:
            raise ProcessFailed("\n".join(f"{role} said: {processes.said()}" for role, processes in roles.items())) from None
        yield Connected(asking, port, route.door, roles, reached)

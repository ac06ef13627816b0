"""A service, a system and an app, connected."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.place import ON_LOOPBACK, Places
from bench.process import Process, Processes, ProcessFailed, python
from bench.systems.system import System, Transport

_REACHED_SECONDS = 40.0  # the app itself gives up before


@dataclass(frozen=True)
class Connected:
    app: Process
    service: int  # its port
    roles: dict[str, Processes]  # all, app and service too, in the order of the way


@contextmanager
def connected(system: System, transport: Transport, app: str, places: Places = ON_LOOPBACK) -> Iterator[Connected]:
    """Start the service of `transport`, `system` and the program `app`, and wait until the service has answered the app."""
    with ExitStack() as ending:
        service = ending.enter_context(Process(python(f"bench.apps.{transport.value}_service"), place=places.service))
        port = int(service.line())
        route = ending.enter_context(system.route(port, transport, places))
        asking = ending.enter_context(Process(python(app, *route.door.arguments()), place=places.app))
        roles = {"app": Processes(asking), **route.roles, "service": Processes(service)}
        try:
            asking.answer(_REACHED_SECONDS)
        except ProcessFailed:
            raise ProcessFailed("\n".join(f"{role} said: {processes.said()}" for role, processes in roles.items())) from None
        yield Connected(asking, port, roles)

"""A service, a system and an app, connected for datagrams."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.process import Process, ProcessFailed, python
from bench.systems.system import System


@dataclass(frozen=True)
class UdpRoute:
    app: Process
    service: int  # its UDP port
    roles: dict[str, Process]  # all processes, app and service too, in the order of the way


@contextmanager
def udp_route(system: System, app: str) -> Iterator[UdpRoute]:
    """Start the service, `system` and the program `app`, and wait until the service has answered the app."""
    with ExitStack() as ending:
        service = ending.enter_context(Process(python("bench.apps.udp_service")))
        port = int(service.line())
        route = ending.enter_context(system.udp(port))
        host, app_port = route.address
        sender = ending.enter_context(Process(python(app, host, str(app_port))))
        roles = {"app": sender, **route.roles, "service": service}
        try:
            sender.answer()
        except ProcessFailed:
            raise ProcessFailed("\n".join(f"{role} said: {process.said()}" for role, process in roles.items())) from None
        yield UdpRoute(sender, port, roles)

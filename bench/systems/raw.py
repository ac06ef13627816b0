"""No system at all: the app sends straight to the service. The limit of the machine, and of the measuring programs."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

from bench.door import Door
from bench.place import Places
from bench.systems.system import Route, Transport


class Raw:
    name = "raw"
    hops = "app - service"
    readable = "-"
    socks = False
    transports = frozenset(Transport)

    def version(self) -> str:
        return f"{platform.system()} {platform.release()}"

    @contextmanager
    def route(self, service: int, transport: Transport, places: Places) -> Iterator[Route]:
        yield Route(Door(places.service.address, service), {})

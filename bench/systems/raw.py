"""No system at all: the app sends straight to the service. The limit of the machine, and of the measuring programs."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

from bench.systems.system import Route


class Raw:
    name = "raw"
    hops = "app - service"
    readable = "-"

    def version(self) -> str:
        return f"{platform.system()} {platform.release()}"

    @contextmanager
    def udp(self, service: int) -> Iterator[Route]:
        yield Route(("127.0.0.1", service), {})

"""Every harness there is."""

from tests.fuzz import doors, flows, guards, hop, hopmessages, local, recordsteps, tunnel, web
from tests.fuzz.harness import HARNESSES

__all__ = ["HARNESSES", "MODULES"]

MODULES = (hop, hopmessages, doors, web, guards, tunnel, recordsteps, flows, local)

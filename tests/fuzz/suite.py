"""Every harness there is."""

from tests.fuzz import doors, guards, hop, hopmessages, web
from tests.fuzz.harness import HARNESSES

__all__ = ["HARNESSES", "MODULES"]

MODULES = (hop, hopmessages, doors, web, guards)

"""Every verification of the product, by part."""

from typing import Final

from tests.checks import end_to_end, hop, policy, records, relay
from tests.checks.mutants import Check

GROUPS: Final = (
    ("The end-to-end handshake", end_to_end.CHECKS),
    ("Records, tunnels and flows", records.CHECKS),
    ("Between a device and its relay", hop.CHECKS),
    ("At the relay", relay.CHECKS),
    ("What a guest may reach", policy.CHECKS),
)
CHECKS: Final[tuple[Check, ...]] = tuple(check for _, checks in GROUPS for check in checks)

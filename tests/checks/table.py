"""Every verification of the product, by part."""

from typing import Final

from tests.checks import agent, clients, doors, end_to_end, grants, hop, hop_messages, machine, policy, records, registry, relay
from tests.checks.mutants import Check

GROUPS: Final = (
    ("The end-to-end handshake", end_to_end.CHECKS),
    ("Records, tunnels and flows", records.CHECKS),
    ("Between a device and its relay", hop.CHECKS),
    ("Messages between a device and its relay", hop_messages.CHECKS),
    ("At the relay", relay.CHECKS),
    ("The device registry", registry.CHECKS),
    ("What a guest may reach", policy.CHECKS),
    ("Who may come in", grants.CHECKS),
    ("At the agent", agent.CHECKS),
    ("The front doors", doors.CHECKS),
    ("Whom the front doors serve, and where they lead", clients.CHECKS),
    ("On this machine", machine.CHECKS),
)
CHECKS: Final[tuple[Check, ...]] = tuple(check for _, checks in GROUPS for check in checks)

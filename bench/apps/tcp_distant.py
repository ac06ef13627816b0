"""An app far away: how long new connections take to their first byte, and what one carries.

Usage: tcp_distant DOOR. JSON lines in: `{"connections", "pause"}` is answered with `{"first_bytes"}`, in seconds, one per connection made
after a pause; anything else is an order of `tcp_bulk`.
"""

import time
from collections.abc import Mapping
from typing import Any

from bench.apps.orders import obey
from bench.apps.tcp_bulk import move
from bench.apps.tcp_socket import first_byte
from bench.door import Door


def do(door: Door, order: Mapping[str, Any]) -> Mapping[str, Any]:
    """Do one order."""
    if "connections" not in order:
        return move(door, order)
    taken = []
    for _ in range(order["connections"]):
        time.sleep(order["pause"])
        taken.append(first_byte(door))
    return {"first_bytes": taken}


if __name__ == "__main__":
    obey(do)

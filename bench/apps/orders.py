"""What all apps of the TCP workloads do: reach the service, say so, then do as told, order by order."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from bench.apps.tcp_socket import reach
from bench.door import Door, read_door


def obey(do: Callable[[Door, Mapping[str, Any]], Mapping[str, Any]]) -> None:
    """Read the door from the command line; print `{}` once the service has answered; then answer each JSON line of stdin with one."""
    door = read_door(sys.argv[1:])
    reach(door)
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(do(door, json.loads(line))), flush=True)

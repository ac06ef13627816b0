"""What all apps of the TCP workloads do: reach the service, say so, then do as told, order by order."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from bench.apps.tcp_socket import reach
from bench.door import Door, read_door


def obey(do: Callable[[Door, Mapping[str, Any]], Mapping[str, Any]]) -> None:
    """Read the door from the command line, reach the service, then answer each JSON line of stdin with one.

    Before them comes `{"first_byte"}`: how long the first connection that worked took to its first byte, in seconds.
    A connection that fails ends the process.
    """
    door = read_door(sys.argv[1:])
    print(json.dumps({"first_byte": reach(door)}), flush=True)
    for line in sys.stdin:
        try:
            answer = do(door, json.loads(line))
        except OSError as error:
            sys.exit(f"a connection failed: {error}")
        print(json.dumps(answer), flush=True)

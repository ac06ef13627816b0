"""The front doors at work: one raw stream per client, told apart by its first byte, answered truthfully, and piped to its target.

Source: docs/spec/front-doors.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tuunel.address import HostPort
from tuunel.events import Traffic
from tuunel.frontdoor import Request
from tuunel.rawstream import Conduit


@dataclass(frozen=True, slots=True)
class Outbound:
    """A connection to a target that has been made: the bytes' way there, its counters, and who wants to know when it is over.

    The door owns it from here on: it counts all bytes (also the request's early ones) in `traffic`, closes or resets `conduit`, and then
    calls `ended` once with "done", "reset" or the name of a Reason. `bound` is the address the target sees, if known; `connection` the
    number that the proxy's events use.
    """

    conduit: Conduit
    traffic: Traffic
    ended: Callable[[str], None]
    bound: HostPort | None = None
    connection: int = 0


class Dialer(Protocol):
    """Connects a request's target.

    Returns only after the far dial has succeeded, and has then handed `request.early` to the target. Raises Failure with the true reason.
    It may be cancelled at any time, and then leaves nothing open.
    """

    async def __call__(self, request: Request) -> Outbound:
        """Connect `request.target`."""

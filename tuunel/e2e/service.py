"""What an agent itself serves behind CONNECT, and the bytes that its services speak. docs/spec/services.md.

Decoding takes untrusted bytes and raises nothing but RemoteProtocolError.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

from tuunel.relay.fields import U32, U64, Struct

QUESTION: Final = b"?"  #: what asks `relay-rtt` once more


class Service(StrEnum):
    """The `host` of a CONNECT with the command SERVICE."""

    RELAY_RTT = "relay-rtt"  #: answers each byte with the agent's own round trip to its relay
    SINK = "sink"  #: takes bytes and says how fast they came
    SOURCE = "source"  #: sends bytes


@dataclass(frozen=True, slots=True)
class RelayRtt(Struct):
    """An answer of `relay-rtt`."""

    microseconds: Annotated[int, U32]

    LENGTH = 4
    UNKNOWN = 0xFFFFFFFF  #: the agent has lost its relay, or the relay does not answer it


@dataclass(frozen=True, slots=True)
class Measure(Struct):
    """What `sink` and `source` are told first: for how long, in milliseconds."""

    milliseconds: Annotated[int, U32]

    LENGTH = 4


@dataclass(frozen=True, slots=True)
class Taken(Struct):
    """The answer of `sink`: how many bytes came behind `Measure`, and in what time."""

    size: Annotated[int, U64]
    microseconds: Annotated[int, U64]

    LENGTH = 16

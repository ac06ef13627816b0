"""Frozen facts that roles emit and that the display and the journal show: the only way news flows out of a role.

What flows back is a `Command`: a person at the display wants something of the role.

A role calls `emit(event)`; it never waits for it and never learns who listens. Byte counts change too often for events:
`ConnectionOpened.traffic` is a live counter that a listener may read whenever it likes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

MAX_SHOWN_TEXT = 200  #: characters of one piece of untrusted text on a person's screen: a line or two, never a screenful

RelayCondition = Literal["connecting", "online", "offline"]
ConnectionState = Literal["connecting", "open", "standby", "closing"]
GOOD_ENDS: Final = frozenset({"done", "reset", "KILLED"})  #: reasons of an end that nobody need look into


class Traffic:
    """Live byte counters of one connection as the app sees them: `up` left it, `down` reached it; `rtt` in seconds or None.

    `lost` counts the datagrams of a UDP flow that were dropped at this end, either way. One that is dropped after it was counted is taken
    back from `up` or `down`.
    """

    __slots__ = ("down", "lost", "rtt", "up")

    def __init__(self) -> None:
        self.up = 0
        self.down = 0
        self.lost = 0
        self.rtt: float | None = None


@dataclass(slots=True)
class Totals:
    """What the connections that have ended come to. `failed` are those whose end is none of GOOD_ENDS."""

    ended: int = 0
    failed: int = 0
    up: int = 0
    down: int = 0
    lost: int = 0

    def add(self, traffic: Traffic, reason: str) -> None:
        """Count a connection that has ended."""
        self.ended += 1
        self.failed += reason not in GOOD_ENDS
        self.up += traffic.up
        self.down += traffic.down
        self.lost += traffic.lost


@dataclass(frozen=True, slots=True)
class Use:
    """What a device, or an address prefix, uses at a relay at one moment, and what it may use: None where there is no limit."""

    kind: Literal["device", "prefix"]
    holder: str
    tunnels: int
    opens: float  #: a second
    rate: float  #: bytes a second, both directions together
    refused: int  #: opens, for its limits
    max_tunnels: int | None
    max_opens: float | None
    max_rate: float | None
    at_limit: tuple[str, ...]  #: which of `tunnels`, `opens` and `rate` are used up

    @property
    def share(self) -> float:
        """The largest share that it uses of what it may; 0 without a limit. After a pause more than 1 passes for a while."""
        pairs = ((self.tunnels, self.max_tunnels), (self.opens, self.max_opens), (self.rate, self.max_rate))
        return max((used / most for used, most in pairs if most), default=0.0)


@dataclass(frozen=True, slots=True)
class Ready:
    """A role serves. `listen` is `host:port` with the real port; the others are None where the role has none.

    `user` is the name that the proxy's apps must log in with. `forwards` are a forward's places, each with `listen` and `target`, both as
    text; `listen` is the first one's.
    """

    role: str
    listen: str | None = None
    link: str | None = field(default=None, repr=False)  #: a secret, as `invite` is
    device_id: str | None = None
    invite: str | None = field(default=None, repr=False)
    admits_enrolled: bool = False
    forwards: tuple[Mapping[str, str], ...] | None = None
    user: str | None = None
    metrics: str | None = None  #: where its metrics are read, `host:port`
    #: relay: gives the so many devices and prefixes that are nearest to their limits at the moment; a listener may ask whenever it likes
    fullest: Callable[[int], Sequence[Use]] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class RelayStateChanged:
    """This machine's link to a relay changed. `detail` says why it is offline; `rtt` in seconds."""

    relay: str
    state: RelayCondition
    detail: str = ""
    rtt: float | None = None


@dataclass(frozen=True, slots=True)
class ConnectionOpened:
    """A connection appeared (state `connecting`). `id` is unique in this process. Labels are untrusted text.

    `age` is given when it is told late, to one who has just begun to watch: the seconds that it has lived.
    """

    id: int
    target: str
    device: str
    door: str
    path: str
    traffic: Traffic = field(compare=False)
    age: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ConnectionChanged:
    """The connection's state changed; `tunnel` is the tunnel id that all three parties log, once known."""

    id: int
    state: ConnectionState
    tunnel: str = ""


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """The connection ended. `reason` is "done", "reset" or the name of a Reason; `detail` is for a person; `age` as in ConnectionOpened."""

    id: int
    reason: str
    detail: str = ""
    age: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class DeviceSeen:
    """A device went on or off line (relay), or a client paired or was revoked (agent)."""

    device: str
    what: Literal["registered", "online", "offline", "paired", "revoked", "banned"]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should read once."""

    text: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something is wrong with an identity or a key: shown loudly and kept on screen."""

    text: str


Event = Ready | RelayStateChanged | ConnectionOpened | ConnectionChanged | ConnectionClosed | DeviceSeen | Notice | Alarm
Emit = Callable[[Event], None]

#: What a role counts beside its connections, at one moment: a number for each metric's name without `tuunel_`, or one for each value of
#: the metric's label. docs/reference/metrics.md lists them.
Measures = Mapping[str, float | Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Kill:
    """A person wants the connection with this number to end."""

    id: int


@dataclass(frozen=True, slots=True)
class Leave:
    """A person has seen enough, where the display is a command of its own."""


Command = Kill | Leave
Act = Callable[[Command], None]


def printable(text: str, limit: int = MAX_SHOWN_TEXT) -> str:
    """Untrusted text as a terminal may show it: no control, bidirectional or unassigned characters, at most `limit` characters."""
    kept = "".join(character for character in text[: 4 * limit] if character.isprintable())
    return kept if len(kept) <= limit else kept[: limit - 1] + "\u2026"

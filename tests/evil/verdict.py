"""What must hold whatever the relay does: the same few rules for every attack."""

from dataclasses import dataclass, field
from itertools import cycle, islice

from tuunel.errors import Reason

CLEAN, RESET = "a clean end", "a reset"
FORWARD, AGENT = "forward proxy", "agent"


def words(of: str, count: int = 6000) -> bytes:
    """72 KB that nowhere repeat, so that nothing can be lost, doubled or moved unseen: five records or more.

    And longer than any record that the clear length of a handshake message could feign: nobody waits for more.
    """
    return b"".join(b"%s %06d\n" % (of.encode(), number) for number in range(count))


APP_WORDS = words("asks")
TARGET_WORDS = words("told")


@dataclass
class Visit:
    """One connection that the target got."""

    received: bytearray = field(default_factory=bytearray)
    end: str = ""


@dataclass(frozen=True)
class Story:
    """What happened to everybody while the relay attacked."""

    outcome: str  #: CLEAN, RESET, or the Reason that the app was told
    heard: bytes  #: by the app
    visits: list[Visit]
    decoys: int  #: connections to a service that nobody has asked for
    alarms: dict[str, list[str]]  #: by role
    struck: int  #: how often the relay did what it planned
    says: bytes = APP_WORDS  #: the app
    told: bytes = TARGET_WORDS  #: by the target


@dataclass(frozen=True)
class Expected:
    """How an attack may end; `dials` is how often the app's own request may have reached the target before it was noticed."""

    ends: frozenset[str]
    alarms: frozenset[str] = frozenset()
    dials: int = 0


def breaches(story: Story, expected: Expected) -> list[str]:
    """Every promise that was broken."""
    return [*_stream_breaches(story), *_outcome_breaches(story, expected)]


def _stream_breaches(story: Story) -> list[str]:
    found = []
    streams = [("the app", story.heard, story.outcome, story.told)]
    streams += [("the target", bytes(visit.received), visit.end, story.says) for visit in story.visits]
    for who, received, end, sent in streams:
        if not sent.startswith(received):
            found.append(f"{who} received what the other side did not send: {_difference(received, sent)!r}")
        if end == CLEAN and len(received) < len(sent):
            found.append(f"{who} saw a clean end after {len(received)} of {len(sent)} bytes")
    return found


def _outcome_breaches(story: Story, expected: Expected) -> list[str]:
    found = []
    if not story.struck:
        found.append("the relay did not attack")
    if story.outcome not in expected.ends:
        found.append(f"the app was told {story.outcome}, not {', '.join(sorted(expected.ends))}")
    if story.outcome not in {CLEAN, RESET, *Reason}:
        found.append(f"{story.outcome} is no named error")
    if len(story.visits) > expected.dials:
        found.append(f"the target was dialled {len(story.visits)} times, not {expected.dials} at most")
    if story.decoys:
        found.append(f"the decoy was dialled {story.decoys} times")
    for role, alarms in story.alarms.items():
        if bool(alarms) is not (role in expected.alarms):
            found.append(f"alarms at the {role}: {alarms}")
    return found


def _difference(received: bytes, sent: bytes) -> bytes:
    at = next((at for at, (a, b) in enumerate(zip(received, islice(cycle(sent), len(received)), strict=True)) if a != b), len(sent))
    return received[at : at + 24]

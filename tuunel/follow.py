"""Another process's role, followed: what its control socket answers, turned into the events that a display of its own would have heard.

Documents in, events out; no I/O. Source: docs/reference/control-socket.md (`connections`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from tuunel.events import (
    ConnectionChanged,
    ConnectionClosed,
    ConnectionOpened,
    Emit,
    Ready,
    RelayStateChanged,
    Totals,
    Traffic,
    Use,
)

COUNTERS: Final = ("up", "down", "lost", "rtt")
USED: Final = ("tunnels", "opens_per_second", "bytes_per_second")
GONE: Final = "ended"  #: the reason of an end that nobody has seen: a hundred others have ended since, or the list is full


@dataclass(slots=True)
class _Seen:
    traffic: Traffic
    state: str = "connecting"


class Follower:
    """Tells `emit` what has changed from one document to the next."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._seen: dict[int, _Seen] = {}
        self._over: set[int] = set()
        self._relays: dict[str, RelayStateChanged] = {}
        self._uses: list[Use] = []
        self._ready = False

    def take(self, document: Mapping[str, Any]) -> None:
        """Take the next answer to `connections`."""
        status = document["status"]
        if not self._ready:
            self._ready = True
            self._emit(replace(ready(document), fullest=lambda number: self._uses[:number]))
        self._uses = [_use(shown, status["limits"]) for shown in status.get("uses", ())]
        for relay in status["relays"]:
            self._tell_relay(RelayStateChanged(relay["relay"], relay["state"], relay["detail"], relay["rtt"]))
        told = {shown["id"] for shown in document["connections"]}
        for shown in document["connections"]:
            if shown["id"] not in self._over:
                self._tell(shown)
        for number in self._seen.keys() - told:
            self._close(ConnectionClosed(number, GONE))
        self._over &= told

    def _tell_relay(self, event: RelayStateChanged) -> None:
        if self._relays.get(event.relay) != event:
            self._relays[event.relay] = event
            self._emit(event)

    def _tell(self, shown: Mapping[str, Any]) -> None:
        seen = self._seen.get(shown["id"])
        if seen is None:
            seen = self._seen[shown["id"]] = _Seen(Traffic())
            _count(seen.traffic, shown)
            labels = (shown["target"], shown["device"], shown["door"], shown["path"])
            self._emit(ConnectionOpened(shown["id"], *labels, seen.traffic, shown["age"]))
        _count(seen.traffic, shown)
        if shown["state"] == "ended":
            self._close(ConnectionClosed(shown["id"], shown["reason"], shown["detail"], shown["ended"]))
        elif shown["state"] != seen.state:
            seen.state = shown["state"]
            self._emit(ConnectionChanged(shown["id"], shown["state"], shown["tunnel"]))

    def _close(self, event: ConnectionClosed) -> None:
        del self._seen[event.id]
        self._over.add(event.id)
        self._emit(event)


def ready(document: Mapping[str, Any]) -> Ready:
    """Whom an answer to `connections` is of."""
    status = document["status"]
    return Ready(status["role"], next(iter(status["listen"]), None), device_id=status["device_id"])


def totals(document: Mapping[str, Any]) -> Totals:
    """What the role's connections that have ended come to, in an answer to `connections`."""
    summary = document["status"]["connections"]
    return Totals(**{field.name: summary[field.name] for field in fields(Totals)})


def unseen(document: Mapping[str, Any]) -> int:
    """How many open connections an answer to `connections` leaves out."""
    listed = len([shown for shown in document["connections"] if shown["state"] != "ended"])
    return int(document["status"]["connections"]["open"]) - listed


def _use(shown: Mapping[str, Any], limits: Mapping[str, Mapping[str, Any]]) -> Use:
    kind, use = shown["kind"], shown["use"]
    tunnels, opens, rate = (use[name] for name in USED)
    most = [limits[kind][name] for name in USED]
    return Use(kind, shown["holder"], tunnels, opens, rate, use["refused"], most[0], most[1], most[2], tuple(use["at_limit"]))


def _count(traffic: Traffic, shown: Mapping[str, Any]) -> None:
    for name in COUNTERS:
        setattr(traffic, name, shown[name])

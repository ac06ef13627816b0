"""What a role does, as lines: log lines for people on stderr, or one JSON object a line on stdout for programs.

Both are listeners: call one with each event. Neither raises when nobody reads any more; a role must not end because its log did.
Source: docs/reference/events.md.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, TextIO

from tuunel.events import (
    Alarm,
    ConnectionChanged,
    ConnectionClosed,
    ConnectionOpened,
    DeviceSeen,
    Emit,
    Event,
    Notice,
    Ready,
    RelayStateChanged,
    Traffic,
    printable,
)

EVENT_NAMES: Final[dict[type[Event], str]] = {
    Ready: "ready",
    RelayStateChanged: "relay",
    ConnectionOpened: "opened",
    ConnectionChanged: "changed",
    ConnectionClosed: "closed",
    DeviceSeen: "device",
    Notice: "notice",
    Alarm: "alarm",
}
_FACTS: Final = {kind: tuple(field.name for field in fields(kind)) for kind in EVENT_NAMES}
NO_DOORS: Final = frozenset({"", "tunnel", "relay"})  # a relay and an agent have one way in: nothing to tell apart
Now = Callable[[], datetime]
MAX_HELD = 256  # events kept while a role is not ready yet; a relay that stays away says little, and the oldest is worth least


class Level(StrEnum):
    """How much is written, by severities of RFC 5424 section 6.2.1; each includes those before it."""

    ERROR = "error"
    WARNING = "warning"
    NOTICE = "notice"
    INFO = "info"


_SEVERITIES: Final = {level: number for number, level in enumerate(Level)}


def utc_now() -> datetime:
    """The current time, in UTC."""
    return datetime.now(UTC)


class Lines:
    """A text stream that goes quiet, instead of failing, once its reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream

    def write(self, line: str) -> None:
        """Write one line and flush it."""
        if self._stream is None:
            return
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # the pipe's reader left, the disk is full, the stream is closed
            self._stream = None


def level_of(event: Event) -> Level:
    """How serious an event is: alarms are errors, what a person should read is a warning, single connections are information."""
    match event:
        case Alarm():
            return Level.ERROR
        case Notice() | RelayStateChanged(state="offline"):
            return Level.WARNING
        case Ready() | RelayStateChanged() | DeviceSeen():
            return Level.NOTICE
        case ConnectionOpened() | ConnectionChanged() | ConnectionClosed():
            return Level.INFO


class Threshold:
    """Passes on the events of `level` and above, and `Ready`, which begins every journal. `level` may change while it runs."""

    def __init__(self, listener: Emit, level: Level) -> None:
        self.level = level
        self._listener = listener

    def __call__(self, event: Event) -> None:
        """Pass `event` on if it is serious enough."""
        if isinstance(event, Ready) or _SEVERITIES[level_of(event)] <= _SEVERITIES[self.level]:
            self._listener(event)


class JsonJournal:
    """Writes each event as one JSON object a line, `ready` always first: what comes before it is held back until then."""

    def __init__(self, stream: TextIO, now: Now = utc_now) -> None:
        self._lines = Lines(stream)
        self._now = now
        self._traffic: dict[int, Traffic] = {}
        self._tunnels: dict[int, str] = {}
        self._held: deque[str] | None = deque(maxlen=MAX_HELD)

    def __call__(self, event: Event) -> None:
        """Write `event`, or hold it back while the role is not ready."""
        line = json.dumps({"event": EVENT_NAMES[type(event)], "time": self._time(), **self._facts(event)})
        if self._held is None:
            self._lines.write(line)
        elif isinstance(event, Ready):
            held, self._held = self._held, None
            for each in (line, *held):
                self._lines.write(each)
        else:
            self._held.append(line)

    def _time(self) -> str:
        return self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _facts(self, event: Event) -> dict[str, object]:
        values = ((name, getattr(event, name)) for name in _FACTS[type(event)])
        facts = {name: value for name, value in values if value is not None and not isinstance(value, Traffic) and not callable(value)}
        if isinstance(event, ConnectionOpened):
            self._traffic[event.id] = event.traffic
        elif isinstance(event, ConnectionChanged) and event.tunnel:
            self._tunnels[event.id] = event.tunnel
        elif isinstance(event, ConnectionClosed):
            facts |= self._carried(event.id)
        return facts

    def _carried(self, number: int) -> dict[str, object]:
        tunnel, traffic = self._tunnels.pop(number, ""), self._traffic.pop(number, None)
        facts: dict[str, object] = {"tunnel": tunnel} if tunnel else {}
        if traffic:
            facts |= {"up": traffic.up, "down": traffic.down} | ({"lost": traffic.lost} if traffic.lost else {})
        return facts


class LogJournal:
    """Writes each event as a line for people, with the time in UTC. `next_steps` says what to do once a role is ready."""

    def __init__(self, stream: TextIO, next_steps: Callable[[Ready], Sequence[str]], now: Now = utc_now) -> None:
        self._lines = Lines(stream)
        self._next_steps = next_steps
        self._now = now
        self._open: dict[int, ConnectionOpened] = {}
        self._tunnels: dict[int, str] = {}
        self._relays: dict[str, tuple[str, str]] = {}

    def __call__(self, event: Event) -> None:
        """Write `event`."""
        stamp = self._now().strftime("%Y-%m-%dT%H:%M:%SZ")
        for line in self._told(event):
            self._lines.write(f"{stamp} {line}")
        if isinstance(event, Ready):
            for line in self._next_steps(event):
                self._lines.write(line)

    def _told(self, event: Event) -> Iterator[str]:
        match event:
            case ConnectionOpened():
                self._open[event.id] = event
                yield f"#{event.id} {described(event)}"
            case ConnectionChanged():
                if event.tunnel:
                    self._tunnels[event.id] = f", tunnel {printable(event.tunnel)}"
                yield f"#{event.id} {event.state}{self._tunnels.get(event.id, '')}"
            case ConnectionClosed():
                yield self._closed(event)
            case RelayStateChanged() if self._relays.get(event.relay) == (event.state, event.detail):
                return  # only the round-trip time has changed, or it is still offline for the same reason
            case RelayStateChanged(state="connecting") if self._relays.get(event.relay, ("", ""))[0] == "offline":
                return  # tried again, as it is every second or so: what comes of it is told when that is news
            case RelayStateChanged():
                self._relays[event.relay] = (event.state, event.detail)
                yield sentence(event)
            case _:
                yield sentence(event)

    def _closed(self, event: ConnectionClosed) -> str:
        opened = self._open.pop(event.id, None)
        carried = f", {opened.traffic.up} bytes up, {opened.traffic.down} bytes down" if opened else ""
        if opened and opened.traffic.lost:
            carried += f", {opened.traffic.lost} datagrams lost here"
        detail = f": {printable(event.detail)}" if event.detail else ""
        tunnel = self._tunnels.pop(event.id, "")
        return f"#{event.id} ended {printable(event.reason)}{detail}{tunnel}{carried}"


def described(event: ConnectionOpened) -> str:
    """A connection in a few words, safe to show."""
    door = event.door not in NO_DOORS and f"by {event.door}"
    parts = (event.target, event.device and f"device {event.device}", door, event.path and f"path {event.path}")
    return ", ".join(printable(part) for part in parts if part)


def sentence(event: Ready | RelayStateChanged | DeviceSeen | Notice | Alarm) -> str:
    """An event that is not about one connection, as a line that is safe to show."""
    match event:
        case Ready():
            device = f"device {event.device_id} " if event.device_id else ""
            listening = f" on {event.listen}" if event.listen else ""
            return f"{device}{event.role} ready{listening}"
        case RelayStateChanged():
            detail = f": {printable(event.detail)}" if event.detail else ""
            return f"relay {printable(event.relay)} {event.state}{detail}"
        case DeviceSeen():
            name = f" ({printable(event.name)})" if event.name else ""
            return f"device {printable(event.device)}{name} {event.what}"
        case Notice():
            return printable(event.text, limit=1000)
        case Alarm():
            return f"ALARM: {printable(event.text, limit=1000)}"

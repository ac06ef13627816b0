"""What a role did and does, as Prometheus metrics: a listener for events, and the numbers that the role counts itself.

No label names a device, a target or a person: such labels would grow without bound, and tell whoever reads metrics who talks to whom.
Source: docs/reference/metrics.md.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, Literal

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tuunel.errors import Reason, TuunelError
from tuunel.events import (
    Alarm,
    ConnectionChanged,
    ConnectionClosed,
    ConnectionOpened,
    Event,
    Measures,
    RelayStateChanged,
    Traffic,
)

PREFIX: Final = "tuunel_"
ENDS: Final = frozenset({"done", "reset", *Reason})


@dataclass(frozen=True, slots=True)
class Kind:
    """One metric: its name without `tuunel_`, and what it says. `roles` have it."""

    name: str
    type: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("relay", "agent", "proxy")


RELAY, AGENT, PROXY, DEVICES = ("relay",), ("agent",), ("proxy",), ("agent", "proxy")
KINDS: Final = (
    Kind("info", "gauge", "Always 1; the labels say which role this is, and its version.", ("role", "version")),
    Kind("connections", "gauge", "Connections of apps now, by state and front door.", ("state", "door")),
    Kind("connections_opened_total", "counter", "Connections that have begun, by front door.", ("door",)),
    Kind("connections_closed_total", "counter", "Connections that have ended, by front door and reason.", ("door", "reason")),
    Kind("bytes_total", "counter", "Bytes that apps sent (up) and received (down).", ("direction",)),
    Kind("datagrams_lost_total", "counter", "Datagrams of UDP flows that were dropped at this end."),
    Kind("alarms_total", "counter", "Alarms: something is wrong with an identity, a key or a file."),
    Kind("relay_online", "gauge", "1 while this machine is connected to the relay, else 0.", ("relay",), DEVICES),
    Kind("relay_lost_total", "counter", "How often the connection to the relay failed or was lost.", ("relay",), DEVICES),
    Kind("relay_rtt_seconds", "gauge", "The last round trip to the relay.", ("relay",), DEVICES),
    Kind("relay_devices_enrolled", "gauge", "Devices that are enrolled here.", (), RELAY),
    Kind("relay_devices_online", "gauge", "Devices that are online here.", (), RELAY),
    Kind("relay_agents_online", "gauge", "Agents that are online here.", (), RELAY),
    Kind("relay_ready_parked", "gauge", "Connections of agents that wait here for an open.", (), RELAY),
    Kind("relay_opens_waiting", "gauge", "Opens that wait for an agent's connection.", (), RELAY),
    Kind("relay_opens_refused_total", "counter", "Opens that ended in an error, by reason.", ("reason",), RELAY),
    Kind("relay_at_limit", "gauge", "Devices and address prefixes that are at a limit now, by limit.", ("limit",), RELAY),
    Kind("relay_unproven_connections", "gauge", "Connections that have not proved who they are yet.", (), RELAY),
    Kind("relay_handshakes_welcomed_total", "counter", "Handshakes that let a device's connection in.", (), RELAY),
    Kind(
        "relay_handshakes_refused_total",
        "counter",
        "Connections that were not let in: crowded or rate at the gate, broken on the way, else the reason that was told.",
        ("cause",),
        RELAY,
    ),
    Kind("agent_tunnels", "gauge", "Tunnels of clients, standbys included.", (), AGENT),
    Kind("agent_ready_connections", "gauge", "Connections that wait at the relay, or are on their way there.", (), AGENT),
    Kind("agent_clients", "gauge", "Clients that may come in.", (), AGENT),
    Kind("agent_open_invites", "gauge", "Invites that can still let somebody in.", (), AGENT),
    Kind("proxy_tunnels", "gauge", "Tunnels to devices, standbys included.", (), PROXY),
    Kind("proxy_standby_tunnels", "gauge", "Tunnels that wait for a use.", (), PROXY),
    Kind("proxy_dial_connections", "gauge", "Connections that wait at relays.", (), PROXY),
    Kind("proxy_associations", "gauge", "SOCKS clients that have UDP now.", (), PROXY),
    Kind("proxy_door_datagrams_dropped_total", "counter", "Datagrams that did not pass the front doors.", (), PROXY),
)

Samples = dict[str, dict[tuple[str, ...], float]]  # by metric, then by the values of its labels


@dataclass(slots=True)
class _Living:
    door: str
    traffic: Traffic
    state: str = "connecting"


class Metrics:
    """The metrics of one role: call it with each event. `measures` gives the role's own numbers at each reading."""

    def __init__(self, role: str) -> None:
        self.measures: Callable[[], Awaitable[Measures]] | None = None
        self.kinds = tuple(kind for kind in KINDS if role in kind.roles)
        self._info = (role, version("tuunel"))
        self._living: dict[int, _Living] = {}
        self._counts: dict[str, Counter[tuple[str, ...]]] = {}
        self._relays: dict[str, RelayStateChanged] = {}
        self._rtts: dict[str, float] = {}
        self._carried = Traffic()  # by connections that have ended
        self._shown = Counter[str]()  # a counter must not go back, but what was counted and then lost is taken from `up` and `down`
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._facts = _Facts(self)
        self._registry.register(self._facts)

    def __call__(self, event: Event) -> None:
        """Take note of `event`."""
        match event:
            case ConnectionOpened():
                self._living[event.id] = _Living(event.door, event.traffic)
                self._count("connections_opened_total", event.door)
            case ConnectionChanged() if event.id in self._living:
                self._living[event.id].state = event.state
            case ConnectionClosed() if event.id in self._living:
                self._close(self._living.pop(event.id), event.reason)
            case RelayStateChanged():
                self._take_relay(event)
            case Alarm():
                self._count("alarms_total")
            case _:
                pass

    async def page(self, accept: str) -> tuple[bytes, str]:
        """The metrics of this moment as text, in the format that the Accept header `accept` wants, and its media type."""
        try:
            self._facts.measures = {} if self.measures is None else await self.measures()
        except TuunelError:
            self._facts.measures = {}  # a book that cannot be read: its own alarm tells, and the other numbers are still true
        try:
            encode, media_type = choose_encoder(accept)
        except (TypeError, ValueError):  # the library trips over versions that are none
            encode, media_type = choose_encoder("")
        return encode(self._registry), media_type

    def _count(self, name: str, *labels: str) -> None:
        self._counts.setdefault(name, Counter())[labels] += 1

    def _close(self, ended: _Living, reason: str) -> None:
        self._carried.up += ended.traffic.up
        self._carried.down += ended.traffic.down
        self._carried.lost += ended.traffic.lost
        self._count("connections_closed_total", ended.door, reason if reason in ENDS else "other")

    def _take_relay(self, event: RelayStateChanged) -> None:
        self._relays[event.relay] = event
        if event.state == "offline":
            self._count("relay_lost_total", event.relay)
            self._rtts.pop(event.relay, None)
        if event.rtt is not None:
            self._rtts[event.relay] = event.rtt

    def samples(self) -> Samples:
        """Every number that comes from events."""
        traffic = [self._carried, *(each.traffic for each in self._living.values())]
        now = {"up": sum(each.up for each in traffic), "down": sum(each.down for each in traffic), "lost": sum(t.lost for t in traffic)}
        self._shown |= Counter(now)  # the greater of each
        return {
            "info": {self._info: 1},
            "connections": dict(Counter((each.state, each.door) for each in self._living.values())),
            "bytes_total": {("up",): self._shown["up"], ("down",): self._shown["down"]},
            "datagrams_lost_total": {(): self._shown["lost"]},
            "alarms_total": {(): 0},
            "relay_online": {(name,): each.state == "online" for name, each in self._relays.items()},
            "relay_rtt_seconds": {(name,): rtt for name, rtt in self._rtts.items()},
            **{name: dict(counts) for name, counts in self._counts.items()},
        }


class _Facts(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.measures: Measures = {}

    def collect(self) -> Iterator[Metric]:
        samples = self._metrics.samples()
        for name, value in self.measures.items():
            samples[name] = {(): value} if isinstance(value, float | int) else {(label,): each for label, each in value.items()}
        for kind in self._metrics.kinds:
            family = (CounterMetricFamily if kind.type == "counter" else GaugeMetricFamily)(
                PREFIX + kind.name, kind.help, labels=kind.labels
            )
            for labels, value in samples.get(kind.name, {}).items():
                family.add_metric(labels, value)
            yield family

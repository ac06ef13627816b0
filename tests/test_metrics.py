"""Metrics: what events add up to, in a format that Prometheus reads, and never who talks to whom."""

from collections.abc import Mapping

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tuunel.errors import Reason, StateError
from tuunel.events import Alarm, ConnectionChanged, ConnectionClosed, ConnectionOpened, Event, Measures, RelayStateChanged, Traffic
from tuunel.metrics import KINDS, Metrics

pytestmark = pytest.mark.anyio
RELAY = "relay.example.net:7443"


async def read(metrics: Metrics) -> dict[str, float]:
    body, media_type = await metrics.page("")
    assert media_type.startswith("text/plain")
    return {
        f"{sample.name}{_shown(sample.labels)}": sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def _shown(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f"{name}={value}" for name, value in sorted(labels.items())) + "}" if labels else ""


def opened(number: int, door: str = "socks5") -> tuple[ConnectionOpened, Traffic]:
    traffic = Traffic()
    return ConnectionOpened(number, "secret.home.tuunel:80", "mrupz-3btpu", door, "relay", traffic), traffic


async def test_connections_are_counted_by_state_door_and_reason() -> None:
    metrics = Metrics("proxy")
    for number, door in ((1, "socks5"), (2, "http"), (3, "http")):
        metrics(opened(number, door)[0])
    events: list[Event] = [
        ConnectionChanged(1, "open", "k7q2"),
        ConnectionChanged(2, "open"),
        ConnectionClosed(2, "done"),
        ConnectionClosed(3, str(Reason.CONNECTION_REFUSED)),
        ConnectionClosed(3, "reset"),  # the first end counts
        ConnectionClosed(9, "done"),  # never heard of
    ]
    for event in events:
        metrics(event)
    found = await read(metrics)
    assert found["tuunel_connections{door=socks5,state=open}"] == 1
    assert found["tuunel_connections_opened_total{door=http}"] == 2
    assert found["tuunel_connections_closed_total{door=http,reason=done}"] == 1
    assert found["tuunel_connections_closed_total{door=http,reason=CONNECTION_REFUSED}"] == 1
    assert not [name for name in found if "reason=reset" in name]


async def test_a_reason_that_is_none_of_ours_makes_no_label_of_its_own() -> None:
    metrics = Metrics("proxy")
    metrics(opened(1)[0])
    metrics(ConnectionClosed(1, "made up by somebody"))
    assert (await read(metrics))["tuunel_connections_closed_total{door=socks5,reason=other}"] == 1


async def test_bytes_of_living_and_ended_connections_add_up_and_never_go_back() -> None:
    metrics = Metrics("proxy")
    first, carried = opened(1)
    second, living = opened(2)
    metrics(first)
    metrics(second)
    carried.up, carried.down, living.up = 10, 20, 5
    metrics(ConnectionClosed(1, "done"))
    assert (await read(metrics))["tuunel_bytes_total{direction=up}"] == 15
    living.up, living.lost = 2, 3  # datagrams that were counted were dropped after all
    found = await read(metrics)
    assert found["tuunel_bytes_total{direction=up}"] == 15  # else Prometheus would take it for a restart
    assert found["tuunel_bytes_total{direction=down}"] == 20
    assert found["tuunel_datagrams_lost_total"] == 3
    living.up = 9
    assert (await read(metrics))["tuunel_bytes_total{direction=up}"] == 19


async def test_relays_have_a_state_and_a_round_trip() -> None:
    metrics = Metrics("agent")
    metrics(RelayStateChanged(RELAY, "connecting"))
    assert (await read(metrics))[f"tuunel_relay_online{{relay={RELAY}}}"] == 0
    metrics(RelayStateChanged(RELAY, "online", rtt=0.25))
    found = await read(metrics)
    assert (found[f"tuunel_relay_online{{relay={RELAY}}}"], found[f"tuunel_relay_rtt_seconds{{relay={RELAY}}}"]) == (1, 0.25)
    metrics(RelayStateChanged(RELAY, "offline", "gone"))
    found = await read(metrics)
    assert found[f"tuunel_relay_lost_total{{relay={RELAY}}}"] == 1
    assert f"tuunel_relay_rtt_seconds{{relay={RELAY}}}" not in found  # of a relay that is not there nothing is known


async def test_the_roles_own_numbers_are_asked_at_each_reading() -> None:
    metrics, numbers = Metrics("relay"), {"relay_devices_online": 1, "relay_opens_refused_total": {"PEER_UNAVAILABLE": 2}}

    async def measures() -> Measures:
        return numbers

    metrics.measures = measures
    found = await read(metrics)
    assert found["tuunel_relay_devices_online"] == 1
    assert found["tuunel_relay_opens_refused_total{reason=PEER_UNAVAILABLE}"] == 2
    numbers["relay_devices_online"] = 5
    assert (await read(metrics))["tuunel_relay_devices_online"] == 5


async def test_a_book_that_cannot_be_read_takes_no_other_number_away() -> None:
    metrics = Metrics("agent")

    async def measures() -> Measures:
        raise StateError("grants.json is damaged", "restore it")

    metrics.measures = measures
    metrics(Alarm("grants.json is damaged"))
    assert (await read(metrics))["tuunel_alarms_total"] == 1


async def test_no_label_says_who_or_where_to() -> None:
    metrics = Metrics("proxy")
    metrics(opened(1)[0])
    body = (await metrics.page(""))[0].decode()
    assert "secret.home" not in body
    assert "mrupz" not in body
    assert {label for kind in KINDS for label in kind.labels} <= {
        "role", "version", "state", "door", "reason", "direction", "relay", "cause", "limit"
    }  # fmt: skip


async def test_openmetrics_is_spoken_to_who_asks_for_it() -> None:
    metrics = Metrics("proxy")
    metrics(opened(1)[0])
    body, media_type = await metrics.page("application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    assert {family.name for family in openmetrics.text_string_to_metric_families(body.decode())} > {"tuunel_connections"}


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text; version=abc", "application/openmetrics-text;version=1..", "a;=;,,;;version=1.0.0", "\xff"]
)
async def test_whatever_is_accepted_there_is_an_answer(accept: str) -> None:
    body, media_type = await Metrics("proxy").page(accept)
    assert b"tuunel_info" in body
    assert media_type.startswith(("text/plain", "application/openmetrics-text"))


async def test_the_process_is_measured() -> None:
    assert (await read(Metrics("proxy")))["process_resident_memory_bytes"] > 0

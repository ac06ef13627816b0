"""What devices and prefixes are charged for, when they are refused, and what is said of it."""

from contextlib import ExitStack

import pytest

from tests.relay.clocks import Clock
from tuunel.errors import Failure, Reason, Speaker
from tuunel.events import Traffic
from tuunel.relay import limiter as module
from tuunel.relay.limiter import Charge, Limiter, turn_size
from tuunel.relay.limits import Allowances

HERE, THERE = "192.0.2.7", "198.51.100.9"


class Till:
    """A limiter, its clock, what it has told, and the tunnels that are open."""

    def __init__(self, *limits: str) -> None:
        self.clock = Clock()
        self.told: list[str] = []
        self.tunnels: list[ExitStack] = []
        self.limiter = Limiter(self.clock, Allowances.parse(limits), self.told.append)

    def open(self, device: str = "laptop", prefix: str = HERE) -> tuple[ExitStack, Charge]:
        tunnel = ExitStack()
        self.tunnels.append(tunnel)
        return tunnel, tunnel.enter_context(self.limiter.tunnel(device, prefix))

    def refusal(self, device: str = "laptop", prefix: str = HERE) -> Failure:
        with pytest.raises(Failure) as caught:
            self.open(device, prefix)
        assert caught.value.speaker is Speaker.RELAY
        return caught.value


def test_tunnels_are_counted_while_they_last() -> None:
    till = Till("device-tunnels=2")
    first, _ = till.open()
    till.open()
    failure = till.refusal()
    assert (failure.reason, failure.detail) == (Reason.QUOTA, "this device may have 2 tunnels (limit device-tunnels)")
    assert failure.retry_after > 0
    till.open("other")
    first.close()
    till.open()
    assert till.limiter.devices.use("laptop").tunnels == 2


def test_opens_are_counted_each_second_and_16_seconds_worth_may_come_at_once() -> None:
    till = Till("device-opens=2/s")
    for _ in range(32):
        till.open()[0].close()
    failure = till.refusal()
    assert (failure.reason, failure.retry_after) == (Reason.RATE_LIMITED, 1)
    assert failure.detail == "this device may open 2 tunnels a second (limit device-opens)"
    till.open("other")
    till.clock.now += 0.5
    till.open()
    till.refusal()


def test_a_refused_open_costs_neither_the_device_nor_its_prefix_anything() -> None:
    till = Till("device-tunnels=1", "prefix-opens=1/s")
    till.open()
    for _ in range(100):
        till.refusal()
    for number in range(15):
        till.open(f"device {number}")
    assert till.refusal("one more").reason is Reason.RATE_LIMITED
    assert till.limiter.prefixes.use(HERE).tunnels == 16


def test_a_prefix_is_all_its_devices_and_no_other_prefix() -> None:
    till = Till("prefix-tunnels=2")
    till.open("a")
    till.open("b")
    failure = till.refusal("c")
    assert failure.reason is Reason.QUOTA
    assert failure.detail == "all devices at this address together may have 2 tunnels (limit prefix-tunnels)"
    till.open("c", THERE)
    till.open("a", THERE)
    assert till.limiter.devices.use("a").tunnels == 2


def test_other_limits_count_at_once_and_end_nothing() -> None:
    till = Till()
    tunnels = [till.open()[0] for _ in range(3)]
    till.limiter.allow(Allowances.parse(["device-tunnels=2"]))
    till.refusal()
    assert till.limiter.devices.use("laptop").tunnels == 3
    for tunnel in tunnels[:2]:
        tunnel.close()
    till.open()
    till.refusal()
    till.limiter.allow(Allowances.parse([]))
    till.open()


def test_the_operator_is_told_once_a_minute_how_often_a_device_was_refused() -> None:
    till = Till("device-tunnels=1")
    till.open()
    for _ in range(5):
        till.refusal()
    assert till.told == [
        "device laptop was refused a tunnel, the 1. so far: this device may have 1 tunnels (limit device-tunnels)",
    ]
    till.clock.now += 60
    till.refusal()
    assert till.told[1].startswith("device laptop was refused a tunnel, the 6. so far")
    assert till.limiter.devices.use("laptop").refused == 6


def test_what_is_used_is_told_beside_the_limits() -> None:
    till = Till("device-rate=1MB/s", "prefix-tunnels=2")
    _, charge = till.open()
    traffic = Traffic()
    with charge.counting(traffic):
        till.clock.now += 5
        till.limiter.sample()
        till.clock.now += 5
        traffic.up, traffic.down = 1_000_000, 2_000_000
        use = till.limiter.devices.use("laptop")
        assert (use.tunnels, use.opens, use.rate, use.refused) == (1, 0.1, 300_000, 0)
        assert (use.max_tunnels, use.max_opens, use.max_rate) == (4096, 256, 1_000_000)
        assert till.limiter.prefixes.use(HERE).rate == 300_000
        assert till.limiter.prefixes.use(HERE).max_tunnels == 2
    assert till.limiter.devices.use("laptop").rate == 300_000  # the bytes of a tunnel that has ended were carried all the same
    for _ in range(2):
        till.clock.now += 5
        till.limiter.sample()
    assert till.limiter.devices.use("laptop").rate == 0


def test_who_is_at_a_limit_stands_first() -> None:
    till = Till("device-tunnels=4", "device-rate=1MB/s", "device-opens=1/s")
    for device, tunnels in (("few", 1), ("most", 3), ("all", 4), ("none", 0)):
        for _ in range(tunnels):
            till.open(device)
    till.clock.now += 20
    for _ in range(2):
        till.limiter.sample()
    _, charge = till.open("fast")
    for bucket in charge.buckets:
        bucket.spend(1_000_000)
    for _ in range(16):
        till.open("often")[0].close()
    till.refusal("often")
    at_limit = {use.holder: use.at_limit for use in till.limiter.fullest(10)}
    assert list(at_limit)[-2:] == ["most", "few"]
    assert at_limit == {"all": ("tunnels",), "fast": ("rate",), "often": ("opens",), "most": (), "few": ()}
    assert till.limiter.at_limit() == {"device-tunnels": 1, "device-rate": 1, "device-opens": 1}
    assert [use.holder for use in till.limiter.fullest(2)] != ["most", "few"]


def test_prefixes_without_a_limit_are_not_among_the_fullest() -> None:
    till = Till()
    till.open()
    assert [use.kind for use in till.limiter.fullest(10)] == ["device"]


def test_who_uses_nothing_any_more_is_forgotten_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 10)
    till = Till("device-opens=1/s")
    till.open("stays")
    for number in range(100):
        till.open(f"device {number}")[0].close()
        till.clock.now += 1
    assert len(till.limiter.devices) <= 20
    assert till.limiter.devices.use("stays").tunnels == 1
    for number in range(100):  # each is new and in use: none of them is forgotten, however many there are
        till.open(f"busy {number}")
    assert len(till.limiter.devices) >= 101


def test_turns_are_short_and_still_worth_a_wake_up() -> None:
    assert [turn_size(rate) for rate in (100_000, 1_000_000, 10**12)] == [4096, 20_000, 1 << 20]

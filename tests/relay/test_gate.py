"""Strangers cost the relay a bounded amount, and one prefix cannot use up what the others need."""

import pytest

from tuunel.relay import gate
from tuunel.relay.gate import Gate, TokenBuckets, prefix_of


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2345::1", "2001:db8:1:2300::/56"),
        ("2001:db8:1:23ff:ffff::9", "2001:db8:1:2300::/56"),
        ("fe80::1%eth0", "fe80::/56"),
    ],
)
def test_addresses_are_counted_by_prefix(address: str, prefix: str) -> None:
    assert prefix_of(address) == prefix


def test_a_bucket_gives_its_burst_then_its_rate() -> None:
    clock = Clock()
    buckets = TokenBuckets(clock, rate=2, burst=3)
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    clock.now += 0.5
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    clock.now += 1000
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]


def test_buckets_do_not_affect_each_other() -> None:
    buckets = TokenBuckets(Clock(), rate=1, burst=1)
    assert buckets.take("a")
    assert buckets.take("b")
    assert not buckets.take("a")


def test_what_was_well_spent_comes_back() -> None:
    buckets = TokenBuckets(Clock(), rate=1, burst=1)
    assert buckets.take("a")
    buckets.give_back("a")
    assert buckets.take("a")
    buckets.give_back("a")
    buckets.give_back("a")  # never above the burst
    assert buckets.take("a")
    assert not buckets.take("a")


def test_full_table_forgets_full_buckets_and_then_lets_strangers_share_one() -> None:
    clock = Clock()
    buckets = TokenBuckets(clock, rate=1, burst=2, max_keys=4)
    for key in range(4):
        assert buckets.take(key)
    assert buckets.take("one")
    assert buckets.take("two")
    assert not buckets.take("three")  # the shared bucket is empty
    assert len(buckets) == 5
    clock.now += 2
    assert buckets.take("three")  # all were full again and are forgotten
    assert len(buckets) == 1


def test_no_prefix_takes_more_places_than_its_share_of_those_that_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "FREE_SHARE", 1)
    door = Gate(Clock(), places=8)
    held = {prefix: sum(door.enter(prefix) for _ in range(8)) for prefix in "abcde"}
    assert held == {"a": 4, "b": 2, "c": 1, "d": 1, "e": 0}
    assert door.unproven == 8
    for _ in range(4):
        door.leave("a")
    assert [door.enter("b") for _ in range(2)] == [True, False]  # it holds three, and three are free
    assert door.enter("e")


def test_dozens_of_prefixes_that_take_all_they_can_keep_nobody_out() -> None:
    door = Gate(Clock())
    assert sum(door.enter("192.0.2.0") for _ in range(gate.PREFIX_BURST)) == 228
    few = [f"192.0.2.{number}" for number in range(1, 40)]
    for prefix in few:
        while door.enter(prefix):
            pass
    assert door.unproven < gate.MAX_UNPROVEN
    assert door.enter("198.51.100.1")


def test_a_flood_that_proves_nothing_runs_dry_and_devices_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "PREFIX_BURST", 5)
    door = Gate(Clock())
    for _ in range(100):
        assert door.enter("device")
        door.leave("device")
        door.welcome("device")
    for _ in range(5):
        assert door.enter("flood")
        door.leave("flood")
    assert not door.enter("flood")
    assert door.unproven == 0

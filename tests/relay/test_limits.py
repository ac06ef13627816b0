"""What an operator types behind --limit, and what that means."""

import pytest

from tuunel.errors import UsageError
from tuunel.relay.limits import MAX_OPENS, MAX_RATE, MAX_TUNNELS, MIN_RATE, Allowance, Allowances, parse_limit


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("device-tunnels=512", ("device", "tunnels", 512)),
        ("device-opens=50/s", ("device", "opens", 50)),
        ("device-opens=50", ("device", "opens", 50)),
        ("device-rate=100MB/s", ("device", "rate", 100_000_000)),
        ("prefix-rate=1.5gb", ("prefix", "rate", 1_500_000_000)),
        ("prefix-rate=250 kB/s", ("prefix", "rate", 250_000)),
        ("prefix-rate=250000", ("prefix", "rate", 250_000)),
        ("PREFIX-TUNNELS=5000", ("prefix", "tunnels", 5000)),
        (f"device-tunnels={MAX_TUNNELS}", ("device", "tunnels", MAX_TUNNELS)),
        (f"device-opens={MAX_OPENS}", ("device", "opens", MAX_OPENS)),
        (f"device-rate={MIN_RATE}", ("device", "rate", MIN_RATE)),
    ],
)
def test_a_limit_is_read(text: str, meant: tuple[str, str, int]) -> None:
    assert parse_limit(text) == meant


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "WHAT=VALUE"),
        ("device-opens", "WHAT=VALUE"),
        ("device-speed=1MB", "one of device-tunnels, device-opens, device-rate, prefix-tunnels"),
        ("agent-opens=5", "one of device-tunnels"),
        ("device-tunnels=", "whole number from 1 to 4096: device-tunnels=100"),
        ("device-tunnels=0", "from 1 to 4096"),
        (f"device-tunnels={MAX_TUNNELS + 1}", "from 1 to 4096"),
        ("device-tunnels=5/s", "from 1 to 4096"),
        ("device-tunnels=1e3", "from 1 to 4096"),
        ("device-tunnels=-1", "from 1 to 4096"),
        ("device-opens=0/s", "device-opens=50/s"),
        (f"device-opens={MAX_OPENS + 1}/s", "from 1 to 256"),
        ("device-opens=5/m", "a second"),
        ("device-opens=0.5/s", "whole number"),
        (f"device-rate={MIN_RATE - 1}", "100kB/s at least: device-rate=20MB/s"),
        (f"device-rate={MAX_RATE + 1}", "bytes a second"),
        ("device-rate=10Mbit/s", "bytes a second"),
        ("device-rate=10MiB/s", "bytes a second"),
        ("prefix-rate=", "prefix-rate=20MB/s"),
        ("prefix-rate=nan", "bytes a second"),
        ("prefix-tunnels=1000001", "from 1 to 1000000"),
        ("prefix-opens=" + "9" * 400, "from 1 to 1000000"),
    ],
)
def test_what_cannot_be_meant_says_what_can(text: str, advice: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_limit(text)
    assert advice in caught.value.advice
    assert repr(text) in str(caught.value)


def test_what_is_not_limited_is_as_the_relays_page_says() -> None:
    assert Allowances.parse([]) == Allowances(Allowance(4096, 256, None), Allowance(None, None, None))
    some = Allowances.parse(["device-rate=1MB/s", "prefix-opens=9/s", "device-tunnels=7"])
    assert some == Allowances(Allowance(7, 256, 1_000_000), Allowance(None, 9, None))


def test_a_limit_that_is_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="device-opens is limited twice"):
        Allowances.parse(["device-opens=5/s", "device-tunnels=5", "device-opens=6/s"])

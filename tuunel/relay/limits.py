"""What the operator lets one device, and one address prefix, use: the values of `tuunel relay serve --limit`.

Source: docs/spec/relay.md, "Limits that the operator sets".
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Self

from tuunel.errors import UsageError

#: What a device can have anyway: the fixed limits of docs/spec/relay.md leave no room for more.
MAX_TUNNELS: Final = 4096
MAX_OPENS: Final = 256
#: More than a relay can do: a number that is larger is a slip of the hand.
_MUCH: Final = 1_000_000
#: Bytes a second. With less, the ends of a few busy tunnels hear nothing of each other for so long that they give up.
MIN_RATE: Final = 100_000
MAX_RATE: Final = 10**12

_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_NUMBER: Final = re.compile(r"([0-9]{1,12})(/s)?")
_RATE: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,3})?) ?(|b|kb|mb|gb)(?:/s)?")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one device, or one prefix, may use; None where there is no limit."""

    tunnels: int | None = None  #: at the same moment, those that are being opened included
    opens: int | None = None  #: a second
    rate: int | None = None  #: bytes a second, both directions together


@dataclass(frozen=True, slots=True)
class Allowances:
    """What the operator lets each device and each address prefix use."""

    device: Allowance = Allowance(MAX_TUNNELS, MAX_OPENS)
    prefix: Allowance = Allowance()

    @classmethod
    def parse(cls, limits: Iterable[str]) -> Self:
        """The defaults, but for `limits`, each `WHAT=VALUE`. Raises UsageError."""
        allowances, seen = cls(), set()
        for text in limits:
            holder, kind, value = parse_limit(text)
            if (holder, kind) in seen:
                raise UsageError(f"{holder}-{kind} is limited twice", "give each limit once")
            seen.add((holder, kind))
            allowances = replace(allowances, **{holder: replace(getattr(allowances, holder), **{kind: value})})
        return allowances


#: The smallest and the largest value of each limit.
BOUNDS: Final = {
    "device-tunnels": (1, MAX_TUNNELS),
    "device-opens": (1, MAX_OPENS),
    "device-rate": (MIN_RATE, MAX_RATE),
    "prefix-tunnels": (1, _MUCH),
    "prefix-opens": (1, _MUCH),
    "prefix-rate": (MIN_RATE, MAX_RATE),
}
_ADVICE: Final = {
    "tunnels": "write a whole number from {0} to {1}: {2}=100",
    "opens": "write a whole number a second from {0} to {1}: {2}=50/s",
    "rate": "write bytes a second, 100kB/s at least: {2}=20MB/s",
}


def parse_limit(text: str) -> tuple[str, str, int]:
    """One limit: `device` or `prefix`; `tunnels`, `opens` or `rate`; and its value. Raises UsageError.

    `device-tunnels=100`, `device-opens=50/s`, `prefix-rate=20MB/s`: units are decimal, `/s` may be left out.
    """
    what, equals, written = text.strip().lower().partition("=")
    if not equals or what not in BOUNDS:
        raise UsageError(f"{text!r} is no limit", f"write WHAT=VALUE, where WHAT is one of {', '.join(BOUNDS)}")
    holder, _, kind = what.partition("-")
    value, (least, most) = _value(kind, written), BOUNDS[what]
    if value is None or not least <= value <= most:
        raise UsageError(f"{text!r}: {what} cannot be that", _ADVICE[kind].format(least, most, what))
    return holder, kind, value


def _value(kind: str, written: str) -> int | None:
    if kind == "rate":
        rate = _RATE.fullmatch(written)
        return round(float(rate[1]) * _UNITS[rate[2]]) if rate else None
    number = _NUMBER.fullmatch(written)
    return int(number[1]) if number and (kind == "opens" or not number[2]) else None

"""Who may cost the relay anything before proving who they are: token buckets per address prefix and caps on open sockets.

Pure: the clock is injected. Source: docs/spec/relay.md, "Cost order" and "Limits".
"""

from collections import Counter
from collections.abc import Callable, Hashable
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

#: One IPv4 address is one visitor; behind IPv6 a household or a rented machine commands a whole /56.
IPV6_PREFIX: Final = 56
#: Handshakes a prefix may start at once, and per second after that. One costs about a millisecond of CPU, so that a
#: single prefix can keep less than a tenth of a core busy. A device that is let in gets its token back.
PREFIX_BURST: Final = 1024
PREFIX_RATE: Final = 64.0
#: Sockets that have not proved anything yet: each holds a file descriptor for at most the handshake's deadlines.
MAX_UNPROVEN: Final = 2048
#: A prefix that holds 1/8 of what is free takes no more: 228 sockets when it is alone. Dozens of prefixes must take all they can
#: before a newcomer finds no place, and a fleet behind one address still shakes hands by the hundred.
FREE_SHARE: Final = 8
#: Keys that one table of buckets remembers; above it strangers share one bucket, so that memory stays bounded.
MAX_BUCKETS: Final = 16384


class TokenBuckets:
    """Token buckets by key: each holds `burst` tokens and gains `rate` a second.

    At most `max_keys` keys are remembered. Full buckets are forgotten first (a forgotten bucket is a full one); when none is
    full, new keys share a single bucket, which fails towards refusing.
    """

    def __init__(self, clock: Callable[[], float], *, rate: float, burst: int, max_keys: int = MAX_BUCKETS) -> None:
        self._clock = clock
        self._rate = rate
        self._burst = burst
        self._max_keys = max_keys
        self._levels: dict[Hashable, tuple[float, float]] = {}  # key -> (tokens, when that was so)

    def take(self, key: Hashable) -> bool:
        """Take one token of `key`; False when there is none."""
        key = self._slot(key)
        level = self._level(key)
        if level < 1:
            return False
        self._levels[key] = (level - 1, self._clock())
        return True

    def give_back(self, key: Hashable) -> None:
        """Return a token taken before: what it paid for turned out to be welcome."""
        if key in self._levels:
            self._levels[key] = (min(self._level(key) + 1, self._burst), self._clock())

    def __len__(self) -> int:
        return len(self._levels)

    def _level(self, key: Hashable) -> float:
        now = self._clock()
        tokens, since = self._levels.get(key, (float(self._burst), now))
        return min(tokens + (now - since) * self._rate, float(self._burst))

    def _slot(self, key: Hashable) -> Hashable:
        if key in self._levels or len(self._levels) < self._max_keys:
            return key
        for old in [old for old in self._levels if self._level(old) >= self._burst]:
            del self._levels[old]
        return key if len(self._levels) < self._max_keys else None


def prefix_of(address: str) -> str:
    """Return the text of the prefix that `address` (IP text, perhaps with a zone) is counted under; IPv4-mapped IPv6 counts as IPv4."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is None:
            return str(ip_network((ip, IPV6_PREFIX), strict=False))
        ip = ip.ipv4_mapped
    return str(ip)


class Gate:
    """Counts sockets that have not proved anything, `places` at most: `enter` when one is accepted, `leave` when it is proved or closed.

    No prefix takes more than a share of the places that are free: the more of them are taken, the less to those who hold some already.
    """

    def __init__(self, clock: Callable[[], float], *, places: int = MAX_UNPROVEN) -> None:
        self._buckets = TokenBuckets(clock, rate=PREFIX_RATE, burst=PREFIX_BURST)
        self._places = places
        self._unproven: dict[str, int] = {}
        self._total = 0
        self.refused: Counter[str] = Counter()  #: sockets that were not let in, by cause: `crowded` or `rate`

    @property
    def unproven(self) -> int:
        """How many sockets are inside the gate."""
        return self._total

    def enter(self, prefix: str) -> bool:
        """Let one socket of `prefix` start a handshake; False: close it at once, nothing but its refusal has been counted."""
        if self._unproven.get(prefix, 0) * FREE_SHARE >= self._places - self._total:
            self.refused["crowded"] += 1
            return False
        if not self._buckets.take(prefix):
            self.refused["rate"] += 1
            return False
        self._unproven[prefix] = self._unproven.get(prefix, 0) + 1
        self._total += 1
        return True

    def leave(self, prefix: str) -> None:
        """One socket that entered is proved or closed."""
        self._total -= 1
        self._unproven[prefix] -= 1
        if not self._unproven[prefix]:
            del self._unproven[prefix]

    def welcome(self, prefix: str) -> None:
        """One socket that entered was let in: its token comes back. A device that is refused has cost as much as a stranger."""
        self._buckets.give_back(prefix)

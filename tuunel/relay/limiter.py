"""What each device and each address prefix uses of what the operator lets it use, and who is refused for it.

A tunnel is charged to the device that opens it, and to the prefix that it is opened from: to the agent it is not, or a guest could use up
what its host needs for others. Pure: the clock is injected. Source: docs/spec/relay.md, "Limits that the operator sets".
"""

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

from tuunel.errors import Failure, Reason, Speaker
from tuunel.events import Traffic, Use
from tuunel.relay.bucket import Bucket
from tuunel.relay.limits import Allowance, Allowances

OPENS_BURST: Final = 16.0  #: seconds: a browser that starts opens in one moment what it needs for a while
RATE_BURST: Final = 0.25  #: seconds: what passes at once after a pause
SAMPLES: Final = 2  #: figures a second are taken since the older of two samples: one alone may have been taken just now
KEPT: Final = 4096  #: devices, and prefixes, that are remembered when they use nothing any more, with how often they were refused
TELL_AFTER: Final = 60.0  #: seconds between two words about one device or prefix
QUOTA_RETRY: Final = 5  #: seconds: a tunnel of its own must end first

Kind = Literal["device", "prefix"]
_WHO: Final[dict[Kind, str]] = {"device": "this device", "prefix": "all devices at this address together"}


class Account:
    """What one device or prefix uses."""

    __slots__ = ("_ended", "_living", "_samples", "bytes", "opened", "opens", "refused", "told", "tunnels")

    def __init__(self, clock: Callable[[], float], allowance: Allowance) -> None:
        self.tunnels = 0  #: that it has, those that are being opened included
        self.opened = 0  #: opens that were not refused here
        self.refused = 0
        self.told = -math.inf  #: when its refusals were last told
        self.opens = Bucket(clock)
        self.bytes = Bucket(clock)
        self._living: set[Traffic] = set()
        self._ended = 0
        self._samples: deque[tuple[float, int, int]] = deque([(clock(), 0, 0)], maxlen=SAMPLES)
        self.allow(allowance)

    def allow(self, allowance: Allowance) -> None:
        """Limit it so from now on; what it has stays."""
        self.opens.allow(allowance.opens, (allowance.opens or 0) * OPENS_BURST)
        self.bytes.allow(allowance.rate, (allowance.rate or 0) * RATE_BURST)

    @property
    def idle(self) -> bool:
        """Whether it uses nothing, and may use all it ever may: a new account would be the same."""
        return not self.tunnels and self.opens.full and self.bytes.full

    @property
    def carried(self) -> int:
        """Bytes of its tunnels, both directions, since it is remembered."""
        return self._ended + sum(traffic.up + traffic.down for traffic in self._living)

    def begin(self, traffic: Traffic) -> None:
        """Count the bytes of a tunnel."""
        self._living.add(traffic)

    def end(self, traffic: Traffic) -> None:
        """A tunnel whose bytes were counted is over."""
        self._living.remove(traffic)
        self._ended += traffic.up + traffic.down

    def sample(self, now: float) -> None:
        """Take the figures from which those a second are made."""
        self._samples.append((now, self.opened, self.carried))

    def per_second(self, now: float) -> tuple[float, float]:
        """Opens and bytes a second since the sample before the last."""
        since, opened, carried = self._samples[0]
        seconds = max(now - since, 1.0)
        return (self.opened - opened) / seconds, (self.carried - carried) / seconds


class Accounts:
    """The accounts of all devices, or of all prefixes."""

    def __init__(self, clock: Callable[[], float], kind: Kind, allowance: Allowance) -> None:
        self._clock = clock
        self._kind = kind
        self._allowance = allowance
        self._accounts: dict[str, Account] = {}
        self._tidy_above = KEPT

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, holder: str) -> Account:
        """The account of a device or prefix, a new one if it has none."""
        if holder not in self._accounts:
            if len(self._accounts) >= self._tidy_above:
                self._accounts = {name: account for name, account in self._accounts.items() if not account.idle}
                self._tidy_above = max(KEPT, 2 * len(self._accounts))
            self._accounts[holder] = Account(self._clock, self._allowance)
        return self._accounts[holder]

    def allow(self, allowance: Allowance) -> None:
        """Limit each so from now on."""
        self._allowance = allowance
        for account in self._accounts.values():
            account.allow(allowance)

    def refusal(self, account: Account) -> Failure | None:
        """Why it may not open one more tunnel now, RATE_LIMITED or QUOTA; None when it may. Changes nothing."""
        who, most = _WHO[self._kind], self._allowance
        limits = set(self._at_limit(account))
        if "opens" in limits and account.opens.rate is not None:
            wait = max(1, math.ceil((1 - account.opens.level) / account.opens.rate))
            detail = f"{who} may open {most.opens} tunnels a second (limit {self._kind}-opens)"
            return Failure(Reason.RATE_LIMITED, Speaker.RELAY, detail, retry_after=wait)
        if "tunnels" in limits:
            detail = f"{who} may have {most.tunnels} tunnels (limit {self._kind}-tunnels)"
            return Failure(Reason.QUOTA, Speaker.RELAY, detail, retry_after=QUOTA_RETRY)
        return None

    def sample(self) -> None:
        """Take a sample of each; call it every few seconds."""
        now = self._clock()
        for account in self._accounts.values():
            account.sample(now)

    def use(self, holder: str) -> Use:
        """What a device or prefix uses at this moment."""
        account = self._accounts.get(holder) or Account(self._clock, self._allowance)
        most, now = self._allowance, self._clock()
        opens, rate = account.per_second(now)
        return Use(
            self._kind, holder, account.tunnels, round(opens, 1), round(rate), account.refused,
            most.tunnels, most.opens, most.rate, tuple(self._at_limit(account)),
        )  # fmt: skip

    def uses(self) -> list[Use]:
        """What those use that have tunnels, or were refused any."""
        return [self.use(holder) for holder, account in self._accounts.items() if account.tunnels or account.refused]

    def _at_limit(self, account: Account) -> Iterator[str]:
        if self._allowance.tunnels is not None and account.tunnels >= self._allowance.tunnels:
            yield "tunnels"
        if account.opens.rate is not None and account.opens.level < 1:
            yield "opens"
        if account.bytes.rate is not None and account.bytes.level < turn_size(account.bytes.rate):
            yield "rate"


class Charge:
    """One tunnel's place on the account of its device and on that of its prefix."""

    def __init__(self, *accounts: Account) -> None:
        self._accounts = accounts
        self.buckets = tuple(account.bytes for account in accounts)  #: what its bytes are taken from

    @contextmanager
    def counting(self, traffic: Traffic) -> Iterator[None]:
        """Count the bytes of the tunnel while the body runs."""
        for account in self._accounts:
            account.begin(traffic)
        try:
            yield
        finally:
            for account in self._accounts:
                account.end(traffic)


class Limiter:
    """Charges tunnels. `tell` gets a sentence for the operator, for each device or prefix that is refused once a minute at most."""

    def __init__(self, clock: Callable[[], float], allowances: Allowances, tell: Callable[[str], None]) -> None:
        self.allowances = allowances
        self.devices = Accounts(clock, "device", allowances.device)
        self.prefixes = Accounts(clock, "prefix", allowances.prefix)
        self._clock = clock
        self._tell = tell

    def allow(self, allowances: Allowances) -> None:
        """Limit everybody so from now on. Tunnels that are more than that go on."""
        self.allowances = allowances
        self.devices.allow(allowances.device)
        self.prefixes.allow(allowances.prefix)

    @contextmanager
    def tunnel(self, device: str, prefix: str) -> Iterator[Charge]:
        """Charge an open, and while the body runs a tunnel, to the device that opens it and to its prefix. Raises RATE_LIMITED or QUOTA."""
        accounts = self._open(device, prefix)
        for account in accounts:
            account.tunnels += 1
        try:
            yield Charge(*accounts)
        finally:
            for account in accounts:
                account.tunnels -= 1

    def _open(self, device: str, prefix: str) -> tuple[Account, ...]:
        accounts = self.devices.of(device), self.prefixes.of(prefix)
        for account, book, who in zip(accounts, (self.devices, self.prefixes), (f"device {device}", f"address {prefix}"), strict=True):
            failure = book.refusal(account)
            if failure is not None:
                self._note_refusal(account, who, failure)
                raise failure
        for account in accounts:
            account.opens.spend(1)
            account.opened += 1
        return accounts

    def _note_refusal(self, account: Account, who: str, failure: Failure) -> None:
        account.refused += 1
        now = self._clock()
        if now - account.told >= TELL_AFTER:
            account.told = now
            self._tell(f"{who} was refused a tunnel, the {account.refused}. so far: {failure.detail}")

    def sample(self) -> None:
        """Take a sample of everything; call it every few seconds."""
        self.devices.sample()
        self.prefixes.sample()

    def fullest(self, number: int) -> list[Use]:
        """What those use that are at a limit, then that are nearest to one. Prefixes only where they have limits."""
        limited = self.allowances.prefix != Allowance()
        uses = (*self.devices.uses(), *(self.prefixes.uses() if limited else ()))
        return heapq.nlargest(number, uses, key=lambda use: (bool(use.at_limit), use.share, use.rate))

    def at_limit(self) -> Counter[str]:
        """How many devices and prefixes are at each limit now."""
        uses = (*self.devices.uses(), *self.prefixes.uses())
        return Counter(f"{use.kind}-{limit}" for use in uses for limit in use.at_limit)


def turn_size(rate: float) -> int:
    """How many bytes one direction of a tunnel moves at a time where all of them wait for `rate` bytes a second."""
    return int(min(max(rate / 50, 4096), 1 << 20))

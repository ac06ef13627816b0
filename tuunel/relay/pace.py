"""How fast a tunnel may move bytes: who may not go on does not read, and TCP's flow control does the rest.

Bytes are taken from the buckets of the tunnel's device and of its prefix before they are read, so that no more pass than these hold.
Who waits takes its share at once and sleeps until that is there: all that wait on one bucket come in turn. Source: docs/spec/relay.md.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from tuunel.rawstream import RawStream
from tuunel.relay.bucket import Bucket
from tuunel.relay.limiter import turn_size

LOOK: Final = 0.4  #: seconds between two looks whether there is still anything to wait for
Sleep = Callable[[float], Awaitable[object]]


class Pace:
    """The pace of one tunnel, both directions together. `buckets` are shared with other tunnels; without any it is free."""

    __slots__ = ("_buckets", "_sleep")

    def __init__(self, *buckets: Bucket, sleep: Sleep = anyio.sleep) -> None:
        self._buckets = buckets
        self._sleep = sleep

    def take(self, most: int) -> int:
        """How many bytes, up to `most`, may be moved now; they are spent. 0: too few to be worth it, await `turn`."""
        for bucket in self._buckets:
            if bucket.rate is not None:
                return self._take(most)
        return most

    def _take(self, most: int) -> int:
        there = min(bucket.level for bucket in self._buckets if bucket.rate is not None)
        taken = min(most, int(there))
        if taken < min(most, self._turn()):
            return 0
        for bucket in self._buckets:
            bucket.spend(taken)
        return taken

    def give_back(self, n: int) -> None:
        """Return what was taken and not moved."""
        for bucket in self._buckets:
            if n and bucket.rate is not None:
                bucket.give_back(n)

    async def turn(self, most: int, source: RawStream) -> int:
        """Wait for a turn: how many bytes of `source`, up to `most`, may then be moved; they are spent. Raises as `pay`."""
        taken = min(most, self._turn())
        await self.pay(taken, source)
        return taken

    async def pay(self, n: int, source: RawStream) -> None:
        """Spend `n` bytes of `source` and wait until they may be moved.

        Raises anyio.ClosedResourceError soon after `source` was closed at this end. Then, and when it is cancelled, nothing is spent.
        """
        seconds = max((bucket.spend(n) for bucket in self._buckets), default=0.0)
        try:
            while seconds > 0:
                await self._sleep(min(seconds, LOOK))
                seconds -= LOOK
                if source.fileno() < 0:
                    raise anyio.ClosedResourceError
        except BaseException:
            self.give_back(n)
            raise

    def _turn(self) -> int:
        """Between two calls a bucket may have become free, or another rate."""
        return min((turn_size(bucket.rate) for bucket in self._buckets if bucket.rate is not None), default=1 << 20)


FREE = Pace()  #: moves as fast as it can

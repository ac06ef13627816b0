"""One UDP flow at the end that has the target's socket: the agent, and the proxy for destinations that it reaches itself.

Source: docs/spec/records.md (flows), docs/spec/policy.md section 4.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.lowlevel

from tuunel.address import HostPort
from tuunel.datagrams import DatagramSocket
from tuunel.dial import Address, Allow, connect_datagrams, dial_datagram, failure_of
from tuunel.errors import Failure, Speaker

IDLE_TIME: Final = 60.0  #: seconds without a datagram either way after which a flow ends
DNS_IDLE_TIME: Final = 10.0  #: the same for DNS, where a question has one answer and a client may use a new port for each
DNS_PORT: Final = 53
BURST: Final = 32  #: datagrams taken from the target in one go: a target that floods leaves the event loop to others
MAX_HELD: Final = 64  #: datagrams held until the socket is there: what an eager client sends while a name is looked up
MAX_HELD_BYTES: Final = 128 * 1024  #: and their bytes; room for one of the largest
MAX_TRIED: Final = 16  #: datagrams that one of several addresses may take without a word, and is no longer doubted
MAX_TRIED_BYTES: Final = 64 * 1024  #: and their bytes
PARTING: Final = 1.0  #: seconds for what is held when all flows are to end: a client may send one datagram and leave


@dataclass(frozen=True, slots=True)
class Rule:
    """Where a flow may lead. `allow` chooses among addresses as in `dial`, by what holds when it is asked.

    Its answer is good while `stamp`, which must be cheap and must not raise, equals what it was before the question.
    """

    allow: Allow
    stamp: Callable[[], object]


def idle_time(port: int) -> float:
    """Seconds without a datagram either way after which a flow to this port ends."""
    return DNS_IDLE_TIME if port == DNS_PORT else IDLE_TIME


class TargetFlow:
    """Datagrams to and from one target, through a socket that is connected to one checked address of it.

    `rule` is asked when the target was looked up, and again before a datagram is sent under a new stamp. `deliver` is called with the
    datagrams of the target, as many as have come; `dropped` with the size of each that `send` had taken and that is lost after all.
    Neither must wait or raise. `speaker` is in whose name failures speak.
    """

    def __init__(
        self,
        target: HostPort,
        *,
        rule: Rule,
        speaker: Speaker,
        deliver: Callable[[Sequence[bytes]], object],
        dropped: Callable[[int], object],
    ) -> None:
        self._target = target
        self._rule = rule
        self._speaker = speaker
        self._deliver = deliver
        self._dropped = dropped
        self._judged: object = None  # the stamp under which the rule was asked
        self._address: Address | None = None
        self._others: Sequence[Address] = ()  # that come next if this one refuses before it has answered
        self._tried: list[bytes] = []  # what this one has taken, as long as there are others
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._none_held: anyio.Event | None = None
        self._socket: DatagramSocket | None = None
        self._over = False
        self._active = 0.0
        self._failed: OSError | Failure | None = None
        self._wait: anyio.CancelScope | None = None

    def send(self, payload: bytes) -> bool:
        """Send a datagram to the target, or hold it until there is a socket. False: it is lost. Never waits and never raises."""
        if self._over:
            return False
        if self._socket is not None:
            try:
                return self._send(self._socket, payload)
            except (OSError, Failure) as error:
                self._fail(error)
        return self._may_go_on() and self._hold(payload)

    async def run(self, opened: Callable[[HostPort], object]) -> None:
        """Dial the target, call `opened` with the socket's own address, and deliver what comes until the flow has been idle.

        An address that refuses before it has answered gives way to the next one, which gets what the first was sent. Raises Failure: why
        the target cannot be reached or may no longer be, or CONNECTION_REFUSED when it said so later. However it ends, the socket is
        closed and `send` loses everything from then on. Call it once.
        """
        try:
            connected, addresses = await dial_datagram(self._target, allow=self._ask, speaker=self._speaker)
            while True:
                with closing(connected):
                    if self._failed is None:
                        opened(connected.local)
                    self._use(connected, addresses)
                    await self._receive(connected)
                if self._failed is None:
                    return
                connected, addresses = self._next_way(self._failed)
        finally:
            self.abandon()

    async def flush(self) -> None:
        """Wait until nothing is held: what was sent early has left, or is lost."""
        while self._held:
            self._none_held = self._none_held or anyio.Event()
            await self._none_held.wait()

    def abandon(self) -> None:
        """Lose what is held, and whatever is sent from now on."""
        self._over = True
        self._socket = None
        for payload in self._held:
            self._dropped(len(payload))
        self._held.clear()
        self._tell_none_held()

    # policy

    def _ask(self, addresses: Sequence[Address]) -> Sequence[Address]:
        self._judged = self._rule.stamp()  # before the question: what changes meanwhile is seen later
        return self._rule.allow(list(addresses))

    def _check(self) -> None:
        if self._address is not None and self._rule.stamp() != self._judged:
            self._ask([self._address])

    # sending

    def _hold(self, payload: bytes) -> bool:
        if len(self._held) >= MAX_HELD or self._held_bytes + len(payload) > MAX_HELD_BYTES:
            return False
        self._held.append(payload)
        self._held_bytes += len(payload)
        return True

    def _tell_none_held(self) -> None:
        if self._none_held is not None:
            self._none_held.set()
            self._none_held = None

    def _use(self, connected: DatagramSocket, addresses: Sequence[Address]) -> None:
        self._address, *self._others = addresses
        self._failed = None
        self._active = anyio.current_time()
        try:
            while self._held:
                if not self._send(connected, self._held[0]):
                    self._dropped(len(self._held[0]))
                self._held_bytes -= len(self._held.popleft())
        except (OSError, Failure) as error:
            self._fail(error)  # what has met it stays first
            return
        self._socket = connected
        self._tell_none_held()

    def _send(self, connected: DatagramSocket, payload: bytes) -> bool:
        self._check()
        self._active = anyio.current_time()
        sent = connected.send(payload)
        if sent and self._others:
            self._tried.append(payload)
            if len(self._tried) > MAX_TRIED or sum(map(len, self._tried)) > MAX_TRIED_BYTES:
                self._settle()
        return sent

    def _fail(self, error: OSError | Failure) -> None:
        self._failed = error
        self._socket = None
        if self._wait is not None:
            self._wait.cancel()  # the kernel tells an error once, and may have told it to a sender

    def _may_go_on(self) -> bool:
        return self._failed is None or (isinstance(self._failed, OSError) and len(self._others) > 0)

    def _next_way(self, failed: OSError | Failure) -> tuple[DatagramSocket, Sequence[Address]]:
        """Turn to the next address with what this one has not taken; raise why the flow has failed when there is none."""
        if isinstance(failed, Failure):
            raise failed
        failure = failure_of([failed], self._speaker)
        if not self._others:
            raise failure from failed
        allowed = self._ask(self._others)
        try:
            way = connect_datagrams(allowed, self._target.port, self._speaker)
        except Failure:
            raise failure from failed  # which says more about the target
        self._held.extendleft(reversed(self._tried))
        self._held_bytes += sum(map(len, self._tried))
        self._tried.clear()
        return way

    def _settle(self) -> None:
        """This address is the one: it has answered, or taken enough."""
        self._others = ()
        self._tried.clear()

    # receiving

    async def _receive(self, connected: DatagramSocket) -> None:
        """Deliver what comes, until the flow has been idle or has failed."""
        idle = idle_time(self._target.port)
        try:
            while self._failed is None and anyio.current_time() < self._active + idle:
                with anyio.move_on_at(self._active + idle) as self._wait:
                    await connected.on_readable(lambda: self._receive_burst(connected))
        except OSError as error:
            self._fail(error)

    def _receive_burst(self, connected: DatagramSocket) -> bool | None:
        """Deliver what is here, a burst at most. True when the flow has failed."""
        burst: list[bytes] = []
        try:
            while len(burst) < BURST and (payload := connected.receive()) is not None:
                burst.append(payload)
        finally:  # an error is told behind what came before it
            if burst:
                self._active = anyio.current_time()
                if self._others:
                    self._settle()
                self._deliver(burst)
        return None if self._failed is None else True


async def flush_all(flows: Iterable[TargetFlow]) -> None:
    """Wait until none of `flows` holds anything, PARTING seconds at most."""
    with anyio.move_on_after(PARTING):
        for flow in flows:
            await flow.flush()

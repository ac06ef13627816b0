"""One UDP flow at the end that has the target's socket: the agent, and the proxy for destinations that it reaches itself.

Source: docs/spec/records.md (flows), docs/spec/policy.md section 4.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

import anyio
import anyio.lowlevel

from tuunel.address import HostPort
from tuunel.datagrams import DatagramSocket
from tuunel.dial import Allow, dial_datagram, failure_of
from tuunel.errors import Speaker

IDLE_TIME: Final = 60.0  #: seconds without a datagram either way after which a flow ends
DNS_IDLE_TIME: Final = 10.0  #: the same for DNS, where a question has one answer and a client may use a new port for each
DNS_PORT: Final = 53
BURST: Final = 32  #: datagrams taken from the target in one go: a target that floods leaves the event loop to others
MAX_HELD: Final = 64  #: datagrams held until the socket is there: what an eager client sends while a name is looked up
MAX_HELD_BYTES: Final = 128 * 1024  #: and their bytes; room for one of the largest


def idle_time(port: int) -> float:
    """Seconds without a datagram either way after which a flow to this port ends."""
    return DNS_IDLE_TIME if port == DNS_PORT else IDLE_TIME


class TargetFlow:
    """Datagrams to and from one target, through a socket that is connected to one checked address of it.

    `allow` chooses among the resolved addresses as in `dial`; `deliver` is called with each datagram of the target and must not
    wait or raise. `speaker` is in whose name failures speak.
    """

    def __init__(self, target: HostPort, *, allow: Allow, speaker: Speaker, deliver: Callable[[bytes], object]) -> None:
        self._target = target
        self._allow = allow
        self._speaker = speaker
        self._deliver = deliver
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._socket: DatagramSocket | None = None
        self._over = False
        self._active = 0.0
        self._failed: OSError | None = None  # what a send was told, and the receiver will not be
        self._wait: anyio.CancelScope | None = None

    def send(self, payload: bytes) -> bool:
        """Send a datagram to the target, or hold it until there is a socket. False: it is lost. Never waits and never raises."""
        if self._over or self._failed is not None:
            return False
        if self._socket is None:
            return self._hold(payload)
        return self._send(self._socket, payload)

    async def run(self, opened: Callable[[HostPort], object]) -> None:
        """Dial the target, call `opened` with the socket's own address, and deliver what comes until the flow has been idle.

        Raises Failure: why the target cannot be reached, or CONNECTION_REFUSED when it said so later. However it ends, the socket is
        closed and `send` loses everything from then on. Call it once.
        """
        try:
            connected = await dial_datagram(self._target, allow=self._allow, speaker=self._speaker)
            try:
                opened(connected.local)
                self._use(connected)
                await self._receive(connected)
            finally:
                connected.close()
        finally:
            self._over = True
            self._held.clear()

    def _hold(self, payload: bytes) -> bool:
        if len(self._held) >= MAX_HELD or self._held_bytes + len(payload) > MAX_HELD_BYTES:
            return False
        self._held.append(payload)
        self._held_bytes += len(payload)
        return True

    def _use(self, connected: DatagramSocket) -> None:
        self._socket = connected
        self._active = anyio.current_time()
        while self._held and self._failed is None:
            self._send(connected, self._held.popleft())

    def _send(self, connected: DatagramSocket, payload: bytes) -> bool:
        self._active = anyio.current_time()
        try:
            return connected.send(payload)
        except OSError as error:
            self._failed = error
            if self._wait is not None:
                self._wait.cancel()  # the kernel tells an error once, and has told it here
            return False

    async def _receive(self, connected: DatagramSocket) -> None:
        idle = idle_time(self._target.port)
        try:
            while self._failed is None and anyio.current_time() < self._active + idle:
                if self._receive_burst(connected):
                    await anyio.lowlevel.checkpoint()
                else:
                    with anyio.move_on_at(self._active + idle) as self._wait:
                        await connected.wait_readable()
        except OSError as error:
            self._failed = error
        if self._failed is not None:
            raise failure_of([self._failed], self._speaker) from self._failed

    def _receive_burst(self, connected: DatagramSocket) -> bool:
        """Deliver what is here, a burst at most. False when there was nothing."""
        for received in range(BURST):
            payload = connected.receive()
            if payload is None:
                return received > 0
            self._active = anyio.current_time()
            self._deliver(payload)
        return True

"""`tuunel bench`: how fast the way to a device is, up and down, and how long a round trip takes while it is idle and while it is busy."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Literal

import anyio
import anyio.lowlevel

from tuunel.buffers import MAX_BODY, BufferPool
from tuunel.devices import Device
from tuunel.e2e.service import Measure, Service, Taken
from tuunel.errors import Failure, Reason
from tuunel.identity import IdentityKey
from tuunel.inflow import Inflow
from tuunel.pool import TunnelPool
from tuunel.probe.way import RELAY, ask_service, by_each_relay, faults_told
from tuunel.rawstream import send_bytes
from tuunel.settings import Home
from tuunel.tunnel import Tunnel

IDLE_PINGS: Final = 10
PING_INTERVAL: Final = 0.1  #: seconds between two PINGs
PARTING: Final = 2.0  #: seconds that both ends have to end a measurement cleanly
PATIENCE: Final = 10.0  #: seconds beyond those of the measurement in which its answer must come
MICROSECONDS: Final = 1_000_000

Phase = Literal["idle", "up", "down"]


@dataclass(frozen=True, slots=True)
class Rate:
    """Bytes that the far end of a measurement has received, and in how many seconds."""

    size: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Bytes a second."""
        return self.size / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class PathResult:
    """What one path has shown. Round trips are in seconds, those of `busy` beside `up` and `down`. `failure` says why there is no more."""

    path: str
    relay: str
    idle: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    up: Rate | None = None
    down: Rate | None = None
    failure: Failure | None = None


#: Hears of what is being measured over which path: its phase, the seconds since that began, and the bytes so far.
Progress = Callable[[PathResult, Phase, float, int], None]


class Bench:
    """Measures `device` over each path there is, for `seconds` in each direction."""

    def __init__(self, home: Home, device: Device, seconds: float, progress: Progress) -> None:
        self._device = device
        self._seconds = seconds
        self._progress = progress
        self._identity = IdentityKey.load_or_create(home.identity_key)
        self._buffers = BufferPool()

    async def run(self) -> list[PathResult]:
        """Measure; the paths in the order in which tunnels would try them. A path that fails says so in its result."""
        results = []
        async with TunnelPool(self._identity, self._buffers, warm=0) as tunnels:
            for device in by_each_relay(self._device):
                result = PathResult(RELAY, str(device.relays[0].address))
                results.append(result)
                try:
                    await self._measure(tunnels, device, result)
                except Failure as failure:
                    result.failure = failure
        return results

    async def _measure(self, tunnels: TunnelPool, device: Device, result: PathResult) -> None:
        quiet = await tunnels.open(device)
        try:
            await self._ping_idle(quiet, result)
            async with anyio.create_task_group() as beside:
                beside.start_soon(self._ping_on, quiet, result)
                failure = await self._measure_both(tunnels, device, result)
                beside.cancel_scope.cancel()
        finally:
            quiet.reset()
        if result.up is None:
            result.busy.clear()  # nothing has been busy
        if failure is not None:  # raised here, and not inside the group: a lone one, not a group of one
            raise failure

    async def _measure_both(self, tunnels: TunnelPool, device: Device, result: PathResult) -> Failure | None:
        try:
            result.up = await self._run(tunnels, device, result, Service.SINK)
            result.down = await self._run(tunnels, device, result, Service.SOURCE)
        except Failure as failure:
            return failure
        return None

    async def _ping_idle(self, quiet: Tunnel, result: PathResult) -> None:
        started = time.monotonic()
        with anyio.move_on_after(PATIENCE), faults_told(quiet):
            for _ in range(IDLE_PINGS):
                self._progress(result, "idle", time.monotonic() - started, 0)
                result.idle.append(await quiet.records.ping())
                await anyio.sleep(PING_INTERVAL)
        if not result.idle:
            raise Failure(Reason.TUNNEL_LOST, detail=f"the agent did not answer within {PATIENCE:.0f} s")

    async def _ping_on(self, quiet: Tunnel, result: PathResult) -> None:
        with suppress(Failure), faults_told(quiet):
            while True:
                result.busy.append(await quiet.records.ping())
                await anyio.sleep(PING_INTERVAL)

    async def _run(self, tunnels: TunnelPool, device: Device, result: PathResult, service: Service) -> Rate:
        tunnel = await tunnels.open(device)
        try:
            await ask_service(tunnel, service)
            with faults_told(tunnel), _answered_within(self._seconds + PATIENCE):
                await send_bytes(tunnel, self._buffers, Measure(round(self._seconds * 1000)).encode())
                return await (self._upload if service is Service.SINK else self._download)(tunnel, result)
        finally:
            tunnel.reset()

    async def _upload(self, tunnel: Tunnel, result: PathResult) -> Rate:
        """Send until the agent says what it has received: what waits in buffers on the way counts for nothing."""
        answer = Inflow(tunnel, self._buffers, Taken.LENGTH)
        lost: list[Exception] = []

        async def send() -> None:
            zeros = memoryview(bytearray(1 + MAX_BODY))
            started, sent = time.monotonic(), 0
            try:
                while not answer.whole:
                    n = tunnel.chunk_limit
                    if rest := tunnel.write_now(zeros, n):
                        await rest()
                    sent += n
                    self._progress(result, "up", time.monotonic() - started, sent)
                    await anyio.lowlevel.checkpoint()
                await tunnel.write_eof()
            except (OSError, anyio.ClosedResourceError) as error:
                lost.append(error)  # its reader is told, too, and says so

        async with anyio.create_task_group() as sending:
            sending.start_soon(send)
            try:
                while not (answer.whole or answer.ended):
                    await answer.step()
            except (OSError, anyio.ClosedResourceError) as error:
                lost.append(error)
            sending.cancel_scope.deadline = anyio.current_time() + PARTING
        if not answer.whole:
            raise lost[0] if lost else ConnectionResetError("the agent ended the measurement without an answer")
        taken = Taken.decode(answer.head)
        await self._part(tunnel, answer)
        return Rate(taken.size, taken.microseconds / MICROSECONDS)

    async def _download(self, tunnel: Tunnel, result: PathResult) -> Rate:
        await tunnel.write_eof()
        inflow = Inflow(tunnel, self._buffers, 0)
        while not (inflow.size or inflow.ended):
            await inflow.step()
        began = inflow.size  # its time is not known: the clock starts behind it
        started = now = time.monotonic()
        while not inflow.ended and now < started + self._seconds:
            before = inflow.size
            await inflow.step()
            if inflow.size > before:  # the end is no byte, and may have come late
                now = time.monotonic()
                self._progress(result, "down", now - started, inflow.size)
        rate = Rate(inflow.size - began, now - started)
        await self._part(tunnel, inflow)
        return rate

    async def _part(self, tunnel: Tunnel, inflow: Inflow) -> None:
        """End cleanly where that is soon done, so that nobody sees a reset who need not."""
        with suppress(OSError, anyio.ClosedResourceError), anyio.move_on_after(PARTING):
            while not inflow.ended:
                await inflow.step()
            await tunnel.aclose()


@contextmanager
def _answered_within(seconds: float) -> Iterator[None]:
    with anyio.move_on_after(seconds) as waiting:
        yield
    if waiting.cancelled_caught:
        raise Failure(Reason.TUNNEL_LOST, detail=f"the measurement was not answered within {seconds:.0f} s")

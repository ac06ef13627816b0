"""The way to a device by one relay, opened step by step: what those share who measure it.

Source: docs/spec/services.md.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import anyio

from tuunel.buffers import BufferPool
from tuunel.devices import Device
from tuunel.e2e.service import QUESTION, RelayRtt, Service
from tuunel.e2e.wire import Command, Target
from tuunel.errors import Failure, Reason, RemoteProtocolError, Speaker
from tuunel.inflow import Inflow
from tuunel.rawstream import send_bytes
from tuunel.tunnel import Tunnel

RELAY: Final = "relay"  #: the path of a tunnel that a relay pipes
SERVICE_PATIENCE: Final = 5.0  #: seconds for an agent's answer to a request that makes it dial nothing


@dataclass(frozen=True, slots=True)
class Figures:
    """What a number of round trips have in common, in seconds; `mdev` is their standard deviation, as ping calls it."""

    min: float
    avg: float
    max: float
    mdev: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Figures | None":
        """The figures of `samples`; None when there are none."""
        if not samples:
            return None
        mean = math.fsum(samples) / len(samples)
        deviation = math.sqrt(math.fsum((sample - mean) ** 2 for sample in samples) / len(samples))
        return cls(min(samples), mean, max(samples), deviation)


def by_each_relay(device: Device) -> list[Device]:
    """`device` once for each of its relays, with that one alone."""
    return [replace(device, relays=(relay,)) for relay in device.relays]


async def ask_service(tunnel: Tunnel, service: Service) -> None:
    """Ask for a service of the agent on a tunnel that waits for its request.

    Failure: UNSUPPORTED when the agent is older than its services (the tunnel is as it was then), or what the agent answers.
    """
    if Command.SERVICE not in tunnel.peer_commands:
        older = Failure(Reason.UNSUPPORTED, Speaker.AGENT, "its tuunel is older than this one, and cannot tell")
        older.advice = "bring tuunel up to date on the device"
        raise older
    with faults_told(tunnel):
        await tunnel.request(Target(Command.SERVICE, service, 0))
        await tunnel.answer(SERVICE_PATIENCE)


async def ask_relay_rtt(tunnel: Tunnel, buffers: BufferPool) -> float | None:
    """Ask a tunnel of the service RELAY_RTT for the agent's round trip to its relay, in seconds; None when the agent has none."""
    answer = Inflow(tunnel, buffers, RelayRtt.LENGTH)
    with faults_told(tunnel):
        await send_bytes(tunnel, buffers, QUESTION)
        while not answer.whole and not answer.ended:
            await answer.step()
        told = RelayRtt.decode(answer.head).microseconds
    return None if told == RelayRtt.UNKNOWN else told / 1_000_000


@contextmanager
def faults_told(tunnel: Tunnel) -> Iterator[None]:
    """Tell as Failure(TUNNEL_LOST) what goes wrong with a tunnel while the block runs."""
    try:
        yield
    except (OSError, anyio.ClosedResourceError, RemoteProtocolError) as error:
        raise Failure(Reason.TUNNEL_LOST, detail=tunnel.cut_reason or str(error)) from error

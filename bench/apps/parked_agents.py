"""Agents that wait at a relay, by the thousand, in one process: each with a key of its own, a CONTROL connection and one READY.

They shake hands, ping and offer keys by the code of `tuunel agent`; what they lack is what only a request would wake. The relay must enrol
without a link. With addresses of this machine they come from these, in turns.

Usage: parked_agents LINK [ADDRESS...]. A JSON line in, `{"count"}`; a JSON line out, `{"seconds", "lost"}`, once so many agents wait in
all: how long it took, and how many times in all one of them has lost its relay. They go with it.
"""

import gc
import json
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import cycle
from typing import Any

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from tuunel import networkwatch
from tuunel.cli.running import GARBAGE
from tuunel.descriptors import raise_limit
from tuunel.devices import KnownRelay
from tuunel.e2e.offer import make_offer
from tuunel.errors import Failure
from tuunel.events import Event, RelayStateChanged
from tuunel.identity import IdentityKey
from tuunel.links import parse_link
from tuunel.relay.client import HopConnection, connect, fresh_key
from tuunel.relay.handshake import Register
from tuunel.relay.presence import Presence
from tuunel.relay.wire import Message, Offer, Params, Ping, Pong, Purpose, Role

_AT_ONCE = 32  # that shake hands: far fewer than the relay lets one address begin
_NETWORK_LOOK = 60.0  # seconds: a thousand programs that each look every second do so on a thousand machines


class Fleet:
    """The agents. `tasks` runs them."""

    def __init__(self, relay: KnownRelay, tasks: TaskGroup) -> None:
        self._relay = relay
        self._tasks = tasks
        self._slots = anyio.Semaphore(_AT_ONCE)
        self._size = 0
        self._parked: set[int] = set()
        self._changed = anyio.Event()
        self.lost = 0  #: how many times an agent has lost its relay

    async def grow(self, size: int) -> float:
        """Return how long it took until `size` agents wait in all."""
        start = time.monotonic()
        while self._size < size:
            self._size += 1
            self._tasks.start_soon(self._be_agent, self._size)
        while len(self._parked) < size:
            self._changed = anyio.Event()
            await self._changed.wait()
        return time.monotonic() - start

    async def _be_agent(self, number: int) -> None:
        identity, params = IdentityKey.generate(), Params(Role.AGENT, number.to_bytes(16))
        await self._slots.acquire()
        presence = Presence(
            self._relay,
            identity,
            params,
            register=Register(None, "benchmark"),
            while_online=lambda control: self._park(number, identity, params),
            on_message=_ignore,
            emit=self._note,
        )
        await presence.run()

    def _note(self, event: Event) -> None:
        if isinstance(event, RelayStateChanged) and event.state != "offline":
            return
        self.lost += isinstance(event, RelayStateChanged)
        print(event, file=sys.stderr, flush=True)

    async def _park(self, number: int, identity: IdentityKey, params: Params) -> None:
        ready = await self._connect(identity, params)
        if number not in self._parked:
            self._slots.release()
            self._parked.add(number)
        self._changed.set()
        while True:
            message = await ready.receive()
            if isinstance(message, Ping):
                await ready.send(Pong(message.nonce))

    async def _connect(self, identity: IdentityKey, params: Params) -> HopConnection:
        """A READY connection, as often as it takes: on a busy machine a handshake may last too long."""
        while True:
            offer, _ = make_offer(identity, self._relay.id, int(time.time()), ephemeral=fresh_key(), kem=MLKEM768PrivateKey.generate())
            try:
                return await connect(self._relay, identity, purpose=Purpose.READY, params=params, first=[Offer(offer)])
            except Failure as failure:
                print(f"a READY connection: {failure}", file=sys.stderr, flush=True)


async def _ignore(message: Message) -> None:
    """Nothing that a relay says to an agent of this program asks for an answer."""


def leave_by(addresses: Sequence[str]) -> None:
    """Have the sockets that this process connects leave by these addresses, in turns. tuunel itself leaves it to the kernel."""
    turns = cycle(addresses)

    class Bound(socket.socket):
        def connect(self, address: Any, /) -> None:
            self.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
            self.bind((next(turns), 0))
            super().connect(address)

    socket.socket = Bound  # type: ignore[misc]


async def main(link: str) -> None:
    """Do as told until stdin ends."""
    parsed = parse_link(link)
    async with anyio.create_task_group() as tasks:
        fleet = Fleet(KnownRelay(parsed.pin, parsed.address, enrolled=False), tasks)
        while line := await to_thread.run_sync(sys.stdin.readline):
            seconds = await fleet.grow(json.loads(line)["count"])
            print(json.dumps({"seconds": seconds, "lost": fleet.lost}), flush=True)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    raise_limit()
    gc.set_threshold(GARBAGE, 5, 5)  # as a role does
    networkwatch.LOOK = _NETWORK_LOOK  # type: ignore[misc]
    if sys.argv[2:]:
        leave_by(sys.argv[2:])
    anyio.run(partial(main, sys.argv[1]))

"""What abuses a relay, as processes of their own: run with a kind of flood, the relay's link, and the addresses to come from, in turns.

`hello` has the relay do its share of the first step of the handshake, the expensive one, and goes; `ready` is an enrolled agent that opens
twice as many READY connections as it may park, drops them all, and begins again. Says `{"under_way": true}` when the relay has given in for
the first time. Runs until stdin ends, and then says how often it has: `{"served", "refused"}`.
"""

import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle

import anyio
from anyio import to_thread
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from bench.apps.parked_agents import leave_by
from tuunel.devices import KnownRelay
from tuunel.e2e.offer import make_offer
from tuunel.errors import Failure
from tuunel.events import Event
from tuunel.identity import IdentityKey
from tuunel.links import parse_link
from tuunel.relay.client import HopConnection, connect, fresh_key
from tuunel.relay.handshake import DeviceHandshake, Register
from tuunel.relay.presence import Presence
from tuunel.relay.registry import MAX_PARKED
from tuunel.relay.wire import Message, Offer, Params, Purpose, Role

THREADS = 8


def note(counts: Counter[str], what: str) -> None:
    """Count an attempt, and say so at the first that was served."""
    counts[what] += 1
    if what == "served" and counts[what] == 1:
        print(json.dumps({"under_way": True}), flush=True)


def flood_of_hellos(relay: KnownRelay, addresses: Sequence[str]) -> Counter[str]:
    """M1s that are right, each from the next address, again and again: the same one, for the relay has no reason to know it."""
    m1 = DeviceHandshake(
        pin=relay.id,
        identity=IdentityKey.generate(),
        register=None,
        purpose=Purpose.DIAL,
        params=Params(Role.FORWARD, bytes(16)),
        random=os.urandom,
        ephemeral=fresh_key,
        now=int(time.time()),
    ).data_to_send()
    over, counts, turns, lock = threading.Event(), Counter[str](), cycle(addresses), threading.Lock()

    def ask() -> None:
        while not over.is_set():
            with lock:
                source = next(turns)
            answer = b""
            with suppress(OSError), socket.create_connection((relay.address.host, relay.address.port), 5, (source, 0)) as sock:
                sock.sendall(m1)
                answer = sock.recv(65536)
            with lock:
                note(counts, "served" if answer else "refused")

    threads = [threading.Thread(target=ask) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    return counts


async def flood_of_ready_connections(relay: KnownRelay) -> Counter[str]:
    """An agent with all the READY connections that it may have, and with more, and with none, again and again."""
    identity, params = IdentityKey.generate(), Params(Role.AGENT, os.urandom(16))
    offer, _ = make_offer(identity, relay.id, int(time.time()), ephemeral=fresh_key(), kem=MLKEM768PrivateKey.generate())
    counts = Counter[str]()

    async def open_one(opened: list[HopConnection]) -> None:
        try:
            opened.append(await connect(relay, identity, purpose=Purpose.READY, params=params, first=[Offer(offer)]))
            note(counts, "served")
        except Failure:
            note(counts, "refused")

    async def flood(_: HopConnection) -> None:
        while True:
            opened: list[HopConnection] = []
            async with anyio.create_task_group() as tasks:
                for _ in range(2 * MAX_PARKED):
                    tasks.start_soon(open_one, opened)
            for each in opened:
                each.close()

    register = Register(None, "flood")
    presence = Presence(relay, identity, params, register=register, while_online=flood, on_message=_ignore, emit=_ignore_event)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(presence.run)
        await to_thread.run_sync(sys.stdin.read)
        tasks.cancel_scope.cancel()
    return counts


async def _ignore(_: Message) -> None:
    """An abuser heeds nothing."""


def _ignore_event(_: Event) -> None:
    """Nobody watches an abuser."""


def main(kind: str, link: str, *addresses: str) -> None:
    """Flood until stdin ends."""
    parsed = parse_link(link)
    relay = KnownRelay(parsed.pin, parsed.address, enrolled=False)
    if kind == "hello":
        counts = flood_of_hellos(relay, addresses)
    else:
        leave_by(addresses)
        counts = anyio.run(flood_of_ready_connections, relay)
    print(json.dumps({"served": counts["served"], "refused": counts["refused"]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

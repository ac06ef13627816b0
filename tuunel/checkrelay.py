"""Is each known relay there, is it the right one, does it know this machine, and do the clocks agree? Source: docs/reference/doctor.md."""

import os
import time
from typing import Final

import anyio

from tuunel.devices import Devices, KnownRelay
from tuunel.dial import resolve
from tuunel.errors import Failure, Reason, StateError, TuunelError
from tuunel.finding import Finding, failed, ok, warning, wrong
from tuunel.identity import IdentityKey
from tuunel.relay.certificates import NOT_VALID_NOW
from tuunel.relay.client import connect
from tuunel.relay.wire import Params, Purpose, Role
from tuunel.settings import Home

RESOLVE_TIMEOUT: Final = 5.0  # seconds: a name server that is there answers within one
CLOCK_WARNING: Final = 60  # seconds: more than any clock that is set over the network is off
CLOCK_WRONG: Final = 600  # an invite lives for 15 minutes: beyond this it ends before its time, or after
SET_CLOCK: Final = "set the clock that is wrong; over the network: timedatectl set-ntp true"


async def check_relays(home: Home) -> list[Finding]:
    """Ask every known relay, all at the same time; a relay that is silent takes 15 seconds at most."""
    try:
        relays = Devices(home.devices_file).relays()
    except StateError:
        return []  # the file's own check tells
    if not relays:
        return [ok("relay", "none is known here yet: 'tuunel agent' and 'tuunel pair' make one known")]
    try:
        identity = IdentityKey.load(home.identity_key)
    except StateError as error:
        return [wrong("relay", "not asked: this machine has no usable key to prove itself with", error.advice)]
    found: list[list[Finding]] = [[] for _ in relays]

    async def ask(number: int, relay: KnownRelay) -> None:
        found[number] = await _check_relay(relay, identity)

    async with anyio.create_task_group() as tasks:
        for number, relay in enumerate(relays):
            tasks.start_soon(ask, number, relay)
    return [finding for findings in found for finding in findings]


async def _check_relay(relay: KnownRelay, identity: IdentityKey) -> list[Finding]:
    unknown = await _check_name(relay)
    if unknown is not None:
        return [unknown]
    begun = time.monotonic()
    try:
        connection = await connect(relay, identity, purpose=Purpose.DIAL, params=Params(Role.FORWARD, os.urandom(16)))
    except Failure as failure:
        return [_explained(relay, failure)]
    took = time.monotonic() - begun
    now = time.time()
    connection.close()
    reached = ok("relay", f"{relay.address}: reached in {took * 1000:.0f} ms; it is the one that is pinned, and knows this machine")
    return [reached, compare_clocks(relay, now, connection.welcome.relay_time)]


async def _check_name(relay: KnownRelay) -> Finding | None:
    try:
        with anyio.fail_after(RESOLVE_TIMEOUT):
            await resolve(relay.address.host, relay.address.port)
    except TimeoutError:
        return wrong("relay", f"{relay.address}: no name server answers", "check this machine's network and its name server")
    except Failure as failure:
        return wrong("relay", f"{relay.address}: {failure}", "check this machine's name server, and that the relay still has this name")
    return None


def _explained(relay: KnownRelay, failure: Failure) -> Finding:
    if failure.reason is Reason.DEVICE_UNKNOWN and not relay.enrolled:
        return ok("relay", f"{relay.address}: reached; it is the one that is pinned; this machine is not enrolled there")
    what = str(failure) if str(relay.address) in str(failure) else f"{relay.address}: {failure}"
    if failure.reason is Reason.RELAY_UNTRUSTED and failure.detail == NOT_VALID_NOW:
        return wrong("clock", what, SET_CLOCK)
    return failed("relay", TuunelError(what, failure.advice))


def compare_clocks(relay: KnownRelay, now: float, relay_time: int) -> Finding:
    """What the difference between this machine's clock and the relay's means: invites and accesses end by the clock."""
    off = round(now - relay_time)
    if abs(off) < CLOCK_WARNING:
        return ok("clock", f"agrees with {relay.address}")
    what = f"this machine's clock is {abs(off)} s {'ahead of' if off > 0 else 'behind'} that of {relay.address}"
    return (
        wrong("clock", f"{what}: invites and accesses end at the wrong time", SET_CLOCK)
        if abs(off) >= CLOCK_WRONG
        else warning("clock", what, SET_CLOCK)
    )

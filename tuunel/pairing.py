"""How this machine comes to know a device: by an invite, or by its ID alone. Source: docs/spec/policy.md (invites)."""

import os
from functools import partial

from anyio import to_thread

from tuunel.buffers import BufferPool
from tuunel.devices import Device, Devices, KnownRelay
from tuunel.identity import DeviceID, IdentityKey
from tuunel.links import Invite, RelayLink
from tuunel.pool import TunnelPool
from tuunel.relay.client import connect, device_label
from tuunel.relay.handshake import Register
from tuunel.relay.wire import Params, Purpose, Role
from tuunel.settings import Home


async def pair(home: Home, invite: Invite, name: str | None) -> Device:
    """Enrol at the invite's relay if needed, prove the invite to the agent, and remember the device.

    `name` None takes what the agent's machine calls itself. The agent has proven its identity and granted access when this
    returns. Raises Failure, UsageError for a name that cannot be had; nothing is remembered then, but an enrolment.
    """
    home.ensure()
    identity = IdentityKey.load_or_create(home.identity_key)
    devices = Devices(home.devices_file)
    if name is not None:
        devices.check_free(name, invite.device)
    relay = await _enrol(devices, identity, invite.relay)
    async with TunnelPool(identity, BufferPool(), warm=0) as tunnels:
        label = await tunnels.prove(Device(name or "", invite.device, (relay,)), invite)
    alias = name if name is not None else devices.free_alias(label)
    return await to_thread.run_sync(devices.add, alias, invite.device, relay.id)


async def add_device(home: Home, device: DeviceID, relay: RelayLink, name: str) -> Device:
    """Enrol at `relay` if needed and remember a device whose agent admits this machine without an invite. Raises as `pair`."""
    home.ensure()
    devices = Devices(home.devices_file)
    devices.check_free(name, device)
    known = await _enrol(devices, IdentityKey.load_or_create(home.identity_key), relay)
    return await to_thread.run_sync(devices.add, name, device, known.id)


async def _enrol(devices: Devices, identity: IdentityKey, link: RelayLink) -> KnownRelay:
    known = next((relay for relay in devices.relays() if relay.id == link.pin and relay.enrolled), None)
    relay = KnownRelay(link.pin, link.address, enrolled=True)
    # Registers even when enrolled before, where there is a token: its agent then sponsors this machine too, so that no other agent's
    # revoke puts it out. The relay is asked in any case: an invite proven at a relay that has forgotten this machine would be lost.
    register = Register(link.enrol, device_label()) if link.enrol is not None or known is None else None
    connection = await connect(relay, identity, purpose=Purpose.DIAL, params=Params(Role.FORWARD, os.urandom(16)), register=register)
    connection.close()
    await to_thread.run_sync(partial(devices.remember_relay, link, enrolled=True))
    return relay

"""The reverse proxy's role: present at its relay, it lets in whom its grants admit, and connects them to allowed targets.

Source: docs/spec/tunnel.md, docs/spec/policy.md.
"""

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from tuunel import control
from tuunel.descriptors import raise_limit
from tuunel.devices import Devices, KnownRelay
from tuunel.dial import resolve
from tuunel.e2e.offer import OfferSecrets, make_offer
from tuunel.errors import Failure, Reason, UsageError
from tuunel.events import DeviceSeen, Emit, Measures, Notice, Ready
from tuunel.grants import DEFAULT_TARGETS, Grants
from tuunel.identity import DeviceID, IdentityKey
from tuunel.interfaces import Interfaces
from tuunel.links import Invite, RelayLink
from tuunel.listeners import KnownListeners, listeners_stamp
from tuunel.liveness import watch_tunnels
from tuunel.oversight import Oversight
from tuunel.policy import Address, Surroundings
from tuunel.relay.client import HopConnection, device_label, fresh_key
from tuunel.relay.handshake import Register
from tuunel.relay.presence import Presence
from tuunel.relay.readypool import ReadyPool
from tuunel.relay.wire import Demand, DropToken, Message, Mint, Minted, Params, Role, Unenrol, admission_records, token_hash
from tuunel.relay.wire import Notice as RelayNotice
from tuunel.reverse import ReverseTunnels
from tuunel.settings import Home
from tuunel.statefile import locked, read_json, write_json

INVITE_LIFETIME: Final = 15 * 60  #: seconds in which an invite must be used; how long the access lasts is another matter
ANSWER_TIMEOUT: Final = 10.0  #: seconds for the relay's answer to MINT
AGENT_FILE_VERSION: Final = 1


class Agent:
    """`tuunel agent`. Constructing it reads and creates state (StateError, UsageError); `run` serves until `stop` or cancellation.

    `link` is needed at the first start only. `allow` admits devices without pairing; `admit_enrolled` admits every device that is
    enrolled at the relay, so that the relay's operator decides who may come in.
    """

    def __init__(self, home: Home, *, link: RelayLink | None, allow: Sequence[DeviceID], admit_enrolled: bool, emit: Emit) -> None:
        home.ensure()
        self._home = home
        self._run_dir = home.run_dir
        self._listeners = KnownListeners(home.run_dir)
        self._emit = emit
        self._identity = IdentityKey.load_or_create(home.identity_key)
        self._grants = Grants(home.grants_file, allow, admit_enrolled=admit_enrolled)
        self._grants.next_expiry(int(time.time()))  # a damaged book is told at the start, and not to some client later
        self._admits_without_pairing = bool(allow) or admit_enrolled
        self._admit_enrolled = admit_enrolled
        self._devices = Devices(home.devices_file)
        self._relay = self._choose_relay(link)
        self._link = link
        self._params = Params(Role.AGENT, os.urandom(16))
        self._tunnels = ReverseTunnels(
            self._identity,
            self._grants,
            label=device_label(),
            surroundings=self._surroundings,
            stamp=self._stamp,
            changed=self._let_in,
            relay_rtt=self._relay_rtt,
            emit=emit,
        )
        self._interfaces = Interfaces()
        self._services = anyio.CancelScope()
        self._presence: Presence | None = None
        self._connection: HopConnection | None = None
        self._ready: ReadyPool[OfferSecrets] | None = None
        self._minting: dict[int, tuple[anyio.Event, list[Minted]]] = {}
        self._invite_tokens: dict[bytes, bytes] = {}
        self._relay_endpoints: set[tuple[Address, int]] = set()
        self._announced = False
        self._failure: Failure | None = None

    async def run(self) -> None:
        """Serve. Raises Failure when the relay says that trying again cannot help, ListenError when an agent already runs here."""
        raise_limit()
        async with anyio.create_task_group() as background:
            background.start_soon(watch_tunnels, self._tunnels.live, background)
            background.start_soon(self._tunnels.watch_grants)
            async with anyio.create_task_group() as tunnels:
                with self._services:
                    await self._serve(tunnels)
                self._tunnels.drop_idle()
            background.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Take no more tunnels; `run` returns when those that carry something have finished."""
        self._services.cancel()

    async def measures(self) -> Measures:
        """What it counts. StateError when the grants are unusable."""
        now = int(time.time())
        return {
            "agent_tunnels": len(self._tunnels.live),
            "agent_ready_connections": len(self._ready) if self._ready is not None else 0,
            "agent_clients": len(self._grants.grants(now)),
            "agent_open_invites": len(self._grants.open_invites(now)),
        }

    async def reload(self, allow: Sequence[DeviceID], admit_enrolled: bool) -> None:  # noqa: FBT001 - as the command line gives them
        """Admit these from now on, and tell the relay what the grants file says. A device that may no longer come in is cut off.

        StateError when the file is unusable: it then admits nobody.
        """
        self._grants.admit_without_pairing(allow, enrolled=admit_enrolled)
        self._admit_enrolled = admit_enrolled
        self._grants.grants(int(time.time()))
        await self._grants_changed()

    def kill(self, number: int) -> None:
        """End a connection because a person wants it. UsageError when there is none of this number."""
        self._tunnels.ledger.kill(number)

    async def _serve(self, tunnels: TaskGroup) -> None:
        presence = self._presence = Presence(
            self._relay,
            self._identity,
            self._params,
            register=self._registration(),
            while_online=lambda connection: self._be_online(connection, tunnels),
            on_message=self._handle,
            emit=self._emit,
        )
        async with anyio.create_task_group() as services:
            await services.start(control.serve, self._home.socket("agent"), self._commands())
            try:
                await presence.run()
            except Failure as failure:
                self._failure = failure
                services.cancel_scope.cancel()

    # the relay

    def _choose_relay(self, link: RelayLink | None) -> KnownRelay:
        """The relay of the link, else that of the last start, else the only one where this machine is enrolled."""
        path = self._home.root / "agent.json"
        if link is not None:
            self._devices.remember_relay(link, enrolled=False)
            _note_choice(path, link.pin)
        chosen = read_json(path, AGENT_FILE_VERSION)
        if chosen is None:
            fitting = [relay for relay in self._devices.relays() if relay.enrolled]
        else:
            fitting = [relay for relay in self._devices.relays() if relay.id.hex() == chosen.get("relay")]
        if len(fitting) != 1:
            raise _no_relay(fitting)
        if chosen is None:
            _note_choice(path, fitting[0].id)
        return fitting[0]

    def _registration(self) -> Register | None:
        if self._link is not None and self._link.enrol is not None:
            return Register(self._link.enrol, device_label())
        if self._relay.enrolled:
            return None
        return Register(None, device_label())  # an open relay enrols without a token

    async def _be_online(self, connection: HopConnection, tunnels: TaskGroup) -> None:
        self._connection = connection
        if not self._relay.enrolled:
            await self._remember_enrolment()
        ready = self._ready = ReadyPool(
            self._relay,
            self._identity,
            self._params,
            make_offer=self._make_offer,
            serve=self._tunnels.serve,
            tasks=tunnels,
            emit=self._emit,
        )
        try:
            await self._learn_relay_endpoints(connection)
            await self._send_admission()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ready.run)
                await ready.waiting.wait()
                if not self._announced:
                    await self._settle()
                    self._emit(await self._ready_event(connection))
                    self._announced = True
        finally:
            self._connection = self._ready = None

    async def _remember_enrolment(self) -> None:
        link = RelayLink(self._relay.address, self._relay.id, None)
        await to_thread.run_sync(lambda: self._devices.remember_relay(link, enrolled=True))
        self._relay = KnownRelay(self._relay.id, self._relay.address, enrolled=True)

    async def _ready_event(self, connection: HopConnection) -> Ready:
        invite = None
        if not self._admits_without_pairing and not self._grants.grants(int(time.time())):
            try:
                answer = await self._make_invite({})
                invite = str(answer["invite"])
            except Failure as failure:
                self._emit(Notice(f"no invite could be made: {failure}"))
        return Ready("agent", None, None, str(self._identity.device_id), invite, self._admit_enrolled)

    async def _relay_rtt(self) -> float:
        if self._presence is None:
            raise Failure(Reason.RELAY_UNREACHABLE, detail="not yet connected")
        return await self._presence.measure()

    def _make_offer(self) -> tuple[bytes, OfferSecrets]:
        return make_offer(self._identity, self._relay.id, int(time.time()), ephemeral=fresh_key(), kem=MLKEM768PrivateKey.generate())

    async def _handle(self, message: Message) -> None:
        match message:
            case Demand(want) if self._ready is not None:
                self._ready.demand(want)
            case Minted(request) if request in self._minting:
                event, answers = self._minting[request]
                answers.append(message)
                event.set()
            case RelayNotice(reason, tunnel_id):
                self._tunnels.ledger.explain(tunnel_id, reason)
            case _:
                pass

    async def _send_admission(self) -> None:
        if self._connection is None:
            return
        admission = self._grants.admission(int(time.time()))
        records = admission_records(
            enrolled=admission.enrolled, paired=admission.paired, invites=admission.invites, revoked=admission.revoked
        )
        await self._connection.send(*records)

    async def _grants_changed(self) -> None:
        with suppress(Failure):  # offline: the whole list is sent when the relay is back
            open_ids = {invite.id for invite in self._grants.open_invites(int(time.time()))}
            for invite_id in set(self._invite_tokens) - open_ids:
                token = self._invite_tokens.pop(invite_id)
                if self._connection is not None:
                    await self._connection.send(DropToken(token_hash(token)))
            await self._send_admission()

    async def _let_in(self) -> None:
        """Tell the relay of a new grant and wait until it knows: the client's next OPEN, on a connection of its own, may be faster."""
        await self._grants_changed()
        await self._settle()

    async def _settle(self) -> None:
        """Wait until the relay knows whom to let through, if it is there."""
        if self._presence is not None:
            with suppress(Failure):
                await self._presence.settle()

    # what a target must not be

    def _surroundings(self) -> Surroundings:
        return Surroundings(networks=self._interfaces.networks(), relay=tuple(self._relay_endpoints), listeners=self._listeners.now())

    def _stamp(self) -> object:
        """What equals an earlier one only if the surroundings are the same. Asked for every datagram."""
        try:
            return listeners_stamp(self._run_dir), self._interfaces.networks(), len(self._relay_endpoints)
        except OSError:  # the interfaces are not to be had: whoever asks for the surroundings is told
            return object()

    async def _learn_relay_endpoints(self, connection: HopConnection) -> None:
        port = self._relay.address.port
        with suppress(OSError):
            self._relay_endpoints.add((ip_address(connection.stream.peer.host), port))
        with suppress(Failure):  # connected by an address that the resolver has forgotten since
            addresses = await resolve(self._relay.address.host, port)
            self._relay_endpoints.update((address, port) for address in addresses)

    # the control socket

    def _commands(self) -> Mapping[str, control.Handler]:
        oversight = Oversight("agent", self._tunnels.ledger, self._facts).handlers
        return {"invite": self._make_invite, "clients": self._list_clients, "revoke": self._revoke, **oversight}

    async def _make_invite(self, request: Mapping[str, Any]) -> dict[str, Any]:
        now = int(time.time())
        expires = now + INVITE_LIFETIME
        uses = int(request.get("uses") or 1)
        access = int(request["for"]) if request.get("for") else None
        targets = tuple(request.get("targets") or DEFAULT_TARGETS)
        name = str(request.get("name") or "")
        secret, token = secrets.token_bytes(16), secrets.token_bytes(16)
        write = partial(self._grants.make_invite, secret, targets, uses=uses, expires=expires, name=name, now=now, access=access)
        await to_thread.run_sync(write)  # before the relay is asked: what cannot be meant must leave no live token behind
        invite = Invite(RelayLink(self._relay.address, self._relay.id, token), self._identity.device_id, secret)
        await self._send_admission()  # first: once the token is minted, the relay knows both
        minted = await self._mint(token, invite.invite_id, uses, expires)
        if minted.reason is None:
            self._invite_tokens[invite.invite_id] = token
        else:
            self._emit(Notice("the relay lets this machine enrol nobody: the invite is for machines that are enrolled already"))
            invite = Invite(RelayLink(self._relay.address, self._relay.id, None), self._identity.device_id, secret)
        return {"invite": str(invite), "expires": expires, "uses": uses, "targets": list(targets), "access": access}

    async def _mint(self, token: bytes, invite_id: bytes, uses: int, expires: int) -> Minted:
        if self._connection is None:
            raise Failure(Reason.RELAY_UNREACHABLE, detail="an invite is made with the relay's help; the agent is offline")
        number = secrets.randbelow(2**32)
        waiting = self._minting[number] = (anyio.Event(), [])
        try:
            await self._connection.send(Mint(number, token_hash(token), invite_id, uses, expires))
            with anyio.fail_after(ANSWER_TIMEOUT):
                await waiting[0].wait()
        except TimeoutError as error:
            raise Failure(Reason.RELAY_UNREACHABLE, detail="the relay did not answer") from error
        finally:
            del self._minting[number]
        return waiting[1][0]

    async def _list_clients(self, request: Mapping[str, Any]) -> dict[str, Any]:
        now = int(time.time())
        clients = [
            {
                "name": grant.name,
                "device_id": str(grant.device),
                "targets": list(grant.targets),
                "created": grant.created,
                "expires": grant.expires,
            }
            for grant in self._grants.grants(now)
        ]
        invites = [
            {"id": invite.id.hex(), "name": invite.name, "uses": invite.uses, "expires": invite.expires}
            for invite in self._grants.open_invites(now)
        ]
        return {"clients": clients, "invites": invites, "admits_enrolled": self._admit_enrolled}

    async def _revoke(self, request: Mapping[str, Any]) -> dict[str, Any]:
        who = str(request.get("who", ""))
        lost = await to_thread.run_sync(lambda: self._grants.revoke(who, int(time.time())))
        cut = self._tunnels.cut(lost.device)
        await self._grants_changed()
        with suppress(Failure):
            if self._connection is not None:
                await self._connection.send(Unenrol(lost.device))
        self._emit(DeviceSeen(str(lost.device), "revoked", lost.name))
        return {"revoked": lost.name, "device_id": str(lost.device), "cut": cut}

    def _facts(self) -> dict[str, Any]:
        return {
            "device_id": str(self._identity.device_id),
            "relays": [] if self._presence is None else [self._presence.document()],
            "devices": self._tunnels.clients(),
            "admits_enrolled": self._admit_enrolled,
        }


def _note_choice(path: Path, relay_id: bytes) -> None:
    with locked(path):
        write_json(path, AGENT_FILE_VERSION, {"relay": relay_id.hex()})


def _no_relay(enrolled: Sequence[KnownRelay]) -> UsageError:
    if not enrolled:
        return UsageError("this agent has no relay yet", "give the link that the relay printed: tuunel agent 'tuunel://...'")
    places = ", ".join(str(relay.address) for relay in enrolled)
    return UsageError(
        f"this machine is enrolled at several relays ({places}), and the agent waits at one",
        "give the link of that one: run 'tuunel relay link' there, then tuunel agent 'tuunel://...'",
    )

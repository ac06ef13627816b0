"""The reverse proxy's tunnels: who asks is checked, what is asked for is checked, then the target is dialled and bytes are copied.

Source: docs/spec/tunnel.md, docs/spec/policy.md.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

import anyio
from anyio import to_thread

from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.companions import companions
from tuunel.dial import Allow, dial, dial_at_once, dial_unix
from tuunel.e2e.handshake import InitReceived, OfferSecrets, Responder
from tuunel.e2e.service import Service
from tuunel.e2e.wire import Command, Purpose, Target
from tuunel.errors import Failure, PeerMismatch, ProtocolError, Reason, Speaker, StateError, TuunelError
from tuunel.establish import respond
from tuunel.events import Alarm, DeviceSeen, Emit
from tuunel.grants import Grant, Grants
from tuunel.identity import DeviceID, IdentityKey
from tuunel.ledger import Entry, Ledger
from tuunel.policy import Address, Surroundings, allowed_addresses, allowed_unix
from tuunel.pump import PumpEnd, copy_both_ways
from tuunel.rawstream import RawStream
from tuunel.recordstream import RecordStream
from tuunel.relay.wire import PairedAgent
from tuunel.reverseflows import FlowShare, ReverseFlows
from tuunel.services import Services
from tuunel.targetflow import Rule
from tuunel.tunnel import Tunnel

MAX_PER_CLIENT = 1024  #: tunnels of one client at a time, standbys included: one client must not take all of the agent's descriptors
UNNAMED: Final = HostPort("0.0.0.0", 0)  #: what stands for an address where there is none
ALARM_INTERVAL = 1.0  #: seconds between two alarms that clients can cause at will: their flood must not fill a log
OWN_FAULTS: Final = (StateError, OSError)  #: of this machine: its files cannot be read, or the kernel does not say what is asked
MAX_ARRIVING = 256  #: connections of one client, by the relay's word, that have not shaken hands yet: more than a burst of a real one


class ReverseTunnels:
    """Serves tunnels at the agent. `surroundings` is asked at every open; `changed` is awaited when an invite was used up.

    `stamp` is asked before every datagram to a target: when it no longer equals what it was, the flow's address is judged again. It must
    be cheap and must not raise. `relay_rtt` is as of `Services`. Grants are asked anew at every open, and every second while a tunnel
    lives: a revoke or an expiry cuts it.
    """

    def __init__(
        self,
        identity: IdentityKey,
        grants: Grants,
        *,
        label: str,
        surroundings: Callable[[], Surroundings],
        stamp: Callable[[], object],
        changed: Callable[[], Awaitable[None]],
        relay_rtt: Callable[[], Awaitable[float]],
        emit: Emit,
    ) -> None:
        self.live: set[RecordStream] = set()
        self.ledger = Ledger(emit)
        self._identity = identity
        self._grants = grants
        self._label = label
        self._surroundings = surroundings
        self._stamp = stamp
        self._changed = changed
        self._emit = emit
        self._buffers = BufferPool()
        self._services = Services(self._buffers, relay_rtt)
        self._arriving: Counter[bytes] = Counter()  # by the identity key that the relay names
        self._clients: dict[Tunnel, DeviceID] = {}
        self._numbers: Counter[DeviceID] = Counter()  # of the tunnels of each client
        self._expiries: dict[Tunnel, int] = {}  # of the grants that connections and flows were opened under
        self._idle: set[Tunnel] = set()  # those that carry nothing: no connection yet, or no flow
        self._shares: WeakValueDictionary[DeviceID, FlowShare] = WeakValueDictionary()
        self._draining = False
        self._alarmed = float("-inf")

    async def serve(self, stream: RawStream, first: bytes, paired: PairedAgent, secrets: OfferSecrets) -> None:
        """Serve one tunnel from INIT to its end. Owns `stream`, of which `first` was read already. Raises nothing but cancellation."""
        try:
            await self._serve(stream, first, paired, secrets)
        except Exception as error:  # a fault of ours ends one tunnel and not the agent
            stream.reset()
            self._alarm(f"a tunnel ended by a fault inside tuunel, please report it: {error!r}")

    async def _serve(self, stream: RawStream, first: bytes, paired: PairedAgent, secrets: OfferSecrets) -> None:
        try:
            tunnel, received = await self._respond(stream, first, paired, secrets)
        except PeerMismatch as mismatch:
            self._alarm(str(mismatch))
            return
        except (TuunelError, OSError, TimeoutError, anyio.IncompleteRead, anyio.ClosedResourceError):
            return  # nobody to tell: the peer proved nothing, was refused, or is gone
        if self._draining and received.purpose is Purpose.STANDBY:
            tunnel.reset(Reason.SHUTDOWN)
            return
        self.live.add(tunnel.records)
        uses = [tunnel]
        while uses:
            use = uses.pop()
            use.keep = uses.append
            await self._serve_use(use, received.device)
            if self._draining and uses:
                uses.pop().reset(Reason.SHUTDOWN)

    async def _serve_use(self, tunnel: Tunnel, device: DeviceID) -> None:
        self._clients[tunnel] = device
        self._numbers[device] += 1
        try:
            await self._serve_request(tunnel, device)
        finally:
            tunnel.reset()
            del self._clients[tunnel]
            self._numbers[device] -= 1
            if not self._numbers[device]:
                del self._numbers[device]
            self._expiries.pop(tunnel, None)
            self._idle.discard(tunnel)

    def _alarm(self, text: str) -> None:
        now = time.monotonic()
        if now - self._alarmed >= ALARM_INTERVAL:
            self._alarmed = now
            self._emit(Alarm(text))

    async def _respond(self, stream: RawStream, first: bytes, paired: PairedAgent, secrets: OfferSecrets) -> tuple[Tunnel, InitReceived]:
        client = paired.public_key
        if self._arriving[client] >= MAX_ARRIVING:
            stream.reset()
            raise Failure(Reason.LIMIT, Speaker.AGENT, f"{MAX_ARRIVING} silent connections of one client")
        self._arriving[client] += 1
        try:
            responder = Responder(self._identity, secrets, client, paired.open, int(time.time()), buffers=self._buffers)
            return await respond(stream, first, responder, self._buffers, admit=self._admit, label=self._label)
        finally:
            self._arriving[client] -= 1
            if not self._arriving[client]:
                del self._arriving[client]

    async def watch_grants(self) -> None:
        """Cut the tunnels of clients whose grant has ended, by whatever way. Runs until cancelled."""
        while True:
            await anyio.sleep(1)
            now = int(time.time())
            for device in list(self._numbers):
                try:
                    self._grants.admit(device, now)
                except (Failure, StateError):  # a book that cannot be read grants nothing
                    self.cut(device)
            for tunnel, expires in list(self._expiries.items()):
                if now >= expires:
                    tunnel.reset(Reason.POLICY_REVOKED)

    def cut(self, device: DeviceID) -> int:
        """Cut every tunnel of `device`: how many of them carried a connection."""
        tunnels = [tunnel for tunnel, client in self._clients.items() if client == device]
        for tunnel in tunnels:
            tunnel.reset(Reason.POLICY_REVOKED)
        return sum(tunnel not in self._idle for tunnel in tunnels)

    def clients(self) -> list[dict[str, Any]]:
        """The clients that have tunnels here now, as the control socket shows them."""
        return [{"name": self._name(device), "device_id": str(device), "tunnels": number} for device, number in self._numbers.items()]

    def drop_idle(self) -> None:
        """Cut the tunnels that carry nothing, and those that carry flows when the last of these has ended; take no more of either."""
        self._draining = True
        for tunnel in self._idle:
            tunnel.reset(Reason.SHUTDOWN)

    async def _admit(self, received: InitReceived) -> None:
        try:
            await self._admit_or_redeem(received, int(time.time()))
        except OWN_FAULTS as error:
            raise self._own_fault(error) from error
        if self._numbers[received.device] >= MAX_PER_CLIENT:
            raise Failure(Reason.LIMIT, Speaker.AGENT, f"{MAX_PER_CLIENT} tunnels of one client")

    async def _admit_or_redeem(self, received: InitReceived, now: int) -> None:
        if received.invite_id is not None and received.proof is not None:
            redeem = partial(
                self._grants.redeem, received.invite_id, received.proof, received.t3, received.device, label=received.label, now=now
            )
            grant = await to_thread.run_sync(redeem)
            self._emit(DeviceSeen(str(grant.device), "paired", grant.name))
            await self._changed()
        else:
            self._grants.admit(received.device, now)

    def _own_fault(self, error: Exception) -> Failure:
        """A fault of this machine's own state is told to its own person; the client learns only that there was one."""
        self._alarm(str(error))
        return Failure(Reason.INTERNAL, Speaker.AGENT)

    async def _serve_request(self, tunnel: Tunnel, device: DeviceID) -> None:
        self._idle.add(tunnel)
        try:
            target = await tunnel.requested()
        except (OSError, ProtocolError, anyio.ClosedResourceError):
            return  # a standby that was not needed
        finally:
            self._idle.discard(tunnel)
        try:
            match target.command:
                case Command.UDP:
                    await self._serve_flows(tunnel, device)
                case Command.SERVICE:
                    await self._serve_service(tunnel, device, target.host)
                case _:
                    await self._serve_connection(tunnel, device, target)
        except (Failure, OSError, ProtocolError, anyio.ClosedResourceError):
            return  # told to the forward proxy where it can be told, and written into the ledger

    async def _serve_connection(self, tunnel: Tunnel, device: DeviceID, target: Target) -> None:
        entry = self._announce(device, _shown(target))
        with entry:
            end = await self._carry(tunnel, device, target, entry)
        if end == PumpEnd.DONE:
            entry.end(end)
        else:
            entry.end(str(tunnel.cut_for or end), tunnel.cut_reason)

    async def _serve_flows(self, tunnel: Tunnel, device: DeviceID) -> None:
        try:
            self._admitted(tunnel, device)
        except Failure as failure:
            await self._refuse(tunnel, failure)
            raise
        await tunnel.answer_connected(UNNAMED)
        await ReverseFlows(
            tunnel,
            self._shares.setdefault(device, FlowShare()),
            permit=lambda target: self._permit_flow(tunnel, device, target),
            announce=lambda target: self._announce(device, f"{_shown_place(target)}/udp"),
            carries=lambda number: self._set_idle(tunnel, idle=not number),
        ).run()

    async def _serve_service(self, tunnel: Tunnel, device: DeviceID, name: str) -> None:
        """Serve what the agent itself answers. Whoever has a grant may ask, whatever its targets are: nothing is dialled."""
        entry = self._announce(device, f"service:{name}")
        with entry, ExitStack() as place:
            try:
                self._admitted(tunnel, device)
                serve = place.enter_context(self._services.begin(device, name))
            except Failure as failure:
                await self._refuse(tunnel, failure)
                raise
            await tunnel.answer_connected(UNNAMED)
            entry.connected(tunnel.id)
            if name == Service.RELAY_RTT:
                self._set_idle(tunnel, idle=True)  # nobody who stops the agent waits for a ping to end
            await serve(tunnel, entry.traffic)
            await tunnel.aclose()
        entry.end(PumpEnd.DONE)

    def _set_idle(self, tunnel: Tunnel, *, idle: bool) -> None:
        if not idle:
            self._idle.discard(tunnel)
        elif self._draining:
            tunnel.reset(Reason.SHUTDOWN)
        else:
            self._idle.add(tunnel)

    async def _carry(self, tunnel: Tunnel, device: DeviceID, target: Target, entry: Entry) -> str:
        try:
            stream = self._dial_at_once(tunnel, device, target)
            if stream is None:
                tunnel.show_life()
                with entry.killable():
                    stream = await self._dial_beside(tunnel, device, target)
        except Failure as failure:
            await self._refuse(tunnel, failure)
            raise
        try:
            tunnel.take_early()
            await tunnel.answer_connected(UNNAMED if stream.is_unix else stream.local)
            entry.connected(tunnel.id)
            entry.cut_by(partial(tunnel.reset, Reason.KILLED))
        except BaseException:
            stream.reset()
            raise
        end = await copy_both_ways(tunnel, stream, entry.traffic, self._buffers)
        if end is PumpEnd.DONE:
            await stream.aclose()
            await tunnel.aclose()
        return str(end)

    def _dial_at_once(self, tunnel: Tunnel, device: DeviceID, target: Target) -> RawStream | None:
        """Dial a service of this machine, where nothing has to be waited for; None where something has."""
        if target.command is Command.UNIX:
            return None
        where = HostPort(target.host, target.port)
        return dial_at_once(where, allow=self._allow(tunnel, device, where))

    async def _dial_beside(self, tunnel: Tunnel, device: DeviceID, target: Target) -> RawStream:
        """Dial while the tunnel is read, so that the loss of either ends the other. Raises what was first."""
        stream: RawStream | None = None

        async def listen(dialling: anyio.CancelScope) -> None:
            try:
                await tunnel.collect_early()
            except Exception:
                dialling.cancel()
                raise

        try:
            async with companions() as beside:
                with anyio.CancelScope() as dialling:
                    beside.start(listen, dialling)
                    stream = await self._dial(tunnel, device, target)
                beside.cancel()
        except BaseException:
            if stream is not None:
                stream.reset()
            raise
        assert stream is not None  # or what `listen` met was raised
        return stream

    async def _dial(self, tunnel: Tunnel, device: DeviceID, target: Target) -> RawStream:
        if target.command is Command.UNIX:
            allowed_unix(self._admitted(tunnel, device).targets, target.host)
            return await dial_unix(target.host, speaker=Speaker.AGENT)
        self._admitted(tunnel, device)  # before a name is looked up for whoever may not come in
        where = HostPort(target.host, target.port)
        return await dial(where, allow=self._allow(tunnel, device, where), speaker=Speaker.AGENT)

    def _permit_flow(self, tunnel: Tunnel, device: DeviceID, target: HostPort) -> Rule:
        if self._draining:
            raise Failure(Reason.SHUTDOWN, Speaker.AGENT)
        self._admitted(tunnel, device)
        return Rule(self._allow(tunnel, device, target), self._stamp)

    def _admitted(self, tunnel: Tunnel, device: DeviceID) -> Grant:
        """Ask what the client may reach now. The tunnel will be cut when the first grant ends that something in it was opened under."""
        try:
            grant = self._grants.admit(device, int(time.time()))
        except OWN_FAULTS as error:
            raise self._own_fault(error) from error
        if grant.expires is not None:
            self._expiries[tunnel] = min(grant.expires, self._expiries.get(tunnel, grant.expires))
        return grant

    def _allow(self, tunnel: Tunnel, device: DeviceID, target: HostPort) -> Allow:
        """Judge addresses by the grants and surroundings of the moment: a lookup may have taken long, and a flow may be old."""

        def allow(addresses: list[Address]) -> list[Address]:
            grant = self._admitted(tunnel, device)
            try:
                around = self._surroundings()
            except OWN_FAULTS as error:
                raise self._own_fault(error) from error
            return allowed_addresses(grant.targets, target.host, target.port, addresses, around)

        return allow

    async def _refuse(self, tunnel: Tunnel, failure: Failure) -> None:
        await tunnel.answer_error(failure.reason, failure.detail)
        await tunnel.stream.aclose()

    def _announce(self, device: DeviceID, place: str) -> Entry:
        return self.ledger.open(place, device=self._name(device), door="tunnel", path="relay")

    def _name(self, device: DeviceID) -> str:
        try:
            return self._grants.admit(device, int(time.time())).name
        except TuunelError:
            return str(device)


def _shown(target: Target) -> str:
    return f"unix:{target.host}" if target.command is Command.UNIX else _shown_place(HostPort(target.host, target.port))


def _shown_place(place: HostPort) -> str:
    return str(HostPort(place.host or "localhost", place.port))

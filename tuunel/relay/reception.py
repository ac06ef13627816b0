"""From an accepted socket to a welcomed device, in the order of cost that docs/spec/relay.md promises."""

import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from cryptography.hazmat.primitives.asymmetric import ec

from tuunel.errors import Failure, Reason, RemoteProtocolError, Speaker, StateError
from tuunel.events import Alarm, DeviceSeen, Measures
from tuunel.identity import IdentityKey
from tuunel.rawstream import RawStream
from tuunel.relay.certificates import RelayCredentials
from tuunel.relay.connection import CONNECTION_TYPES, LOST, ControlConnection, DeviceConnection
from tuunel.relay.gate import Gate, prefix_of
from tuunel.relay.handshake import DeviceIdentified, RelayHandshake
from tuunel.relay.handshake_wire import HELLO_CEILING, Kind
from tuunel.relay.registry import MAX_CONNECTIONS, MAX_DEMAND
from tuunel.relay.store import StoredDevice
from tuunel.relay.switchboard import Switchboard
from tuunel.relay.wire import Limits, token_hash

HELLO_DEADLINE: Final = 5.0  #: seconds from accept to the whole of M1
DEVICE_AUTH_DEADLINE: Final = 10.0  #: seconds from M2 to the whole of M3: one round trip and the device's own work
ANSWER_DEADLINE: Final = 2.0  #: seconds that the device may take to accept M4, or the relay's last word
#: Bytes read at a time of DEVICE_AUTH and what the device sends in the same flight: an OFFER at most. No tunnel's bytes are among them.
LAST_FLIGHT: Final = 2048
LIMITS: Final = Limits(ready=MAX_DEMAND, dial=MAX_DEMAND, pipes=MAX_CONNECTIONS)


class Reception:
    """Takes sockets in. `make_room` decides the duplicate agent rule.

    `credentials` is replaced when the leaf is renewed, `open_enrolment` by a reload.
    """

    def __init__(
        self,
        switchboard: Switchboard,
        credentials: RelayCredentials,
        *,
        open_enrolment: bool,
        make_room: Callable[[ControlConnection], Awaitable[None]],
    ) -> None:
        self.credentials = credentials
        self._switchboard = switchboard
        self.open_enrolment = open_enrolment
        self._make_room = make_room
        self._gate = Gate(time.monotonic)
        self._nobody = IdentityKey.generate().public_bytes  #: the key that stands for those which are not known
        self._refused: Counter[str] = Counter()
        self._welcomed = 0

    def measures(self) -> Measures:
        """What `RelayServer.measures` says of handshakes."""
        return {
            "relay_handshakes_welcomed_total": self._welcomed,
            "relay_handshakes_refused_total": self._gate.refused + self._refused,
            "relay_unproven_connections": self._gate.unproven,
        }

    async def receive(self, stream: RawStream) -> DeviceConnection | None:
        """Prove both sides to each other; the connection has then joined the registry and is the caller's.

        None: the stream is closed, and whoever was there has been told as much as it had earned.
        """
        welcomed = None
        try:
            welcomed = await self._receive(stream)
        except LOST:
            self._refused["broken"] += 1  # strangers, scanners and lost connections: closed without a word
        except StateError as error:
            self._switchboard.emit(Alarm(f"{error}; {error.advice}"))
        finally:
            if welcomed is None:
                stream.close()
        return welcomed

    async def _receive(self, stream: RawStream) -> DeviceConnection | None:
        observed = stream.peer
        prefix = prefix_of(observed.host)
        if not self._gate.enter(prefix):
            return None
        try:
            handshake = RelayHandshake(
                credentials=self.credentials,
                random=os.urandom,
                ephemeral=lambda: ec.generate_private_key(ec.SECP256R1()),
                now=int(time.time()),
                limits=LIMITS,
                observed=observed,
            )
            claim = await _identify(stream, handshake)
            try:
                stored, cuts = await self._authenticate(handshake, claim)
            except Failure as failure:
                await self._refuse(stream, handshake, failure)
                return None
            except StateError as error:
                self._switchboard.emit(Alarm(f"{error}; {error.advice}"))
                await self._refuse(stream, handshake, Failure(Reason.INTERNAL, Speaker.RELAY, "its operator is told why"))
                return None
        finally:
            self._gate.leave(prefix)
        connection = await self._welcome(stream, handshake, claim, stored, cuts)
        if connection is not None:
            self._gate.welcome(prefix)
            self._welcomed += 1
        return connection

    async def _refuse(self, stream: RawStream, handshake: RelayHandshake, failure: Failure) -> None:
        self._refused[failure.reason.value] += 1
        await _finish(stream, handshake.refuse(failure.reason, failure.retry_after, failure.detail))

    async def _authenticate(self, handshake: RelayHandshake, claim: DeviceIdentified) -> tuple[StoredDevice, int]:
        cuts = self._switchboard.registry.cuts
        if claim.kind is Kind.REGISTER and claim.public_key is not None:
            _verify(handshake, claim.public_key, Reason.AUTH_FAILED)
            return await self._register(claim, claim.public_key), cuts
        stored = await self._switchboard.store.device(claim.device_id)
        # One answer, after the same work: who has seen a device's ID does not learn here whether that device is enrolled.
        _verify(handshake, self._nobody if stored is None else stored.public_key, Reason.DEVICE_UNKNOWN)
        if stored is None:
            raise Failure(Reason.DEVICE_UNKNOWN, Speaker.RELAY)
        if stored.banned:
            raise Failure(Reason.DEVICE_BANNED, Speaker.RELAY)
        return stored, cuts

    async def _register(self, claim: DeviceIdentified, public_key: bytes) -> StoredDevice:
        token = None if claim.token is None else token_hash(claim.token)
        stored, new = await self._switchboard.store.register(public_key, claim.label, token, open_enrolment=self.open_enrolment)
        if new:
            self._switchboard.emit(DeviceSeen(str(stored.id), "registered", stored.label))
        return stored

    async def _welcome(
        self, stream: RawStream, handshake: RelayHandshake, claim: DeviceIdentified, stored: StoredDevice, cuts: int
    ) -> DeviceConnection | None:
        connection = CONNECTION_TYPES[claim.purpose](stream, stored.id, stored.public_key, claim.params)
        try:
            if isinstance(connection, ControlConnection):
                await self._make_room(connection)
            await self._join(connection, cuts)
        except Failure as failure:
            await self._refuse(stream, handshake, failure)
            return None
        try:
            word = handshake.welcome()
            connection.start(handshake.channel)
            with anyio.fail_after(ANSWER_DEADLINE):
                await stream.send_all(word)
        except BaseException:
            self._switchboard.leave(connection)
            raise
        return connection

    async def _join(self, connection: DeviceConnection, cuts: int) -> None:
        # Who was banned or un-enrolled while this task waited must not slip in behind the cut.
        registry = self._switchboard.registry
        while registry.cuts != cuts:
            cuts = registry.cuts
            await self._switchboard.find_device(connection.device)
        if self._switchboard.closing:
            raise Failure(Reason.SHUTDOWN, Speaker.RELAY, retry_after=1)
        registry.join(connection, connection.device)
        if isinstance(connection, ControlConnection):
            self._enter(connection)

    def _enter(self, control: ControlConnection) -> None:
        registry = self._switchboard.registry
        known = registry.present(control.device)
        try:
            registry.add_control(control, control.role, control.instance)
        except Failure:
            registry.leave(control)
            raise
        if not known:
            self._switchboard.emit(DeviceSeen(str(control.device), "online"))


def _verify(handshake: RelayHandshake, public_key: bytes, otherwise: Reason) -> None:
    try:
        handshake.verify(public_key)
    except RemoteProtocolError:
        raise Failure(otherwise, Speaker.RELAY) from None


async def _identify(stream: RawStream, handshake: RelayHandshake) -> DeviceIdentified:
    with anyio.fail_after(HELLO_DEADLINE):
        while not (word := handshake.data_to_send()):
            await _step(stream, handshake, HELLO_CEILING)
    with anyio.fail_after(DEVICE_AUTH_DEADLINE):
        await stream.send_all(word)
        while (claim := await _step(stream, handshake, LAST_FLIGHT)) is None:
            pass
    return claim


async def _step(stream: RawStream, handshake: RelayHandshake, limit: int) -> DeviceIdentified | None:
    data = await stream.receive(limit)
    if not data:
        handshake.receive_eof()
    handshake.receive_data(data)
    try:
        return handshake.next_event()
    except RemoteProtocolError:
        last_word = handshake.data_to_send()
        if last_word:
            await _finish(stream, last_word)
        raise


async def _finish(stream: RawStream, last_word: bytes) -> None:
    with anyio.move_on_after(ANSWER_DEADLINE):
        await stream.send_all(last_word)
        await stream.aclose()

"""Control connections: presence, admission lists, tokens, and the rule that one device is one agent.

Source: docs/spec/tunnel.md section 2, docs/spec/relay.md, "Control connections".
"""

from functools import partial
from typing import Final

import anyio

from tuunel.companions import companions
from tuunel.errors import Failure, Reason, RemoteProtocolError, Speaker, StateError
from tuunel.events import Alarm, DeviceSeen
from tuunel.identity import DeviceID
from tuunel.relay.connection import LOST, ControlConnection
from tuunel.relay.switchboard import Switchboard
from tuunel.relay.wire import Admission, DropToken, Message, Mint, Minted, Notice, Role, Unenrol

SILENCE: Final = 7.0  #: seconds without a message before a ping: a device that lives pings after five, and need not be asked
DEAD: Final = 12.0  #: seconds without a message before the device counts as gone
RIVAL_PATIENCE: Final = 5.0  #: seconds that an agent has to show that it lives, when another instance of it appears
NOTE_INTERVAL: Final = 5.0  #: seconds between two notes of who was seen: one transaction, however many came or went meanwhile
_DUPLICATE: Final = "another instance of this agent appeared"
_EVICTED: Final = "another instance of this agent was here, and was put out because it was silent"


class Attendance:
    """Serves control connections."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        self._seen: set[DeviceID] = set()  # since the last note

    async def keep_notes(self) -> None:
        """Note every few seconds who was seen, until cancelled; what has come since then is left to `note_seen`."""
        while True:
            await anyio.sleep(NOTE_INTERVAL)
            await self.note_seen()

    async def note_seen(self) -> None:
        """Note in the registry who was seen since the last time."""
        seen, self._seen = self._seen, set()
        try:
            await self._switchboard.store.seen(*seen)
        except StateError as error:  # a full disk costs the note, and nobody his connection
            self._switchboard.emit(Alarm(f"{error}; {error.advice}"))

    async def make_room(self, newcomer: ControlConnection) -> None:
        """Decide whether a verified instance may take its place. Raises DUPLICATE_DEVICE while another instance of this agent lives.

        What the same instance still holds has been lost and is ended; a silent rival is evicted after `RIVAL_PATIENCE`.
        """
        registry = self._switchboard.registry
        predecessor = registry.predecessor_of(newcomer.device, newcomer.instance)
        if isinstance(predecessor, ControlConnection):
            self._switchboard.leave(predecessor)
            predecessor.cut(Failure(Reason.DUPLICATE_DEVICE, Speaker.RELAY, "this instance connected again"))
        if newcomer.role is not Role.AGENT:
            return
        while isinstance(rival := registry.rival_of(newcomer.device, newcomer.instance), ControlConnection):
            lives = await rival.answers(RIVAL_PATIENCE)
            if registry.rival_of(newcomer.device, newcomer.instance) is not rival:
                continue
            if lives:
                rival.post(Notice(Reason.DUPLICATE_DEVICE, detail=_DUPLICATE))
                raise Failure(Reason.DUPLICATE_DEVICE, Speaker.RELAY)
            self._switchboard.leave(rival)
            if rival.over:  # as a machine that was switched off: once it runs again, it answers by a reset
                continue
            rival.dismiss(Failure(Reason.DUPLICATE_DEVICE, Speaker.RELAY, _DUPLICATE))
            newcomer.post(Notice(Reason.DUPLICATE_DEVICE, detail=_EVICTED))

    async def serve(self, control: ControlConnection) -> None:
        """Converse until the device goes or is dismissed. The caller closes the stream."""
        self._seen.add(control.device)
        try:
            async with companions() as beside:
                with anyio.CancelScope() as conversation:
                    control.deliver_with(partial(beside.start, _deliver, control, conversation))
                    try:
                        delivers = await self._converse(control)
                    finally:
                        control.deliver_with(None)
                    if not delivers:
                        beside.cancel()
        finally:
            self._seen.add(control.device)

    async def _converse(self, control: ControlConnection) -> bool:
        """Converse until the device goes, or a last word for it is posted, which is then to be delivered: True."""
        try:
            while True:
                message = await control.converse(silence=SILENCE, dead=DEAD)
                await self._handle(control, message)
        except LOST:
            control.lose()
            return False
        except Failure as failure:
            control.dismiss(failure)
        except StateError as error:
            self._switchboard.emit(Alarm(f"{error}; {error.advice}"))
            control.dismiss(Failure(Reason.INTERNAL, Speaker.RELAY))
        finally:
            control.end()
        return True

    async def _handle(self, control: ControlConnection, message: Message) -> None:
        self._switchboard.registry.charge(control.device)  # most of them cost a transaction
        match message:
            case Admission():
                self._switchboard.registry.set_admission(control, message)
            case Mint():
                control.post(await self._mint(control, message))
            case DropToken(token_hash):
                await self._switchboard.store.drop_token(control.device, token_hash)
            case Unenrol(device):
                if await self._switchboard.store.unenrol(control.device, device):
                    self._switchboard.cut_device(device, Reason.DEVICE_UNKNOWN)
                    self._switchboard.emit(DeviceSeen(str(device), "revoked"))
            case _:
                raise RemoteProtocolError("that message has no place on a control connection")

    async def _mint(self, control: ControlConnection, mint: Mint) -> Minted:
        try:
            await self._switchboard.store.mint(control.device, mint.token_hash, uses=mint.uses, expires=mint.expires)
        except Failure as failure:
            return Minted(mint.request, failure.reason, failure.retry_after, failure.detail)
        except StateError as error:
            self._switchboard.emit(Alarm(f"{error}; {error.advice}"))
            return Minted(mint.request, Reason.INTERNAL)
        return Minted(mint.request)


async def _deliver(control: ControlConnection, conversation: anyio.CancelScope) -> None:
    try:
        await control.deliver()
    except LOST:
        conversation.cancel()
    if control.dismissed:
        conversation.cancel()

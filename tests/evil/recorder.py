"""A relay that remembers every byte of a connection, and plays it again."""

from contextlib import suppress

from tests.evil.relay import GONE, Pieces, Plot
from tests.evil.stage import Stage
from tuunel.pump import PumpEnd
from tuunel.relay.switchboard import Pipe
from tuunel.relay.wire import PairedAgent


class Recorder(Plot):
    """Carry one connection honestly, and keep it: what was said to either side by the relay, and everything in the pipe."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: PairedAgent
        self.offered = b""
        self.up_messages: list[bytes] = []
        self.down_messages: list[bytes] = []

    def paired(self, paired: PairedAgent) -> PairedAgent:
        self.asked = paired
        return paired

    def offer(self, offer: bytes) -> bytes:
        self.offered = offer
        return offer

    def up(self, number: int, message: bytes) -> Pieces:
        self.up_messages.append(message)
        return [message]

    def down(self, number: int, message: bytes) -> Pieces:
        self.down_messages.append(message)
        return [message]

    async def replay_to_agent(self, stage: Stage) -> bytes:
        """Give the agent the client's part again, on another of its connections: what it answers."""
        self.struck += 1
        ready = await stage.tunnels.approach(stage.device.id, self.asked)
        answered = b""
        with suppress(*GONE):
            await ready.stream.send_all(b"".join(self.up_messages))
            while data := await ready.stream.receive():
                answered += data
        stage.tunnels._drop(ready)
        return answered


class ReplayToForward(Plot):
    """Give the forward proxy the agent's part of an earlier connection; with `offer` its offer too."""

    def __init__(self, recorded: Recorder, *, offer: bool) -> None:
        super().__init__()
        self._recorded, self._offer = recorded, offer

    def offer(self, offer: bytes) -> bytes:
        return self._recorded.offered if self._offer else offer

    async def carry(self, pipe: Pipe) -> PumpEnd:
        self.struck += 1
        await self.answer(pipe)
        await self.switch(pipe)
        with suppress(*GONE):
            await pipe.forward.stream.send_all(b"".join(self._recorded.down_messages))
            while await pipe.forward.stream.receive():
                pass
        return PumpEnd.RESET


class ReplayMessage(Plot):
    """Carry an earlier connection's message in the place of the one of this connection."""

    def __init__(self, recorded: Recorder, way: str, at: int) -> None:
        super().__init__()
        self._recorded, self._way, self._at = recorded, way, at

    def up(self, number: int, message: bytes) -> Pieces:
        return self._replace("up", number, message, self._recorded.up_messages)

    def down(self, number: int, message: bytes) -> Pieces:
        return self._replace("down", number, message, self._recorded.down_messages)

    def _replace(self, way: str, number: int, message: bytes, recorded: list[bytes]) -> Pieces:
        if (way, number) != (self._way, self._at):
            return [message]
        self.struck += 1
        return [recorded[number]]

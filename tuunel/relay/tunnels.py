"""Ready and dial connections: an open finds its agent, the two are paired, and the relay pipes what it cannot read.

Source: docs/spec/tunnel.md sections 2 to 4, docs/spec/relay.md, "Opening".
"""

import os
import time
from collections import Counter
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Final

import anyio

from tuunel.companions import companions
from tuunel.errors import Failure, Reason, RemoteProtocolError, Speaker
from tuunel.pump import PumpEnd
from tuunel.rawstream import RawStream
from tuunel.relay.connection import LOST, DialConnection, ReadyConnection
from tuunel.relay.gate import prefix_of
from tuunel.relay.limiter import Charge
from tuunel.relay.pace import Pace
from tuunel.relay.splice import PipePool, splice_both_ways
from tuunel.relay.switchboard import Pipe, Switchboard
from tuunel.relay.wire import HopError, Offer, Open, PairedAgent, PairedForward, Switch, tunnel_id

OFFER_DEADLINE: Final = 10.0  #: seconds from WELCOME to the OFFER, which belongs into the device's first flight
OPEN_PATIENCE: Final = 10.0  #: seconds that an open waits for its agent to bring a ready connection
SWITCH_DEADLINE: Final = 10.0  #: seconds from PAIRED to SWITCH: one round trip of a live agent
PARKED_SILENCE: Final = 30.0  #: seconds without a message before a waiting connection is pinged: below the time-outs of common NATs
PARKED_DEAD: Final = 45.0  #: seconds without a message before it counts as lost
PIPE_LOOK: Final = 5.0  #: seconds between looks at the pipes
PIPE_DEAD: Final = 30.0  #: seconds for which a machine acknowledges nothing of what a pipe has for it, until it counts as lost
FIRST_CHUNK: Final = 16384  #: bytes read at a time before the pipe: INIT and its early data
_GONE: Final = f"its machine acknowledged nothing for {PIPE_DEAD:.0f} s"


class Tunnels:
    """Serves ready and dial connections. `pipes` belongs to the caller."""

    def __init__(self, switchboard: Switchboard, pipes: PipePool) -> None:
        self._switchboard = switchboard
        self._registry = switchboard.registry
        self._pipes = pipes
        self.refused: Counter[str] = Counter()  #: opens that no agent took, by reason

    async def watch(self) -> None:
        """Cut the pipes one of whose machines is gone, where bytes wait for it: nobody else can tell. Runs until cancelled.

        At rest the two ends find each other out. A machine that lives and does not read acknowledges, and its pipe may wait for ever.
        Figures of use are sampled as often.
        """
        while True:
            await anyio.sleep(PIPE_LOOK)
            self._switchboard.limiter.sample()
            now = time.monotonic()
            for pipe in list(self._switchboard.pipes):
                for connection in (pipe.forward, pipe.agent):
                    if connection.acks.unanswered(connection.stream, now) > PIPE_DEAD:
                        connection.cut(Failure(Reason.PEER_UNAVAILABLE, Speaker.RELAY, _GONE))

    async def serve_ready(self, ready: ReadyConnection) -> bool:
        """Park an agent's connection. True: it now belongs to the open that took it. False, or one of LOST: the caller closes it."""
        with anyio.fail_after(OFFER_DEADLINE):
            offer = await ready.converse(silence=OFFER_DEADLINE, dead=2 * OFFER_DEADLINE)
        if not isinstance(offer, Offer):
            raise RemoteProtocolError("a ready connection starts with its offer")
        ready.offer = offer
        try:
            opener = self._registry.park(ready, ready.instance)
        except Failure as failure:
            await ready.send(_error(failure))
            return False
        if isinstance(opener, DialConnection):
            opener.answer(ready)
        else:
            await ready.park(silence=PARKED_SILENCE, dead=PARKED_DEAD)
        return True

    async def serve_dial(self, dial: DialConnection) -> None:
        """Answer a forward proxy's opens until one becomes a pipe, and carry that to its end. Raises one of LOST before that."""
        pipe = None
        with ExitStack() as charged:
            try:
                while pipe is None and not self._switchboard.closing:
                    pipe = await self._answer_open(dial, charged)
            finally:
                unused = dial.take_answer()
                if isinstance(unused, ReadyConnection):
                    self._drop(unused)
            if pipe is not None:
                await self._join(pipe)

    async def _answer_open(self, dial: DialConnection, charged: ExitStack) -> Pipe | None:
        message = await dial.converse(silence=PARKED_SILENCE, dead=PARKED_DEAD)
        if not isinstance(message, Open):
            raise RemoteProtocolError("a dial connection only opens")
        dial.check_silence()
        try:
            if self._switchboard.closing:
                raise Failure(Reason.SHUTDOWN, Speaker.RELAY, retry_after=1)
            charge = charged.enter_context(self._charge(dial))
            ready = await self._find_ready(dial, message)
        except Failure as failure:
            charged.close()
            self.refused[failure.reason.value] += 1
            await dial.send(_error(failure))
            return None
        return self._switchboard.new_pipe(tunnel_id(ready.offer.point, message.request.point), dial, ready, charge)

    def _charge(self, dial: DialConnection) -> AbstractContextManager[Charge]:
        """A tunnel's place on the accounts of who opens it. Raises Failure, or OSError when the connection is gone."""
        return self._switchboard.limiter.tunnel(str(dial.device), prefix_of(dial.stream.peer.host))

    async def _find_ready(self, dial: DialConnection, open_message: Open) -> ReadyConnection:
        """An agent's connection that has been told PAIRED. Raises Failure, which answers the open."""
        request = open_message.request
        self._registry.admit(dial.device, request.device, request.invite_id)
        paired = PairedAgent(dial.public_key, open_message.body)
        deadline = anyio.current_time() + OPEN_PATIENCE
        while True:
            found = self._registry.take(dial, request.device)
            self._switchboard.tell_demand(request.device)
            try:
                ready = found if found is not None else await dial.wait_for_ready(deadline - anyio.current_time())
            finally:
                self._registry.withdraw(dial)
            if isinstance(ready, ReadyConnection) and await self._pair_agent(ready, paired, claim=found is not None):
                ready.scope = dial.scope
                return ready

    async def _pair_agent(self, ready: ReadyConnection, paired: PairedAgent, *, claim: bool) -> bool:
        """Make a ready connection the caller's, and tell its agent whom it meets. False: it was lost, take another."""
        try:
            if claim and not await ready.claim():
                return False
            await ready.send(paired)
        except LOST:
            self._drop(ready)
            return False
        except BaseException:
            self._drop(ready)
            raise
        return True

    async def _join(self, pipe: Pipe) -> None:
        end = PumpEnd.RESET
        try:
            with pipe.charge.counting(pipe.entry.traffic):
                end = await self._carry(pipe)
        except LOST:
            pass
        finally:
            self._close(pipe, end)

    async def _carry(self, pipe: Pipe) -> PumpEnd:
        dial, ready = pipe.forward, pipe.agent
        # The relay's last hop record to F: whatever F sends from here on is the tunnel's.
        await dial.send(PairedForward(ready.offer.body))
        pace = Pace(*pipe.charge.buckets)
        unsent = await _wait_for_switch(pipe, pace)
        if unsent is None:
            return PumpEnd.RESET
        return await splice_both_ways(
            dial.stream,
            ready.stream,
            first_to_b=dial.into_pipe() + unsent,
            first_to_a=ready.into_pipe(),
            traffic=pipe.entry.traffic,
            pipes=self._pipes,
            pace=pace,
        )

    def _close(self, pipe: Pipe, end: PumpEnd) -> None:
        for connection in (pipe.forward, pipe.agent):
            # After a clean end the kernel still delivers what is on its way; a reset would destroy it.
            if end is PumpEnd.DONE:
                connection.stream.close()
            else:
                connection.stream.reset()
        self._switchboard.end_pipe(pipe, end.value)
        self._switchboard.leave(pipe.agent)

    def _drop(self, ready: ReadyConnection) -> None:
        ready.stream.reset()
        self._switchboard.leave(ready)


async def _wait_for_switch(pipe: Pipe, pace: Pace) -> bytes | None:
    """Wait for the agent's last hop record, and pass the tunnel's first bytes on to it meanwhile: they need not wait for that round trip.

    Returns bytes of the forward proxy that have not been passed on; None when the agent was lost or did not answer in time.
    """
    unsent = bytearray()
    switched = False
    with anyio.move_on_after(SWITCH_DEADLINE) as deadline:
        async with companions() as beside:
            beside.start(_pass_on, pipe, unsent, pace)
            with suppress(*LOST):
                switched = isinstance(await pipe.agent.receive(), Switch)
            beside.cancel()
    if deadline.cancelled_caught and pipe.agent.cut_for is None:
        pipe.agent.cut_for = pipe.forward.cut_for = Failure(Reason.OPEN_TIMEOUT, Speaker.RELAY, "the agent did not take the tunnel")
    return bytes(unsent) if switched else None


async def _pass_on(pipe: Pipe, unsent: bytearray, pace: Pace) -> None:
    """Copy from the forward proxy to the agent until cancelled; `unsent` then holds what was read and not written."""
    source, sink = pipe.forward.stream, pipe.agent.stream
    try:
        while data := await source.receive(FIRST_CHUNK):
            unsent += data
            await pace.pay(len(data), source)
            await _write(sink, unsent, pipe)
    except (OSError, anyio.ClosedResourceError):
        # either side is broken: that ends the wait for the agent's word as well
        sink.reset()


async def _write(sink: RawStream, unsent: bytearray, pipe: Pipe) -> None:
    # Not `send_all`: a cancelled one does not tell how much it has sent.
    while unsent:
        try:
            sent = os.write(sink.fileno(), unsent)
        except BlockingIOError:
            await sink.wait_writable()
            continue
        del unsent[:sent]
        pipe.entry.traffic.up += sent


def _error(failure: Failure) -> HopError:
    return HopError(failure.reason, failure.retry_after, failure.detail)

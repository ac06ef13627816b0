"""What `tuunel nc` does when no proxy runs, or could not do it: one tunnel of its own, opened and pumped in a second thread."""

import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future

import anyio

from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.devices import Devices
from tuunel.e2e.wire import Command
from tuunel.earlybytes import EarlyBytes
from tuunel.errors import Failure, Reason, UsageError
from tuunel.events import Traffic
from tuunel.firstwords import FirstWords
from tuunel.forwarding import Destination, read_destination
from tuunel.identity import IdentityKey
from tuunel.netcat import UDP, copy_standard_streams, parse_arguments, split_host, tuunel_name
from tuunel.netcat_udp import carry_datagrams
from tuunel.policy import UNIX
from tuunel.pool import TunnelPool
from tuunel.pump import copy_both_ways
from tuunel.rawstream import RawStream
from tuunel.routing import resolve_name
from tuunel.settings import Home


def run_alone(arguments: Sequence[str]) -> int:
    """Run `tuunel nc` for what needs a tunnel of its own: UDP, and unix sockets. Returns the exit code.

    Raises what `carry_datagrams` and `netcat.run` raise, UsageError, and Failure(UNKNOWN_NAME) for a malformed .tuunel name.
    """
    to = parse_destination(arguments)
    return carry_datagrams(Home.find(), to) if to.udp else through_own_tunnel(Home.find(), to)


def parse_destination(arguments: Sequence[str]) -> Destination:
    """Read `-u HOST PORT`, `-u HOST:PORT`, `NAME unix:/PATH` or `NAME:unix:/PATH`; a bare NAME becomes NAME.tuunel."""
    words = [word for word in arguments if word != UDP]
    host, service = split_host(words)
    udp = UDP in arguments
    if not service.startswith(UNIX):
        target = parse_arguments(words)
        return Destination(target.host, target.port, udp=udp)
    if udp:
        raise UsageError("a unix socket carries no UDP", "leave -u away")
    if len(words) > 2:
        raise UsageError("nc takes a device and a unix socket of its machine", "for example: tuunel nc home unix:/run/docker.sock")
    return read_destination(f"{tuunel_name(host)}:{service}")


def through_own_tunnel(home: Home, to: Destination) -> int:
    """Connect standard input and output to `to`, which is no UDP one, by a tunnel of this process; see `netcat.run` for the promises."""
    ours, theirs = socket.socketpair()
    own = _OwnTunnel(home, to)
    thread = threading.Thread(target=own.run, args=(theirs,), daemon=True)
    thread.start()
    with ours:
        own.connected.result()
        ended = copy_standard_streams(ours, skip=own.words.said)
        if not ended or own.pumped.result() != "done":
            raise Failure(Reason.TUNNEL_LOST, detail="the connection was cut")
    return 0


class _OwnTunnel:
    """A tunnel that is opened and pumped in a thread of its own; the other thread waits for `connected`, and then for `pumped`."""

    def __init__(self, home: Home, to: Destination) -> None:
        self.connected: Future[None] = Future()
        self.pumped: Future[str] = Future()  #: how it ended
        self.words = FirstWords()
        self._home = home
        self._to = to

    def run(self, inner: socket.socket) -> None:
        """Do it all between `inner`, which it owns, and the target."""
        try:
            with inner:
                anyio.run(self._pump, inner)
        except BaseException as error:  # the other thread waits on one of the two futures, whatever happened here
            waiting = self.pumped if self.connected.done() else self.connected
            waiting.set_exception(error)

    async def _pump(self, inner: socket.socket) -> None:
        identity = IdentityKey.load_or_create(self._home.identity_key)
        device, host = resolve_name(Devices(self._home.devices_file), self._to.host)
        target = HostPort(self._to.path or host, self._to.port)
        command = Command.UNIX if self._to.path else Command.TCP
        buffers = BufferPool()
        async with TunnelPool(identity, buffers, warm=0) as tunnels:
            tunnel, _ = await tunnels.connect(device, target, EarlyBytes(come=self.words.look), command)
            self.connected.set_result(None)
            stream = RawStream(inner)
            end = await copy_both_ways(stream, tunnel, Traffic(), buffers)
            stream.close()
            await tunnel.aclose()  # first: the process may end with the result, and must not cut what is still on its way
            self.pumped.set_result(end)

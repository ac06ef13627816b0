"""What `tuunel nc` does when no proxy runs: one tunnel of its own, opened and pumped in a second thread."""

import socket
import threading
from concurrent.futures import Future

import anyio

from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.devices import Devices
from tuunel.e2e.wire import Command
from tuunel.errors import Failure, Reason
from tuunel.events import Traffic
from tuunel.forwarding import Destination
from tuunel.identity import IdentityKey
from tuunel.netcat import copy_standard_streams
from tuunel.pool import TunnelPool
from tuunel.pump import copy_both_ways
from tuunel.rawstream import RawStream
from tuunel.routing import resolve_name
from tuunel.settings import Home


def through_own_tunnel(home: Home, to: Destination) -> int:
    """Connect standard input and output to `to`, which is not UDP, by a tunnel of this process; see `netcat.run` for the promises."""
    ours, theirs = socket.socketpair()
    connected: Future[None] = Future()
    pumped: Future[str] = Future()
    thread = threading.Thread(target=_run_tunnel, args=(home, to, theirs, connected, pumped), daemon=True)
    thread.start()
    with ours:
        connected.result()
        ended = copy_standard_streams(ours)
        if not ended or pumped.result() != "done":
            raise Failure(Reason.TUNNEL_LOST, detail="the connection was cut")
    return 0


def _run_tunnel(home: Home, to: Destination, inner: socket.socket, connected: "Future[None]", pumped: "Future[str]") -> None:
    try:
        with inner:
            anyio.run(_pump_tunnel, home, to, inner, connected, pumped)
    except BaseException as error:  # the other thread waits on one of the two futures, whatever happened here
        waiting = pumped if connected.done() else connected
        waiting.set_exception(error)


async def _pump_tunnel(home: Home, to: Destination, inner: socket.socket, connected: "Future[None]", pumped: "Future[str]") -> None:
    identity = IdentityKey.load_or_create(home.identity_key)
    device, host = resolve_name(Devices(home.devices_file), to.host)
    buffers = BufferPool()
    async with TunnelPool(identity, buffers, warm=0) as tunnels:
        command = Command.UNIX if to.path else Command.TCP
        tunnel, _ = await tunnels.connect(device, HostPort(to.path or host, to.port), command=command)
        connected.set_result(None)
        stream = RawStream(inner)
        end = await copy_both_ways(stream, tunnel, Traffic(), buffers)
        stream.close()
        await tunnel.aclose()  # first: the process may end with the result, and must not cut what is still on its way
        pumped.set_result(end)

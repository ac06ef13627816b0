"""The UDP associations of SOCKS5 clients: the socket that one client sends its datagrams to, for as long as its TCP connection lasts.

Source: RFC 1928 section 7, docs/spec/front-doors.md section 3.1.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import anyio

from tuunel.datagrams import MAX_QUEUED, DatagramSocket, bind_datagrams
from tuunel.errors import Failure, ListenError, Reason, RemoteProtocolError, StateError
from tuunel.frontdoor import EARLY_LIMIT
from tuunel.listeners import Announcement
from tuunel.outbound import Associate, Datagrams
from tuunel.pump import BROKEN
from tuunel.rawsocket import SocketAddress, host_port_of
from tuunel.rawstream import RawStream
from tuunel.socks.protocol import AssociateRequest, SocksDoor
from tuunel.socks.udp import read_datagram

MAX_ASSOCIATIONS: Final = 256  # each has two descriptors, and a tunnel to each device that its client names
BURST: Final = 32  # datagrams that are taken from one client at a time: 2 MiB at most, before the others have their turn
OWN_LOOPBACK: Final = "127.0.0.1"  # where a client of the unix socket, which has no address, sends its datagrams to and from


class UdpDoor:
    """Serves UDP associations, at most MAX_ASSOCIATIONS at a time. `len` is how many there are.

    `associate` gives each its way to the targets; their ports are announced in `own_ports`. `dropped` counts the datagrams, either way
    and of all associations, that did not pass a door: malformed ones, a stranger's, and answers that the client's socket could not take.
    """

    def __init__(self, associate: Associate, own_ports: Announcement) -> None:
        self.dropped = 0
        self._associate = associate
        self._own_ports = own_ports
        self._live = 0

    def __len__(self) -> int:
        return self._live

    async def serve(self, stream: RawStream, door: SocksDoor, request: AssociateRequest) -> None:
        """Accept `request` at `door`, then carry datagrams until `stream` ends; bytes that come on it are read and ignored.

        Failure when there is no room: then nothing is answered yet. Errors of the stream as it raises them, only until the answer is
        sent; later ones are an end. The stream stays the caller's.
        """
        if self._live >= MAX_ASSOCIATIONS:
            raise Failure(Reason.LIMIT, detail=f"{MAX_ASSOCIATIONS} UDP associations, and no more")
        self._live += 1
        try:
            with self._open_socket(stream) as socket:
                self.dropped += socket.drop_queued()  # the client does not know the port yet, but a guest of the agent may have guessed it
                client = _Client(socket, OWN_LOOPBACK if stream.is_unix else stream.peer.host, request.port, self)
                async with self._associate(door="socks5", local=request.local, deliver=client.deliver) as datagrams:
                    door.accept(socket.local)
                    await stream.send_all(door.data_to_send())
                    await client.run(stream, datagrams)
        finally:
            self._live -= 1

    @contextmanager
    def _open_socket(self, stream: RawStream) -> Iterator[DatagramSocket]:
        try:
            socket = bind_datagrams(OWN_LOOPBACK if stream.is_unix else stream.local.host)
        except ListenError as error:
            raise Failure(Reason.LIMIT, detail=str(error)) from error
        address = socket.local
        try:
            try:
                self._own_ports.add(address)
            except StateError as error:
                raise Failure(Reason.INTERNAL, detail=str(error)) from error
            try:
                yield socket
            finally:
                self._own_ports.remove(address)
        finally:
            socket.close()


class _Client:
    """One association: the client's datagrams on `socket`, which come from `host`, and from `port` unless that is 0.

    With port 0 the first datagram that is well-formed says where the client is; nobody else is heard from then on.
    """

    def __init__(self, socket: DatagramSocket, host: str, port: int, counter: UdpDoor) -> None:
        self._socket = socket
        self._host = host
        self._port = port
        self._counter = counter
        self._address: SocketAddress | None = None

    async def run(self, stream: RawStream, datagrams: Datagrams) -> None:
        """Carry datagrams until `stream` ends, those included that came before its end; the socket is closed then."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._receive, datagrams)
                with suppress(*BROKEN):
                    while await stream.receive(EARLY_LIMIT):
                        pass
                tasks.cancel_scope.cancel()
            for _ in range(MAX_QUEUED // BURST):
                if not self._receive_burst(datagrams):
                    break
        finally:
            self._socket.close()

    def deliver(self, header: Hashable, payload: bytes) -> bool:
        """Send what a target answered, behind the header with which the client named it. False: it is lost."""
        assert isinstance(header, bytes)
        sent = False
        if self._address is not None:
            with suppress(OSError, anyio.ClosedResourceError):  # no way to the client now; or its association is just ending
                sent = self._socket.send_to(header + payload, self._address)
        self._counter.dropped += not sent
        return sent

    async def _receive(self, datagrams: Datagrams) -> None:
        def step() -> None:
            self._receive_burst(datagrams)

        await self._socket.on_readable(step)

    def _receive_burst(self, datagrams: Datagrams) -> bool:
        """Take what is here, a burst at most. False when there is no more."""
        taken = 0
        while taken < BURST:
            received = None
            with suppress(OSError):  # the kernel's word on a datagram that was sent
                received = self._socket.receive_from()
            if received is None:
                break
            self._pass_on(*received, datagrams)
            taken += 1
        datagrams.flush()
        return taken == BURST

    def _pass_on(self, data: bytes, sender: SocketAddress, datagrams: Datagrams) -> None:
        try:
            if not self._is_client(sender):
                raise RemoteProtocolError("a stranger's datagram")
            datagram = read_datagram(data)
        except RemoteProtocolError:
            self._counter.dropped += 1
            return
        self._address = sender
        datagrams.send(datagram.target, datagram.payload, key=datagram.header)

    def _is_client(self, sender: SocketAddress) -> bool:
        if self._address is not None:
            return sender == self._address
        address = host_port_of(sender)
        return address.host == self._host and self._port in (0, address.port)

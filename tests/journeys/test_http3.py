"""HTTP/3: QUIC is UDP that a browser speaks; client and server of aioquic, a static forward between them."""

import asyncio
import hashlib
import os
from collections import defaultdict
from pathlib import Path

import pytest
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent

from tests.journeys.certificates import tls_for
from tests.journeys.world import LOOPBACK, Trio, World

pytestmark = pytest.mark.real

BODY = os.urandom(300_000)
Headers = list[tuple[bytes, bytes]]


class _Http3(QuicConnectionProtocol):
    """Gathers the data of each stream, and hands it over at the stream's end."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.http = H3Connection(self._quic)
        self._data: dict[int, bytearray] = defaultdict(bytearray)

    def quic_event_received(self, event: QuicEvent) -> None:
        for part in self.http.handle_event(event):
            self._take(part)

    def _take(self, event: H3Event) -> None:
        if isinstance(event, DataReceived):
            self._data[event.stream_id] += event.data
        if isinstance(event, DataReceived | HeadersReceived) and event.stream_ended:
            self.ended(event.stream_id, bytes(self._data.pop(event.stream_id, b"")))

    def say(self, stream: int, headers: Headers, body: bytes) -> None:
        self.http.send_headers(stream, headers)
        self.http.send_data(stream, body, end_stream=True)
        self.transmit()

    def ended(self, stream: int, body: bytes) -> None:
        raise NotImplementedError


class _Server(_Http3):
    """Answers a request without content with BODY, any other with its SHA-256."""

    def ended(self, stream: int, body: bytes) -> None:
        self.say(stream, [(b":status", b"200")], hashlib.sha256(body).digest() if body else BODY)


class _Client(_Http3):
    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self._answers: dict[int, asyncio.Future[bytes]] = {}

    async def ask(self, method: bytes, body: bytes = b"") -> bytes:
        stream = self._quic.get_next_available_stream_id()
        self._answers[stream] = asyncio.get_running_loop().create_future()
        self.say(stream, [(b":method", method), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", b"/")], body)
        return await self._answers[stream]

    def ended(self, stream: int, body: bytes) -> None:
        self._answers[stream].set_result(body)


def _configurations(directory: Path) -> tuple[QuicConfiguration, QuicConfiguration]:
    """For a server called localhost, and for its client."""
    _, authority = tls_for("localhost", directory)
    key, _, certificate = (directory / "server.pem").read_text().partition("-----BEGIN CERTIFICATE-----")
    (directory / "key.pem").write_text(key)
    (directory / "certificate.pem").write_text(f"-----BEGIN CERTIFICATE-----{certificate}")
    server = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    server.load_cert_chain(directory / "certificate.pem", directory / "key.pem")
    client = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name="localhost")
    client.load_verify_locations(str(authority))
    return server, client


async def _journey(world: World, trio: Trio, directory: Path) -> None:
    for_server, for_client = _configurations(directory)
    server = await serve(LOOPBACK, 0, configuration=for_server, create_protocol=_Server)
    try:
        assert server._transport
        port = server._transport.get_extra_info("sockname")[1]
        forward = await asyncio.to_thread(world.forward, trio.walker, f"0:home.tuunel:{port}/udp")
        async with connect(LOOPBACK, forward.port, configuration=for_client, create_protocol=_Client) as client:
            assert isinstance(client, _Client)
            answers = await asyncio.gather(client.ask(b"GET"), client.ask(b"POST", BODY), client.ask(b"GET"))
        assert list(answers) == [BODY, hashlib.sha256(BODY).digest(), BODY]
    finally:
        server.close()


def test_http3_through_a_udp_forward(own_world: World, trio: Trio, tmp_path: Path) -> None:
    asyncio.run(asyncio.wait_for(_journey(own_world, trio, tmp_path), 60))

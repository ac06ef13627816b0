"""The Python clients that people use with a SOCKS proxy."""

import asyncio
import hashlib
import os
from collections.abc import Iterator

import aiohttp
import httpx
import pytest
import socks
from aiohttp_socks import ProxyConnector

from tests.journeys.targets import Site, answer_after_end, read_to_end, serving, web_site
from tests.journeys.world import LOOPBACK, Trio

pytestmark = pytest.mark.real

BODY = os.urandom(3_000_000)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with web_site({"/": ("application/octet-stream", BODY)}) as made:
        yield made


@pytest.mark.parametrize("kind", [socks.SOCKS5, socks.SOCKS4, socks.HTTP])
def test_pysocks(trio: Trio, kind: int) -> None:
    with serving(answer_after_end(BODY)) as target, socks.socksocket() as sock:
        sock.set_proxy(kind, LOOPBACK, trio.proxy.port, rdns=True)
        sock.settimeout(30)
        sock.connect(("home.tuunel", target.port))
        sock.sendall(b"the question")
        sock.shutdown(1)
        assert read_to_end(sock) == BODY
        assert target.noted() == [b"the question"]


@pytest.mark.parametrize("scheme", ["socks5h", "http"])
def test_httpx(trio: Trio, site: Site, scheme: str) -> None:
    with httpx.Client(proxy=f"{scheme}://{LOOPBACK}:{trio.proxy.port}", trust_env=False, timeout=30) as client:
        for _ in range(3):
            assert client.get(f"http://home.tuunel:{site.port}/").content == BODY
        assert client.post(f"http://home.tuunel:{site.port}/", content=BODY).text == hashlib.sha256(BODY).hexdigest()


def test_aiohttp_socks(trio: Trio, site: Site) -> None:
    async def fetch() -> list[bytes]:
        connector = ProxyConnector.from_url(f"socks5://{LOOPBACK}:{trio.proxy.port}", rdns=True)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(30)) as client:

            async def one() -> bytes:
                async with client.get(f"http://home.tuunel:{site.port}/") as answer:
                    return await answer.read()

            return await asyncio.gather(*(one() for _ in range(8)))

    assert asyncio.run(fetch()) == [BODY] * 8

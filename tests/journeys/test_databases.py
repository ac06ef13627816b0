"""psql and redis-cli: through SOCKS with proxychains4, and through static forwards."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.databases import Database, postgres, redis
from tests.journeys.peers import program
from tests.journeys.processes import run
from tests.journeys.world import LOOPBACK, Trio

pytestmark = pytest.mark.real

ROWS = 20_000
MANY_ROWS = f"select n, repeat('x', 100) from generate_series(1, {ROWS}) n"


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with postgres() as made:
        yield made


@pytest.fixture(scope="module")
def cache() -> Iterator[Database]:
    with redis() as made:
        yield made


@pytest.fixture
def chained(trio: Trio, tmp_path: Path) -> list[str]:
    """What is put before a command so that its connections go through the proxy, its names included."""
    config = tmp_path / "proxychains.conf"
    config.write_text(f"strict_chain\nproxy_dns\n[ProxyList]\nsocks5 {LOOPBACK} {trio.proxy.port}\n")
    return [program("proxychains4"), "-q", "-f", str(config)]


def psql(host: str, port: int) -> list[str]:
    settings = f"host={host} port={port} user=postgres dbname=postgres sslmode=disable connect_timeout=20"
    return [program("psql"), settings, "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--command"]


def assert_rows(out: bytes) -> None:
    assert out.splitlines() == [b"%d|%b" % (n, b"x" * 100) for n in range(1, ROWS + 1)]


def test_psql_through_socks(trio: Trio, database: Database, chained: list[str]) -> None:
    assert_rows(run([*chained, *psql("home.tuunel", database.port), MANY_ROWS]).stdout)


def test_redis_cli_through_socks(trio: Trio, cache: Database, chained: list[str]) -> None:
    command = [*chained, program("redis-cli"), "-h", "home.tuunel", "-p", str(cache.port)]
    assert run([*command, "-x", "set", "through:socks"], stdin=b"x" * 100_000).stdout == b"OK\n"
    assert run([*command, "get", "through:socks"]).stdout == b"x" * 100_000 + b"\n"

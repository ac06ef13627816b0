"""psql and redis-cli: through SOCKS with proxychains4, and through static forwards."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.databases import Database, postgres, redis
from tests.journeys.peers import program
from tests.journeys.processes import run
from tests.journeys.world import LOOPBACK, Trio, World, port_of

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


def test_psql_and_redis_cli_through_forwards(own_world: World, trio: Trio, database: Database, cache: Database) -> None:
    with own_world.forward(trio.walker, f"0:home.tuunel:{database.port}", f"0:home.tuunel:{cache.port}") as forward:
        assert_rows(run([*psql(LOOPBACK, forward.port), MANY_ROWS]).stdout)
        command = [program("redis-cli"), "-h", LOOPBACK, "-p", str(port_of(forward.listens[1]))]
        many = b"".join(b"SET key:%d %d\r\n" % (n, n) for n in range(5000))
        assert b"errors: 0, replies: 5000" in run([*command, "--pipe"], stdin=many).stdout
        assert run([*command, "get", "key:4999"]).stdout == b"4999\n"


def test_databases_on_unix_sockets_that_the_grant_names(own_world: World, trio: Trio, database: Database, cache: Database) -> None:
    """psql and libpq find a unix socket by its directory and the port in its name."""
    targets = [word for each in (database, cache) for word in ("--target", f"unix:{each.socket}")]
    laptop = own_world.laptop(trio.agent.new_invite(*targets))
    here = laptop.home / database.socket.name
    with own_world.forward(laptop, f"{here}:home.tuunel:unix:{database.socket}", f"0:home.tuunel:unix:{cache.socket}") as forward:
        assert_rows(run([*psql(str(laptop.home), database.port), MANY_ROWS]).stdout)
        assert run([program("redis-cli"), "-p", str(port_of(forward.listens[1])), "ping"]).stdout == b"PONG\n"

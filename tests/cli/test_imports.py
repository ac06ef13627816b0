"""No command imports what it does not use: start-up time is what people feel. One interpreter for each, asked what it has loaded."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from tests.cli.reference import commands
from tests.journeys.processes import clean_environment
from tuunel.cli.app import app

SCREEN = {"rich", "segno"}
NETWORK = {"anyio", "asyncio", "trio", "ssl", "h11", "tuunel.dial"}
STATE = {"sqlite3", "cryptography.x509"}
METRICS = {"prometheus_client"}
ROLES = {"tuunel.agent", "tuunel.proxy", "tuunel.forward", "tuunel.relay.server", "tuunel.netcat", "tuunel.demo", "tuunel.probe"}
TESTS_ONLY = {"httpx", "aiohttp", "websockets"}
HEAVY = SCREEN | NETWORK | STATE | METRICS | ROLES | TESTS_ONLY

ALL = [path.split()[1:] for path, _ in commands("tuunel", get_command(app)) if path != "tuunel nc"]
ASKING = [["status"], ["invite"], ["clients"], ["revoke", "x"], ["relay", "link"], ["relay", "devices"]]
KEEPING = [["devices"], ["rename", "a", "b"], ["forget", "a"], ["pair", "x"], ["setup", "ssh"], ["completion", "bash"], ["--version"]]

_PROBE = """
import json, sys
from tuunel.__main__ import run
try:
    run(sys.argv[1:])
except BaseException as error:
    print(repr(error), file=sys.stderr)
print("\\n" + json.dumps(list(sys.modules)))
"""


def loaded_by(home: Path, *words: str) -> set[str]:
    """The modules that a command has loaded when it ends, however it ends."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *words], env=clean_environment(TUUNEL_HOME=str(home)), capture_output=True, timeout=60, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("words", [[], *ALL], ids=" ".join)
def test_help_needs_neither_network_nor_screen_nor_keys(tmp_path: Path, words: list[str]) -> None:
    assert not loaded_by(tmp_path, *words, "--help") & (HEAVY | {"cryptography"})


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_a_command_that_asks_a_running_role_needs_a_socket_only(tmp_path: Path, words: list[str]) -> None:
    assert not loaded_by(tmp_path, *words) & HEAVY


@pytest.mark.parametrize("words", KEEPING, ids=" ".join)
def test_a_command_about_files_needs_no_network(tmp_path: Path, words: list[str]) -> None:
    assert not loaded_by(tmp_path, *words) & HEAVY


@pytest.mark.parametrize(
    ("words", "used"),
    [
        (["proxy", "--json", "--listen"], {"tuunel.proxy", "h11"}),
        (["relay", "serve", "--json", "--listen"], {"tuunel.relay.server", "sqlite3"}),
    ],
    ids=["proxy", "relay serve"],
)
def test_a_role_loads_itself_and_no_other_one_and_no_screen_that_is_not_drawn(tmp_path: Path, words: list[str], used: set[str]) -> None:
    """It is ended by the port that it cannot have, after everything has been imported."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        loaded = loaded_by(tmp_path, *words, f"127.0.0.1:{taken.getsockname()[1]}")
    assert used <= loaded
    assert not loaded & (SCREEN | METRICS | TESTS_ONLY | {"trio"} | (ROLES - used))

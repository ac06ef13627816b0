"""`tuunel doctor` beside running roles, and under clocks that are wrong."""

import json
from typing import Any

import pytest

from tests.journeys.peers import program
from tests.journeys.processes import run, tuunel_argv
from tests.journeys.world import Machine, Trio

pytestmark = pytest.mark.real


def examined(machine: Machine, *before: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit code, and what each check says."""
    environment = {**machine.env, "HOME": str(machine.home)}  # not that of who runs the tests, whose clients may be set up
    done = run([*before, *tuunel_argv("doctor", "--json")], environment, check=False)
    found: dict[str, list[dict[str, Any]]] = {}
    for each in json.loads(done.stdout)["checks"]:
        found.setdefault(each["check"], []).append(each)
    return done.returncode, found


def test_every_machine_of_a_healthy_world_is_well(trio: Trio) -> None:
    for machine, role in ((trio.relay.machine, "relay"), (trio.agent.machine, "agent"), (trio.laptop, "proxy")):
        code, found = examined(machine)
        assert not [each for checks in found.values() for each in checks if each["state"] != "ok" and each["check"] != "port"]
        assert (code, f"{role} runs" in found["roles"][0]["what"]) == (0, True)


def test_a_client_that_was_told_of_another_port(trio: Trio) -> None:
    trio.laptop.tuunel("setup", "curl", "--write")
    written = trio.laptop.home / "curlrc"
    try:
        assert examined(trio.laptop)[1]["clients"][0]["state"] == "ok"
        written.write_text(written.read_text().replace(str(trio.proxy.port), "1"))
        (found,) = examined(trio.laptop)[1]["clients"]
        assert (found["state"], found["fix"]) == ("warning", "tuunel setup curl --write")
    finally:
        trio.laptop.tuunel("setup", "curl", "--undo")


@pytest.mark.parametrize(
    ("shift", "state", "said"), [("+5m", "warning", "ahead of"), ("-20m", "wrong", "behind"), ("+200d", "wrong", "not valid")]
)
def test_a_clock_that_is_wrong(trio: Trio, shift: str, state: str, said: str) -> None:
    code, found = examined(trio.laptop, program("faketime"), "-f", shift)
    (clock,) = found["clock"]
    assert (clock["state"], code) == (state, int(state == "wrong"))
    assert said in clock["what"]
    assert "timedatectl" in clock["fix"]


def test_a_key_that_was_exchanged_under_a_running_proxy_and_a_relay_that_is_gone(own_trio: Trio) -> None:
    key = own_trio.laptop.home / "identity.pem"
    key.write_bytes((own_trio.agent.machine.home / "identity.pem").read_bytes())
    code, found = examined(own_trio.laptop)
    assert code == 1
    assert "but the key on disk is that of" in found["roles"][0]["what"]
    own_trio.relay.process.kill()
    own_trio.agent.process.told("relay")
    code, found = examined(own_trio.agent.machine)
    assert (code, found["relay"][0]["state"]) == (1, "wrong")
    assert "tuunel relay serve" in found["relay"][0]["fix"]

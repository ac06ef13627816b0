"""ping, why, bench and verify with real processes: each fault is told at its hop, by who says so, with the exit code of its family."""

import json
import re
import signal
import subprocess
from typing import Any

import pytest

from tests.journeys.processes import DEADLINE, Running, tuunel_argv, until
from tests.journeys.targets import closed_port, echo, serving
from tests.journeys.world import Machine, Relay, Trio, World
from tuunel.errors import ANSWERS, NotRunning, Reason

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


def ask(machine: Machine, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run a command with --json: its exit code and its document."""
    done = machine.tuunel(*arguments, "--json", check=False)
    assert done.stdout.count(b"\n") == 1, done.stderr
    return done.returncode, json.loads(done.stdout)


def broken_at(machine: Machine, host: str, port: int) -> tuple[str, str, str]:
    """Where `why` finds the way broken: the hop, the reason, and who says so. The exit code is the reason's."""
    code, document = ask(machine, "why", host, str(port))
    assert not document["works"]
    last = document["hops"][-1]
    assert last["ok"] is False
    assert all(hop["ok"] is not False for hop in document["hops"][:-1])
    assert code == document["error"]["exit"] == ANSWERS[Reason(document["error"]["reason"])].exit
    assert document["error"]["advice"]
    return last["hop"], document["error"]["reason"], document["error"]["speaker"]


class TestWhy:
    def test_all_works(self, trio: Trio) -> None:
        with serving(echo) as target:
            code, document = ask(trio.laptop, "why", f"home.tuunel:{target.port}")
        assert code == 0
        assert document["works"]
        assert [hop["hop"] for hop in document["hops"]][:2] == ["proxy", "name"]
        assert all(hop["ok"] for hop in document["hops"])

    def test_what_a_person_reads(self, trio: Trio) -> None:
        done = trio.laptop.tuunel("why", f"home:{closed_port()}", check=False)
        assert done.returncode == ANSWERS[Reason.CONNECTION_REFUSED].exit
        lines = done.stdout.decode().splitlines()
        assert [line.split()[:2] for line in lines[:2]] == [["ok", "proxy"], ["ok", "name"]]
        assert re.match(r"FAIL target +[0-9.]+ ms  the agent says CONNECTION_REFUSED: ", lines[-2])
        assert lines[-1].strip() == ANSWERS[Reason.CONNECTION_REFUSED].advice
        assert done.stderr == b""

    def test_no_proxy_runs(self, trio: Trio) -> None:
        with serving(echo) as target:
            code, document = ask(trio.walker, "why", f"home.tuunel:{target.port}")
        assert code == NotRunning.exit_code == document["error"]["exit"]
        assert [hop["ok"] for hop in document["hops"]] == [None] + [True] * (len(document["hops"]) - 1)

    @pytest.mark.parametrize(
        ("host", "port", "hop", "reason", "speaker"),
        [
            ("hone.tuunel", 80, "name", Reason.UNKNOWN_NAME, "local"),
            ("no-such-host.invalid.home.tuunel", 80, "lookup", Reason.NAME_NOT_RESOLVED, "agent"),
            ("169.254.169.254.home.tuunel", 80, "policy", Reason.POLICY_DENIED, "agent"),
        ],
    )
    def test_names_and_policy(self, trio: Trio, host: str, port: int, hop: str, reason: Reason, speaker: str) -> None:
        for machine in (trio.laptop, trio.walker):
            assert broken_at(machine, host, port) == (hop, reason, speaker)

    def test_a_typo_is_answered_with_the_nearest_name(self, trio: Trio) -> None:
        done = trio.walker.tuunel("why", "hone:22", check=False)
        assert b"did you mean 'home'" in done.stdout

    def test_a_target_that_refuses(self, trio: Trio) -> None:
        assert broken_at(trio.walker, "home.tuunel", closed_port()) == ("target", Reason.CONNECTION_REFUSED, "agent")

    def test_a_machine_that_is_not_admitted(self, own_world: World, trio: Trio) -> None:
        stranger = own_world.machine()
        stranger.tuunel("devices", "add", trio.agent.device_id, "--relay", trio.relay.new_link(), "--name", "home")
        assert broken_at(stranger, "home.tuunel", 22) == ("device", Reason.PEER_UNAVAILABLE, "relay")

    def test_a_machine_whose_access_was_taken_back(self, own_world: World, trio: Trio) -> None:
        quitter = own_world.machine()
        quitter.tuunel("devices", "add", trio.agent.device_id, "--relay", trio.relay.new_link(), "--name", "home")
        quitter.tuunel("pair", trio.agent.new_invite("--name", "quitter"), "--name", "home")
        trio.agent.machine.ask("revoke", "quitter")
        assert broken_at(quitter, "home.tuunel", 22) == ("admission", Reason.POLICY_REVOKED, "agent")

    def test_a_machine_that_the_relay_bans(self, own_world: World, trio: Trio) -> None:
        banned = own_world.laptop(trio.agent.new_invite("--name", "banned"))
        trio.relay.machine.ask("relay", "revoke", banned.ask("devices")["device_id"])
        assert broken_at(banned, "home.tuunel", 22) == ("login", Reason.DEVICE_BANNED, "relay")

    def test_a_machine_that_is_enrolled_nowhere(self, own_world: World, trio: Trio) -> None:
        assert broken_at(own_world.machine(), f"{trio.agent.device_id}.tuunel", 22) == ("enrolment", Reason.NOT_PAIRED, "local")

    def test_the_way_itself(self, own_trio: Trio) -> None:
        """Agent offline, relay down, and another relay in its place."""
        laptop, relay = own_trio.laptop, own_trio.relay
        own_trio.agent.process.stop()
        assert broken_at(laptop, "home.tuunel", 22) == ("device", Reason.PEER_UNAVAILABLE, "relay")
        relay.process.stop()
        assert broken_at(laptop, "home.tuunel", 22) == ("relay", Reason.RELAY_UNREACHABLE, "local")
        code, document = ask(laptop, "ping", "home", "--count", "1")
        assert code == ANSWERS[Reason.RELAY_UNREACHABLE].exit
        assert (document["answered"], document["error"]["reason"]) == (0, Reason.RELAY_UNREACHABLE)
        impostor(own_trio.world, relay)
        assert broken_at(laptop, "home.tuunel", 22) == ("pin", Reason.RELAY_UNTRUSTED, "local")
        code, document = ask(laptop, "ping", "home")
        assert (code, len(document["rounds"])) == (ANSWERS[Reason.RELAY_UNTRUSTED].exit, 1), "an alarm is not asked twice"

    def test_other_names_say_how_they_would_go(self, trio: Trio) -> None:
        with serving(echo) as target:
            code, document = ask(trio.laptop, "why", f"127.0.0.1:{target.port}")
        assert code == 0
        assert [hop["hop"] for hop in document["hops"]] == ["proxy", "route", "target"]
        assert "through no device" in document["hops"][1]["said"]

    @pytest.mark.parametrize("arguments", [["home"], ["home", "0"], ["home", "port"], ["home:22", "22"]])
    def test_what_cannot_be_meant(self, trio: Trio, arguments: list[str]) -> None:
        assert trio.walker.tuunel("why", *arguments, check=False).returncode == 2


def impostor(world: World, relay: Relay) -> None:
    world.relay(port=relay.port)


class TestPing:
    def test_three_parts_and_their_figures(self, trio: Trio) -> None:
        code, document = ask(trio.walker, "ping", "home.tuunel", "--count", "2")
        assert code == 0
        assert (document["name"], document["sent"], document["answered"], document["loss"]) == ("home", 2, 2, 0.0)
        for part in ("proxy_relay", "relay_agent", "end_to_end"):
            assert all(0 < each[part] < 30 for each in document["rounds"])
            figures = document[part]
            assert figures["min"] <= figures["avg"] <= figures["max"]

    def test_ctrl_c_shows_the_summary(self, trio: Trio) -> None:
        with Running(tuunel_argv("ping", "home"), trio.walker.env) as process:
            assert process.line().startswith("PING home, ")
            assert re.fullmatch(r"seq=1 proxy-relay=[0-9.]+ relay-agent=[0-9.]+ end-to-end=[0-9.]+ ms path=relay", process.line())
            process.signal(signal.SIGINT)
            assert process.wait() == 0
            rest = process.rest()
        assert "1 answered, 0% lost" in rest
        assert rest.count("min/avg/max/mdev") == 3

    def test_a_reader_that_has_seen_enough_ends_it_without_a_word(self, trio: Trio) -> None:
        argv = tuunel_argv("ping", "home")
        with subprocess.Popen(argv, env=trio.walker.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stderr
            process.stdout.readline()
            process.stdout.close()
            assert process.wait(DEADLINE) == 1
            assert process.stderr.read() == b""

    def test_an_agent_that_goes_and_comes_back(self, own_trio: Trio) -> None:
        with Running(tuunel_argv("ping", "home"), own_trio.laptop.env) as process:
            until(lambda: "end-to-end" in process.line(), "an answer")
            own_trio.agent.process.kill()
            until(lambda: "no answer: " in process.line(), "an outage")
            own_trio.world.agent(None, machine=own_trio.agent.machine)
            until(lambda: "end-to-end" in process.line(), "another answer")
            process.signal(signal.SIGTERM)
            assert process.wait() == 0

    def test_nobody_answers(self, own_trio: Trio) -> None:
        own_trio.agent.process.stop()
        done = own_trio.laptop.tuunel("ping", "home", "--count", "1", check=False)
        assert done.returncode == ANSWERS[Reason.PEER_UNAVAILABLE].exit
        assert b"no answer: the relay says PEER_UNAVAILABLE" in done.stdout
        assert ANSWERS[Reason.PEER_UNAVAILABLE].advice.encode() in done.stderr

    def test_a_name_that_is_not_known(self, trio: Trio) -> None:
        for command in (["ping", "--count", "1"], ["bench"], ["verify"]):
            code, document = ask(trio.walker, command[0], "hone", *command[1:])
            assert code == document["error"]["exit"] == ANSWERS[Reason.UNKNOWN_NAME].exit
            assert "home" in document["error"]["message"]


def test_bench_measures_both_directions(trio: Trio) -> None:
    code, document = ask(trio.walker, "bench", "home", "--seconds", "0.3")
    assert code == 0
    (path,) = document["paths"]
    assert path["path"] == "relay"
    for way in ("up", "down"):
        assert path[way]["bytes"] > 0
        assert path[way]["bytes_per_second"] == path[way]["bytes"] / path[way]["seconds"]
    assert path["idle"]["min"] > 0


def test_verify_is_the_same_on_both_machines_and_for_no_other_pair(own_world: World, trio: Trio) -> None:
    client = own_world.laptop(trio.agent.new_invite("--name", "ann"))
    ours = client.ask("verify", "home")
    theirs = trio.agent.machine.ask("verify", "ann")
    assert (ours["kind"], theirs["kind"]) == ("device", "client")
    assert ours["digits"] == theirs["digits"]
    assert re.fullmatch(r"[0-9]{5}( [0-9]{5}){7}", ours["digits"])
    assert ours["digits"] == client.ask("verify", trio.agent.device_id)["digits"]
    assert ours["digits"] != trio.walker.ask("verify", "home")["digits"]
    done = client.tuunel("verify", "home.tuunel")
    assert done.stdout.decode().strip() == ours["digits"]
    assert "the device home\n" in done.stderr.decode()

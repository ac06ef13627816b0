"""What a new user gets wrong first: two lines, what happened and the remedy, and the exit code that the reference promises."""

import shlex
import sys
from pathlib import Path

import pytest

from tests.journeys.peers import network_namespaces, program
from tests.journeys.processes import DEADLINE, run, tuunel_argv
from tests.journeys.targets import closed_port
from tests.journeys.world import LOOPBACK, Machine, Trio, World, make_trio
from tuunel.errors import ANSWERS, ListenError, NotRunning, Reason, StateError, UsageError

pytestmark = pytest.mark.real

NOBODY = 65534


def exit_of(what: Reason | type[Exception]) -> int:
    """The exit code that the reference gives to a failure."""
    return ANSWERS[what].exit if isinstance(what, Reason) else what.exit_code  # type: ignore[attr-defined]


def told(
    machine: Machine, what: Reason | type[Exception], *words: str, before: tuple[str, ...] = (), stdin: bytes = b""
) -> tuple[str, str]:
    """Run a command that fails as `what`; returns what it said happened, and the remedy: one line each, and nothing else."""
    done = run([*before, *tuunel_argv(*words)], machine.env, check=False, deadline=DEADLINE)
    said = done.stderr.decode()
    assert done.returncode == exit_of(what), said
    assert done.stdout == b""
    happened, remedy = said.splitlines()
    assert happened.startswith("tuunel: ")
    assert remedy.startswith(" " * 8)
    return happened, remedy.strip()


@pytest.fixture
def newcomer(own_world: World) -> Machine:
    """A machine on which nothing has been set up."""
    return own_world.machine()


class TestLinks:
    """Links and invites are copied by hand, and go wrong in the ways that hands go wrong."""

    @pytest.fixture
    def invite(self, trio: Trio) -> str:
        return trio.agent.new_invite()

    def test_no_quotes_and_the_shell_cuts_it_at_the_first_ampersand(self, newcomer: Machine, invite: str) -> None:
        happened, remedy = told(newcomer, UsageError, "pair", invite.partition("&")[0])
        assert "cut short" in happened
        assert "single quotes" in remedy

    def test_a_typo(self, newcomer: Machine, invite: str) -> None:
        happened, remedy = told(newcomer, UsageError, "pair", invite[:-1] + ("a" if invite[-1] != "a" else "b"))
        assert "typo" in happened
        assert "copy it again" in remedy

    def test_the_invite_is_given_to_the_agent_and_the_link_to_pair(self, newcomer: Machine, trio: Trio, invite: str) -> None:
        assert "tuunel pair" in told(newcomer, UsageError, "agent", invite)[1]
        assert "tuunel agent" in told(newcomer, UsageError, "pair", trio.relay.new_link())[1]

    def test_somebody_else_has_used_the_invite(self, newcomer: Machine, trio: Trio, invite: str) -> None:
        trio.world.laptop(invite)
        happened, remedy = told(newcomer, Reason.ENROLMENT_REQUIRED, "pair", invite, "--name", "home")
        assert happened.startswith("tuunel: the relay says ")
        assert "tuunel invite" in remedy
        trio.walker.ask("devices")
        assert "tuunel invite" in told(trio.walker, Reason.INVITE_INVALID, "pair", invite, "--name", "again")[1]


class TestNames:
    def test_no_device_is_known_yet(self, newcomer: Machine) -> None:
        assert "tuunel pair" in told(newcomer, Reason.UNKNOWN_NAME, "nc", "home", "22")[0]

    def test_a_typo_is_answered_with_the_nearest_name(self, trio: Trio) -> None:
        assert "did you mean 'home'" in told(trio.walker, Reason.UNKNOWN_NAME, "nc", "hoem", "22")[0]

    def test_the_suffix_is_missing(self, trio: Trio) -> None:
        assert ".tuunel" in told(trio.walker, UsageError, "nc", "nas.home", "22")[1]

    def test_a_forward_without_a_destination(self, trio: Trio) -> None:
        happened, remedy = told(trio.walker, UsageError, "forward", "8080")
        assert "'8080'" in happened
        assert "home.tuunel" in remedy


class TestClocks:
    """A wrong clock is told as a wrong clock, and not as an attack that the person should fear."""

    @pytest.mark.parametrize(
        ("shift", "what"),
        [("+2d", Reason.TUNNEL_LOST), ("+400d", Reason.RELAY_UNTRUSTED), ("-400d", Reason.RELAY_UNTRUSTED)],
    )
    def test_the_remedy_is_to_set_it(self, trio: Trio, shift: str, what: Reason) -> None:
        _, remedy = told(trio.walker, what, "nc", "home", "1", before=(program("faketime"), "-f", shift))
        assert "clock" in remedy


class TestPlacesToListen:
    def test_another_program_has_the_port(self, trio: Trio, newcomer: Machine) -> None:
        port = trio.proxy.port
        commands = ["proxy", "--listen", f"{LOOPBACK}:{port}"], ["relay", "serve", "--listen", f"{LOOPBACK}:{port}"]
        for machine, words in (*((newcomer, words) for words in commands), (trio.walker, ["forward", f"{port}:home.tuunel:22"])):
            assert "choose another port" in told(machine, ListenError, *words)[1]

    def test_an_address_of_another_machine(self, newcomer: Machine) -> None:
        assert "does not have that address" in told(newcomer, ListenError, "relay", "serve", "--listen", "192.0.2.1:0")[1]

    def test_an_open_proxy_is_refused(self, newcomer: Machine) -> None:
        assert "--auth" in told(newcomer, UsageError, "proxy", "--listen", "0.0.0.0:0")[1]

    def test_a_second_agent_of_one_home(self, trio: Trio) -> None:
        happened, remedy = told(trio.agent.machine, ListenError, "agent")
        assert "already running" in happened
        assert "TUUNEL_HOME" in remedy

    def test_what_is_asked_does_not_run(self, newcomer: Machine) -> None:
        assert "tuunel agent" in told(newcomer, NotRunning, "invite")[1]
        assert "tuunel relay serve" in told(newcomer, NotRunning, "relay", "link")[1]


class TestState:
    @pytest.fixture
    def used(self, newcomer: Machine) -> Machine:
        newcomer.tuunel("devices")
        return newcomer

    def test_a_key_that_others_could_read(self, used: Machine) -> None:
        (used.home / "identity.pem").chmod(0o644)
        assert told(used, StateError, "devices")[1] == f"chmod 600 '{used.home}/identity.pem'"

    def test_a_directory_where_others_could_write(self, used: Machine) -> None:
        used.home.chmod(0o777)
        assert told(used, StateError, "devices")[1] == f"chmod 700 '{used.home}'"

    def test_a_file_that_was_cut(self, used: Machine) -> None:
        (used.home / "devices.json").write_text("{")
        (used.home / "devices.json").chmod(0o600)
        assert "backup" in told(used, StateError, "devices")[1]

    def test_the_disk_is_read_only_or_full(self, used: Machine) -> None:
        network_namespaces()  # where these can be made, so can mounts
        home = shlex.quote(str(used.home))
        read_only = f'mount --bind {home} {home} && mount -o remount,ro,bind {home} && exec "$@"'
        full = f'mount -t tmpfs -o size=4k,mode=700 tmpfs {home} && head -c 4096 /dev/zero > {home}/full && exec "$@"'
        private = (program("unshare"), "--mount", "sh", "-c")
        assert "writable" in told(used, StateError, "proxy", "--listen", f"{LOOPBACK}:0", before=(*private, read_only, "sh"))[1]
        assert "make room" in told(used, StateError, "devices", before=(*private, full, "sh"))[1]

    def test_it_belongs_to_another_user(self, used: Machine) -> None:
        network_namespaces()  # only root can become somebody else
        used.home.chmod(0o755)
        twice = f"import os, sys; from tuunel.__main__ import main; main(); os.setresuid({NOBODY}, {NOBODY}, {NOBODY}); sys.exit(main())"
        done = run([sys.executable, "-c", twice, "devices"], used.env, check=False)  # once as the owner: all is imported then
        assert done.returncode == StateError.exit_code
        assert b"TUUNEL_HOME" in done.stderr.splitlines()[-1]

    def test_cryptography_has_no_ml_kem(self, used: Machine) -> None:
        without = "import sys; sys.modules['cryptography.hazmat.primitives.asymmetric.mlkem'] = None; from tuunel.__main__ import main"
        done = run([sys.executable, "-c", f"{without}; sys.argv[1:] = ['devices']; sys.exit(main())"], used.env, check=False)
        assert done.returncode == StateError.exit_code
        assert b"pip install" in done.stderr.splitlines()[1]


def test_agent_relay_and_then_another_relay_in_its_place(own_world: World) -> None:
    trio = make_trio(own_world)
    walker, port = trio.walker, trio.relay.port
    trio.agent.process.stop()
    happened, remedy = told(walker, Reason.PEER_UNAVAILABLE, "nc", "home", "22")
    assert happened.startswith("tuunel: the relay says ")
    assert "tuunel agent" in remedy
    trio.relay.process.stop()
    assert "tuunel relay serve" in told(walker, Reason.RELAY_UNREACHABLE, "nc", "home", "22")[1]
    own_world.relay(port=port)
    assert "new link" in told(walker, Reason.RELAY_UNTRUSTED, "nc", "home", "22")[1]


def test_the_target_is_not_there(trio: Trio) -> None:
    happened, remedy = told(trio.walker, Reason.CONNECTION_REFUSED, "nc", "home", str(closed_port()))
    assert happened.startswith("tuunel: the agent says ")
    assert "service runs" in remedy


def test_state_lies_where_the_message_says(newcomer: Machine, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    done = run(tuunel_argv("proxy"), newcomer.env | {"TUUNEL_HOME": str(deep)}, check=False)
    assert done.returncode == StateError.exit_code
    assert done.stderr.splitlines()[1].strip() == b"set TUUNEL_HOME to a shorter path"

"""The TAB key: what real shells are told, from this machine's own files."""

import hmac
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.journeys.peers import program
from tests.journeys.processes import until
from tuunel.address import HostPort
from tuunel.cli import app, completion
from tuunel.devices import Devices
from tuunel.grants import Grants
from tuunel.identity import IdentityKey
from tuunel.links import RelayLink, invite_id, invite_proof_key
from tuunel.settings import Home


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A machine that knows two devices, and lets one client in."""
    monkeypatch.setenv("TUUNEL_HOME", str(tmp_path))
    made = Home(tmp_path)
    made.ensure()
    book = Devices(made.devices_file)
    book.remember_relay(RelayLink(HostPort("relay.example", 7443), bytes(32)), enrolled=True)
    for number, name in enumerate(("home", "homelab"), 1):
        book.add(name, IdentityKey.from_private_value(number).device_id, bytes(32))
    return made


def test_names_come_from_the_books() -> None:
    assert completion.device_names("") == ["home", "homelab"]
    assert completion.device_names("homel") == ["homelab"]
    assert completion.device_names("x") == []
    assert completion.ways_for_others("via:homel") == ["via:homelab"]
    assert completion.ways_for_others("d") == ["direct"]
    assert completion.routes("*.lab=h") == ["*.lab=home", "*.lab=homelab"]
    assert completion.routes("*.lab") == []


def test_a_clients_name_that_a_shell_could_misread_is_not_offered(home: Home) -> None:
    grants, transcript = Grants(home.grants_file), bytes(32)
    for number, name in enumerate(("bob", "$(reboot)", "a b"), 10):
        secret, device = bytes([number]) * 16, IdentityKey.from_private_value(number).device_id
        grants.make_invite(secret, ("*",), uses=1, expires=2**33, name=name, now=0, access=None)
        proof = hmac.digest(invite_proof_key(secret), transcript, "sha256")
        grants.redeem(invite_id(secret), proof, transcript, device, label="", now=0)
    assert len(grants.grants(0)) == 3
    assert completion.client_names("") == ["bob"]
    assert completion.peer_names("b") == ["bob"]


def test_a_damaged_book_completes_nothing(home: Home) -> None:
    home.devices_file.write_text("damaged")
    assert completion.device_names("") == []


@pytest.mark.parametrize("shell", completion.Shell)
def test_the_script_is_one_that_the_shell_can_read(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert completion.VARIABLE in script
    if shell == "bash":
        subprocess.run([program("bash"), "-n"], input=script.encode(), check=True, timeout=30)


BASH = r"""
eval "$(tuunel completion bash)"
ask() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    $(complete -p tuunel | sed 's/.*-F \([^ ]*\).*/\1/') tuunel
    echo "${COMPREPLY[*]}"
}
ask tuunel dev
ask tuunel forget ''
ask tuunel rename homel
ask tuunel nc h
ask tuunel proxy --other via:
ask tuunel setup f
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where `tuunel` is this one, and no name server can be asked: the network of the process is empty where that can be made."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "tuunel"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m tuunel "$@"\n')
    script.chmod(0o755)
    return {"PATH": f"{script.parent}:{os.environ['PATH']}", "TUUNEL_HOME": str(tmp_path), "HOME": str(tmp_path), "TERM": "xterm"}


@pytest.mark.real
def test_a_real_bash_completes_commands_options_and_devices(environment: dict[str, str]) -> None:
    done = subprocess.run([program("bash"), "--norc"], input=BASH, capture_output=True, text=True, env=environment, timeout=60, check=True)
    assert done.stdout.splitlines() == ["devices", "home homelab", "homelab", "home homelab", "via:home via:homelab", "firefox"]
    assert done.stderr == ""


@pytest.mark.real
def test_nothing_is_asked_over_a_network_and_nothing_slow_is_started(environment: dict[str, str]) -> None:
    code = (
        "import sys; from tuunel.__main__ import main; sys.argv = ['tuunel']\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)\n"
    )
    own = environment | {"_TUUNEL_COMPLETE": "complete_bash", "COMP_WORDS": "tuunel forget homel", "COMP_CWORD": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own, timeout=60, check=True)
    assert done.stdout == "homelab\n"
    assert not {"anyio", "asyncio", "ssl", "rich", "tuunel.dial", "tuunel.proxy"} & set(done.stderr.split())


@pytest.mark.real
def test_a_real_fish_completes_devices(environment: dict[str, str]) -> None:
    script = "tuunel completion fish | source; complete -C 'tuunel forget homel'"
    done = subprocess.run([program("fish"), "-N", "-c", script], capture_output=True, text=True, env=environment, timeout=60, check=True)
    assert done.stdout.split() == ["homelab"]


@pytest.mark.real
def test_a_real_zsh_completes_devices(environment: dict[str, str], tmp_path: Path) -> None:
    """Typed into a terminal, as zsh completes nowhere else."""
    folder = tempfile.mkdtemp(prefix="tuuzsh", dir="/tmp")  # the path of a unix socket is limited
    tmux = [program("tmux"), "-S", f"{folder}/tmux", "-f", "/dev/null"]
    (tmp_path / ".zshrc").write_text("autoload -Uz compinit; compinit -u\neval \"$(tuunel completion zsh)\"\nPS1='ready> '\n")

    def screen() -> str:
        return subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, env=environment, timeout=30, check=True).stdout

    def wait_for(text: str) -> None:
        until(lambda: text in screen(), text, 60, 0.1)

    subprocess.run([*tmux, "new-session", "-d", "-x", "80", "-y", "24", program("zsh")], env=environment, timeout=30, check=True)
    try:
        wait_for("ready>")
        subprocess.run([*tmux, "send-keys", "tuunel forget homel", "Tab"], env=environment, timeout=30, check=True)
        wait_for("tuunel forget homelab")
    finally:
        subprocess.run([*tmux, "kill-server"], env=environment, timeout=30, check=False)
        shutil.rmtree(folder)

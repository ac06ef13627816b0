"""`tuunel setup`: what it prints for each client, where it writes it, and what it says about it."""

import os
import shlex
import socket
import sys
from pathlib import Path
from threading import Thread

import pytest

from tuunel.cli import app, clientconfig
from tuunel.cli.clientconfig import Client, desktop_entry, env_lines, own_command, ssh_lines
from tuunel.errors import NotRunning, StateError, UsageError
from tuunel.settings import Home

RUNNING = {"listen": ["127.0.0.1:4321", "[::1]:4321"]}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUUNEL_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "GIT_CONFIG_GLOBAL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clientconfig, "ask_role", lambda *_: RUNNING)
    monkeypatch.setattr(clientconfig, "pac_script", lambda: "var proxy;\n")


@pytest.fixture
def chromium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An executable of that name, first on the PATH."""
    program = tmp_path / "bin" / "chromium"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return program


@pytest.fixture
def profile(home: Path) -> Path:
    place = home / ".mozilla" / "firefox"
    (place / "abc.default").mkdir(parents=True)
    (place / "profiles.ini").write_text("[Profile0]\nName=default\nIsRelative=1\nPath=abc.default\nDefault=1\n")
    return place / "abc.default"


def written(home: Path, client: Client) -> list[Path]:
    """Every file of this client."""
    return {
        Client.SSH: [home / ".ssh" / "config"],
        Client.GIT: [home / ".gitconfig", home / "state" / "gitconfig"],
        Client.CURL: [home / "state" / "curlrc"],
        Client.FIREFOX: [home / ".mozilla" / "firefox" / "abc.default" / "user.js"],
        Client.CHROMIUM: [home / ".local" / "share" / "applications" / "tuunel-chromium.desktop"],
        Client.PAC: [home / "state" / "proxy.pac"],
        Client.ENV: [home / "state" / "env.sh"],
    }[client]


@pytest.mark.usefixtures("running", "chromium", "profile")
@pytest.mark.parametrize("client", Client)
def test_each_is_printed_written_once_and_taken_out_again(home: Path, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["setup", client]) == 0
    out, errors = capsys.readouterr()
    assert out.strip()
    assert errors == ""
    files = written(home, client)
    assert not any(file.exists() for file in files)
    assert app.main(["setup", client, "--write"]) == 0
    content = [file.read_bytes() for file in files]
    told = capsys.readouterr()
    assert told.out == ""
    assert "next" in told.err
    assert app.main(["setup", client, "--write"]) == 0
    assert [file.read_bytes() for file in files] == content
    assert "has it already" in capsys.readouterr().err
    assert app.main(["setup", client, "--undo"]) == 0
    assert not any(file.exists() for file in files)
    assert "taken out of" in capsys.readouterr().err
    assert app.main(["setup", client, "--undo"]) == 0
    assert "nothing of tuunel" in capsys.readouterr().err


@pytest.mark.parametrize("client", ["ssh", "git", "curl", "env"])
def test_nothing_has_to_run_to_take_it_out(client: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["setup", client, "--write"]) == 0
    capsys.readouterr()
    assert app.main(["setup", client, "--undo"]) == 0
    assert "assuming" not in capsys.readouterr().err


def test_write_and_undo_exclude_each_other() -> None:
    assert app.main(["setup", "ssh", "--write", "--undo"]) == UsageError.exit_code


def test_a_file_that_cannot_be_written_is_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / ".ssh").write_text("")  # a file where the directory should be: not even root can write below it
    assert app.main(["setup", "ssh", "--write"]) == StateError.exit_code
    assert str(home / ".ssh" / "config") in capsys.readouterr().err


def test_ssh_gets_absolute_paths_and_its_home() -> None:
    host, command, everything = ssh_lines().splitlines()
    assert (host, everything) == ("Host *.tuunel *.tuunel.", "Host *")
    words = shlex.split(command)
    assert words[0] == "ProxyCommand"
    assert Path(words[1]).is_absolute()
    assert words[2] == f"TUUNEL_HOME={os.environ['TUUNEL_HOME']}"
    assert Path(words[3]).is_absolute()
    assert words[-3:] == ["nc", "%h", "%p"]


def test_ssh_gets_no_home_where_none_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUUNEL_HOME")
    assert "TUUNEL_HOME" not in ssh_lines()
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    assert "TUUNEL_HOME=/elsewhere/tuunel " in ssh_lines()


def test_a_path_with_percent_and_space_reaches_ssh_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUUNEL_HOME", "/a 100% place")
    assert "'TUUNEL_HOME=/a 100%% place'" in ssh_lines()


def test_the_program_that_runs_is_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "tuunel"
    script.write_text("")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert own_command() == [str(script)]
    monkeypatch.setattr(sys, "argv", ["/somewhere/tuunel/__main__.py"])
    assert own_command() == [str(Path(sys.executable).with_name("tuunel"))]
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert own_command() == [str(tmp_path / "bin" / "python"), "-P", "-m", "tuunel"]


def test_ssh_is_told_of_a_file_that_it_would_not_read(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert app.main(["setup", "ssh", "--write"]) == 0
    assert f"ssh -F {home / '.ssh' / 'config'} NAME.tuunel" in capsys.readouterr().err


def test_the_shell_gets_socks_that_leaves_names_to_the_proxy(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["setup", "env"]) == 0
    out, errors = capsys.readouterr()
    assert "export ALL_PROXY=socks5h://localhost:1080 all_proxy=socks5h://localhost:1080" in out
    assert "assuming localhost:1080" in errors
    assert out == env_lines("localhost:1080")


@pytest.mark.parametrize(
    ("listens", "used"), [("127.0.0.1:4321", "127.0.0.1:4321"), ("0.0.0.0:4321", "127.0.0.1:4321"), ("[::]:4321", "[::1]:4321")]
)
def test_the_port_is_that_of_the_running_proxy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], listens: str, used: str
) -> None:
    monkeypatch.setattr(clientconfig, "ask_role", lambda *_: {"listen": [listens]})
    assert app.main(["setup", "env"]) == 0
    assert f"http_proxy=http://{used}" in capsys.readouterr().out


def test_the_pac_script_is_the_one_that_the_running_proxy_serves(capsys: pytest.CaptureFixture[str]) -> None:
    path = Home.find().socket("proxy")
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        served = Thread(target=serve_once, args=(listener, b"var proxy;\n"))
        served.start()
        assert app.main(["setup", "pac"]) == 0
        served.join(10)
    assert capsys.readouterr().out == "var proxy;\n"


def serve_once(listener: socket.socket, body: bytes) -> None:
    client, _ = listener.accept()
    with client:
        assert client.recv(4096).startswith(b"GET /proxy.pac HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def test_without_a_proxy_there_is_no_pac_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["setup", "pac"]) == NotRunning.exit_code
    assert "tuunel proxy" in capsys.readouterr().err


@pytest.mark.usefixtures("running")
def test_the_written_pac_script_comes_with_the_address_that_every_browser_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["setup", "pac", "--write"]) == 0
    errors = capsys.readouterr().err
    assert "http://127.0.0.1:4321/proxy.pac" in errors
    assert (Home.find().root / "proxy.pac").as_uri() in errors


def test_git_uses_the_file_that_it_has(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clientconfig.git_file() == home / ".gitconfig"
    other = home / ".config" / "git" / "config"
    other.parent.mkdir(parents=True)
    other.write_text("")
    assert clientconfig.git_file() == other
    (home / ".gitconfig").write_text("")
    assert clientconfig.git_file() == home / ".gitconfig"
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/elsewhere")
    assert clientconfig.git_file() == Path("/elsewhere")


def test_chromium_is_looked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert app.main(["setup", "chromium"]) == UsageError.exit_code
    assert "no Chromium is installed" in capsys.readouterr().err


def test_a_menu_entry_quotes_what_its_specification_wants() -> None:
    (line,) = (line for line in desktop_entry(["/opt/a b", "--x=$1", '"', "\\", "100%"]).splitlines() if line.startswith("Exec="))
    assert line == 'Exec="/opt/a b" "--x=\\\\$1" "\\\\"" "\\\\\\\\" "100%%" %U'

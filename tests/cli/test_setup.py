"""`tuunel setup`: configuration that works as printed, and files that keep what was theirs."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from tuunel.cli import app
from tuunel.cli.setup import BEGIN, END, env_lines, ssh_block, write_block, write_file
from tuunel.errors import NotRunning, StateError
from tuunel.settings import Home


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUUNEL_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_ssh_goes_through_nc(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["setup", "ssh"]) == 0
    out, errors = capsys.readouterr()
    assert out.splitlines()[0] == "Host *.tuunel"
    assert out.splitlines()[1].endswith(" nc %h %p")
    assert errors == ""


def test_ssh_finds_tuunel_even_when_it_is_not_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "-m tuunel nc %h %p" in ssh_block()


def test_the_shell_gets_socks_that_leaves_names_to_the_proxy(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["setup", "env"]) == 0
    out, errors = capsys.readouterr()
    assert "export ALL_PROXY=socks5h://localhost:1080 all_proxy=socks5h://localhost:1080" in out
    assert "assuming localhost:1080" in errors
    assert out == env_lines("localhost:1080")


def test_the_shell_gets_the_port_of_the_running_proxy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tuunel.cli.setup.ask_role", lambda *_: {"listen": ["127.0.0.1:4321", "[::1]:4321"]})
    assert app.main(["setup", "env"]) == 0
    assert "http_proxy=http://127.0.0.1:4321" in capsys.readouterr().out


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


def test_the_written_pac_script_comes_with_the_address_that_every_browser_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tuunel.cli.setup.pac_script", lambda: "var proxy;\n")
    monkeypatch.setattr("tuunel.cli.setup.ask_role", lambda *_: {"listen": ["127.0.0.1:4321", "[::1]:4321"]})
    assert app.main(["setup", "pac", "--write"]) == 0
    errors = capsys.readouterr().err
    assert "http://127.0.0.1:4321/proxy.pac" in errors
    assert (Home.find().root / "proxy.pac").as_uri() in errors


def test_write_ssh_twice_changes_nothing_and_keeps_the_rest(home: Path) -> None:
    config = home / ".ssh" / "config"
    config.parent.mkdir()
    config.write_text("Host other\n    User me")
    config.chmod(0o644)
    assert app.main(["setup", "ssh", "--write"]) == 0
    once = config.read_text()
    assert app.main(["setup", "ssh", "--write"]) == 0
    assert config.read_text() == once == f"Host other\n    User me\n{BEGIN}\n{ssh_block()}{END}\n"
    assert stat.S_IMODE(config.stat().st_mode) == 0o644


def test_a_new_file_is_private(home: Path) -> None:
    assert app.main(["setup", "ssh", "--write"]) == 0
    assert app.main(["setup", "env", "--write"]) == 0
    for path in (home / ".ssh" / "config", home / "state" / "env.sh"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list((home / ".ssh").iterdir()) == [home / ".ssh" / "config"]


def test_a_linked_file_stays_a_link(home: Path) -> None:
    real = home / "dotfiles"
    real.write_text("")
    (home / ".ssh").mkdir()
    (home / ".ssh" / "config").symlink_to(real)
    assert app.main(["setup", "ssh", "--write"]) == 0
    assert (home / ".ssh" / "config").is_symlink()
    assert BEGIN in real.read_text()


def test_an_old_block_is_replaced_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_block(path, "new\n")
    assert path.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"


def test_a_half_block_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(f"{BEGIN}\nold\n")
    with pytest.raises(StateError):
        write_block(path, "new\n")
    assert path.read_text() == f"{BEGIN}\nold\n"


@pytest.mark.parametrize("write", [write_block, write_file])
def test_what_cannot_be_written_is_told(write: Callable[[Path, str], None], tmp_path: Path) -> None:
    file = tmp_path / "no-directory"  # not even root can write below a file
    file.write_text("")
    with pytest.raises(StateError):
        write(file / "config", "new\n")

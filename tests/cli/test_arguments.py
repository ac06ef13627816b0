"""What people type: durations, links from stdin, addresses that need a password, and who an agent admits."""

import io
import os
from pathlib import Path

import pytest

from tuunel.address import HostPort
from tuunel.cli.agent import admitted, checked
from tuunel.cli.arguments import MAX_TYPED_LINK, seconds, typed
from tuunel.cli.proxy import is_loopback, password_for, require_auth_beyond_loopback
from tuunel.errors import StateError, UsageError
from tuunel.identity import IdentityKey


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("15m", 900), ("8h", 28800), ("24H", 86400), (" 30d ", 2592000)])
def test_durations(text: str, value: int) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "8", "h", "-8h", "1.5h", "8h30m", "0m", "8 h", "\u0661h", "9999999999s"])
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        seconds(text)
    assert "8h" in raised.value.advice


def test_a_link_may_come_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("  tuunel://relay:7443?pin=x \nmore\n"))
    assert typed("-") == "tuunel://relay:7443?pin=x"
    assert typed("tuunel://other") == "tuunel://other"


def test_stdin_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a" * 10 * MAX_TYPED_LINK))
    assert len(typed("-")) == MAX_TYPED_LINK


def test_an_empty_stdin_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(UsageError, match="stdin"):
        typed("-")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_needs_no_password(host: str) -> None:
    assert is_loopback(host)
    require_auth_beyond_loopback(HostPort(host, 1080), None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "laptop", "localhost.example.com", "::ffff:192.168.1.2"])
def test_anywhere_else_is_refused_without_a_password_and_says_why(host: str) -> None:
    with pytest.raises(UsageError, match="loopback") as raised:
        require_auth_beyond_loopback(HostPort(host, 1080), None)
    assert "--auth" in raised.value.advice
    require_auth_beyond_loopback(HostPort(host, 1080), "ann")


def test_the_password_is_the_first_line_of_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "proxy-password"
    file.write_text("s3cret word\nsecond line\n")
    file.chmod(0o600)
    assert password_for("ann", file) == "s3cret word"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_password_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "proxy-password"
    file.write_text("s3cret\n")
    file.chmod(mode)
    with pytest.raises(StateError, match="others") as raised:
        password_for("ann", file)
    assert "chmod 600" in raised.value.advice
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"a" * 256])
def test_a_password_that_socks_cannot_carry_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "proxy-password"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(UsageError, match="255"):
        password_for("ann", file)


def test_a_password_file_of_other_bytes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "proxy-password"
    file.write_bytes(b"\xff\xfe")
    file.chmod(0o600)
    with pytest.raises(StateError):
        password_for("ann", file)


def test_a_password_file_that_is_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "proxy-password", 0o600)
    with pytest.raises(StateError, match="not a regular file"):
        password_for("ann", tmp_path / "proxy-password")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_password_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "proxy-password"
    file.write_text("s3cret\n")
    file.chmod(0o600)
    os.chown(file, 65534, 65534)
    with pytest.raises(StateError, match="another user"):
        password_for("ann", file)


def test_a_password_file_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "proxy-password"
    with file.open("wb") as content:
        content.truncate(64 << 20)
    file.chmod(0o600)
    with pytest.raises(StateError, match="larger"):
        password_for("ann", file)


def test_without_a_file_and_without_a_terminal_the_password_cannot_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("typed\n"))
    with pytest.raises(UsageError, match="terminal"):
        password_for("ann", tmp_path / "proxy-password")


def test_allow_takes_device_ids_and_the_word_enrolled() -> None:
    device = IdentityKey.from_private_value(7).device_id
    assert admitted([]) == ([], False)
    assert admitted([str(device)]) == ([device], False)
    assert admitted(["enrolled", device.compact]) == ([device], True)
    with pytest.raises(UsageError):
        admitted(["everybody"])


def test_target_patterns_are_checked_before_the_agent_is_asked() -> None:
    assert checked(["*", "127.0.0.1:80"]) == ["*", "127.0.0.1:80"]
    with pytest.raises(UsageError):
        checked(["*", "host:99999"])

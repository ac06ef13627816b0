"""SIGHUP: what a reload tells, and what it leaves alone."""

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from tests.journeys.peers import program
from tests.journeys.processes import clean_environment, tuunel_argv, until
from tuunel.cli.reloading import Reload
from tuunel.config import settings_of
from tuunel.configfile import RunningSettings, load_settings
from tuunel.errors import StateError
from tuunel.events import Alarm, Event, Notice
from tuunel.journal import Level, Threshold

pytestmark = pytest.mark.anyio


class Desk:
    """A running proxy's settings, with a file to edit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        self.threshold = Threshold(print, Level.INFO)
        self.applied: list[object] = []
        self.broken_book = False
        path.write_text('[proxy]\nother = "direct"\n')
        self.settings = RunningSettings(load_settings(settings_of("proxy")), {})

    async def _apply(self) -> None:
        self.applied.append(self.settings.value("proxy.other"))
        if self.broken_book:
            raise StateError("devices.json is damaged", "restore it")

    async def reload(self, text: str) -> list[Event]:
        self.path.write_text(text)
        self.events.clear()
        await Reload(self.settings, self._apply, self.events.append, self.threshold).now()
        return self.events


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("TUUNEL_HOME", str(tmp_path))
    return Desk(tmp_path / "config.toml")


async def test_a_reload_says_what_has_changed_and_applies_it(desk: Desk) -> None:
    told = await desk.reload('[proxy]\nother = "refuse"\n[log]\nlevel = "error"\n')
    assert told == [Notice("settings read again: proxy.other, log.level")]
    assert (desk.applied, desk.threshold.level) == (["refuse"], Level.ERROR)


async def test_a_reload_without_news_says_so_and_reads_the_books(desk: Desk) -> None:
    assert await desk.reload('[proxy]\nother = "direct"\n') == [Notice("settings read again: no setting has changed")]
    assert desk.applied == ["direct"]


async def test_what_needs_a_restart_is_said(desk: Desk) -> None:
    told = await desk.reload('[proxy]\nlisten = "localhost:1"\n')
    assert told[0] == Notice(f"proxy.listen has changed ({desk.path}:2): it takes effect at the next start")


async def test_a_broken_file_keeps_the_settings_and_raises_an_alarm(desk: Desk) -> None:
    await desk.reload('[proxy]\nother = "refuse"\n')
    (alarm,) = await desk.reload('[proxy]\nother = "away"\n')
    assert isinstance(alarm, Alarm)
    assert "stay as they were" in alarm.text
    assert f"{desk.path}:2" in alarm.text
    assert desk.applied == ["refuse", "refuse"]


async def test_a_damaged_book_raises_an_alarm(desk: Desk) -> None:
    desk.broken_book = True
    assert (await desk.reload(""))[-1] == Alarm("devices.json is damaged; restore it")


class Window:
    """A command in a terminal of its own, whose log goes to a file."""

    def __init__(self, home: Path, *before: str) -> None:
        self.home = home
        self._screen, theirs = pty.openpty()
        # as a shell starts it, however this test was started
        fresh = [program("setsid"), "--ctty", program("env"), "--default-signal=HUP"]
        argv = [*fresh, *before, *tuunel_argv("proxy", "--listen", "127.0.0.1:0")]
        with (home / "log").open("wb") as log:
            self.process = subprocess.Popen(
                argv, env=clean_environment(TUUNEL_HOME=str(home)), stdin=theirs, stdout=theirs, stderr=log, cwd=home
            )
        os.close(theirs)
        until(lambda: "ready" in self.log(), "the proxy is ready")

    def log(self) -> str:
        return (self.home / "log").read_text()

    def close(self) -> None:
        """Close the window: the kernel tells whoever runs in it."""
        os.close(self._screen)

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.mark.real
def test_a_closed_terminal_ends_the_command_wherever_its_log_goes(tmp_path: Path) -> None:
    window = Window(tmp_path)
    try:
        window.close()
        assert window.process.wait(10) == 0
        assert not list(tmp_path.rglob("*.sock"))  # in order: nothing is left
    finally:
        window.end()


@pytest.mark.real
def test_in_a_terminal_that_is_there_the_signal_reloads(tmp_path: Path) -> None:
    window = Window(tmp_path)
    try:
        window.process.send_signal(signal.SIGHUP)
        until(lambda: "settings read again" in window.log(), "it has reloaded")
    finally:
        window.end()
        window.close()


@pytest.mark.real
def test_nohup_keeps_it_running(tmp_path: Path) -> None:
    window = Window(tmp_path, program("nohup"))
    try:
        window.close()
        until(lambda: "settings read again" in window.log(), "it has taken the signal for a wish to reload")
        assert window.process.poll() is None
    finally:
        window.end()

"""What `tuunel setup` writes makes the real programs reach a device, and takes itself out again."""

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.journeys.chromium import chromium
from tests.journeys.firefox import Firefox
from tests.journeys.peers import program
from tests.journeys.processes import clean_environment, run, tuunel_argv, until
from tests.journeys.targets import Site, web_site
from tests.journeys.world import Trio

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

PAGE = b"<!doctype html><title>home</title><p id=said>behind the device</p>"


@dataclass
class Desk:
    """A person at the laptop, with an empty home directory."""

    home: Path
    trio: Trio

    @property
    def env(self) -> dict[str, str]:
        return clean_environment(HOME=str(self.home))

    def setup(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return run(tuunel_argv("setup", *arguments), {**self.env, "TUUNEL_HOME": str(self.trio.laptop.home)})


@pytest.fixture
def desk(trio: Trio) -> Iterator[Desk]:
    with tempfile.TemporaryDirectory(prefix="tuudesk", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Desk(Path(name), trio)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with web_site({"/": ("text/html", PAGE)}) as made:
        yield made


def test_curl_takes_its_proxy_from_the_file(desk: Desk, site: Site) -> None:
    told = desk.setup("curl", "--write").stderr.decode()
    config = desk.trio.laptop.home / "curlrc"
    curl = [program("curl"), "--silent", "--show-error", "--max-time", "30"]
    assert run([*curl, "--config", str(config), f"http://home.tuunel:{site.port}/"], desk.env).stdout == PAGE
    assert f"curl --config {config} http://NAME.tuunel:PORT/" in told
    desk.setup("curl", "--undo")
    assert not config.exists()


def test_programs_take_their_proxy_from_the_shells_variables(desk: Desk, site: Site) -> None:
    desk.setup("env", "--write")
    script = f". {desk.trio.laptop.home}/env.sh; {program('curl')} -sS --max-time 30 http://home.tuunel:{site.port}/"
    assert run(["sh", "-c", script], desk.env).stdout == PAGE
    desk.setup("env", "--undo")


def test_git_clones_and_fetches_over_http_on_any_port(desk: Desk, tmp_path: Path) -> None:
    git = program("git")
    bare, work = tmp_path / "project.git", tmp_path / "work"
    (desk.home / ".gitconfig").write_text("[user]\n\tname = Ann\n\temail = ann@example.org\n[receive]\n\tautogc = false")
    before = (desk.home / ".gitconfig").read_bytes()
    run([git, "init", "-q", "--bare", "--initial-branch=main", str(bare)], desk.env)
    run([git, "init", "-q", str(work)], desk.env)
    (work / "data").write_bytes(os.urandom(100_000))
    run([git, "-C", str(work), "add", "data"], desk.env)
    run([git, "-C", str(work), "commit", "-q", "-m", "a file"], desk.env)
    run([git, "-C", str(work), "push", "-q", str(bare), "HEAD:main"], desk.env)
    run([git, "-C", str(bare), "update-server-info"], desk.env)  # what any web server can serve
    files = {f"/project.git/{path.relative_to(bare)}": path.read_bytes() for path in bare.rglob("*") if path.is_file()}
    desk.setup("git", "--write")
    with web_site({path: ("application/octet-stream", content) for path, content in files.items()}) as served:
        clone = tmp_path / "clone"
        run([git, "clone", "-q", f"http://home.tuunel:{served.port}/project.git", str(clone)], desk.env)
        run([git, "-C", str(clone), "fetch", "-q"], desk.env)
        assert (clone / "data").read_bytes() == (work / "data").read_bytes()
        run([git, "clone", "-q", f"http://127.0.0.1.home.tuunel:{served.port}/project.git", str(tmp_path / "second")], desk.env)
        outside = run([git, "-C", str(work), "config", "--get", "http.proxy"], desk.env, check=False)
        assert outside.stdout == b"", "a repository without such a remote keeps its own way"
    desk.setup("git", "--undo")
    assert (desk.home / ".gitconfig").read_bytes() == before


def test_chromium_goes_the_way_that_is_printed(desk: Desk, site: Site) -> None:
    program("chromium", "chromium-browser", "google-chrome")
    words = shlex.split(desk.setup("chromium").stdout.decode())
    (pac,) = (word for word in words if word.startswith("--proxy-pac-url="))
    with chromium(pac) as tab:
        tab.open(f"http://home.tuunel:{site.port}/")
        assert until(lambda: tab.value("document.getElementById('said')?.textContent"), "the page", 60, 0.1) == "behind the device"


def test_the_menu_entry_starts_chromium_with_the_proxy(desk: Desk, site: Site) -> None:
    program("chromium", "chromium-browser", "google-chrome")
    desk.setup("chromium", "--write")
    (entry,) = desk.home.rglob("*.desktop")
    (command,) = (line.removeprefix("Exec=") for line in entry.read_text().splitlines() if line.startswith("Exec="))
    page = f"http://home.tuunel:{site.port}/"
    argv = [each for word in shlex.split(command) for each in ([page] if word == "%U" else [word])]
    headless = [argv[0], "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom", *argv[1:]]
    assert b"behind the device" in run(headless, desk.env, deadline=60).stdout
    desk.setup("chromium", "--undo")
    assert not entry.exists()


def test_firefox_opens_a_device_with_what_was_written_and_forgets_it_again(desk: Desk, site: Site) -> None:
    firefox = Firefox(desk.home)
    before = (firefox.profile / "user.js").read_bytes()
    desk.setup("firefox", "--write")
    with firefox.running() as window:
        window.open(f"http://home.tuunel:{site.port}/")
        assert window.value("document.getElementById('said').textContent") == "behind the device"
        search = "Services.uriFixup.FIXUP_FLAG_ALLOW_KEYWORD_LOOKUP"
        assert window.own_value(f"Services.uriFixup.getFixupURIInfo('home.tuunel', {search}).fixedURI.spec") == "http://home.tuunel/"
        refused = run([*tuunel_argv("setup", "firefox", "--undo")], desk.env, check=False)
        assert b"Firefox is running" in refused.stderr
    desk.setup("firefox", "--undo")
    assert (firefox.profile / "user.js").read_bytes() == before
    assert b"proxy.pac" not in (firefox.profile / "prefs.js").read_bytes()

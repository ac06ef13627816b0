"""Firefox's profiles, and what must be mended in one when our settings leave it.

Firefox copies each start what `user.js` says into `prefs.js`, so that a setting outlives its line in `user.js`. What was set before is
therefore kept in our block, and put back. Sources: profiles.ini as Firefox writes it; kb.mozillazine.org/User.js_file.
"""

import configparser
import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tuunel.cli.ownblock import Block, read, replace
from tuunel.errors import StateError, UsageError

PLACES: Final = (  # below the home directory; the first is that of new installations since Firefox 147
    ".config/mozilla/firefox",
    ".mozilla/firefox",
    "snap/firefox/common/.mozilla/firefox",
    ".var/app/org.mozilla.firefox/config/mozilla/firefox",
    ".var/app/org.mozilla.firefox/.mozilla/firefox",
    "Library/Application Support/Firefox",
)
WAS: Final = "// before: "
_PREFERENCE: Final = re.compile(r'user_pref\("([^"]+)",')


def profiles() -> list[Path]:
    """The profile that each Firefox of this user starts with. UsageError when there is none."""
    places = [Path.home() / each for each in PLACES]
    if configured := os.environ.get("XDG_CONFIG_HOME"):
        places.insert(0, Path(configured) / "mozilla" / "firefox")
    found = [profile for place in dict.fromkeys(places) for profile in _starting(place) if profile.is_dir()]
    if not found:
        raise UsageError("no Firefox profile was found for this user", "start Firefox once, so that it makes one, then try again")
    return found


def _starting(place: Path) -> list[Path]:
    """The profiles that `profiles.ini` in `place` names for the start: one for each installation, else the default one."""
    content = read(place / "profiles.ini")
    if content is None:
        return []
    ini = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        ini.read_string(content.decode())
    except (configparser.Error, UnicodeDecodeError) as error:
        raise StateError(f"{place / 'profiles.ini'} cannot be read: {error}", "start Firefox once, so that it mends it") from error
    every = [ini[section] for section in ini.sections() if section.startswith("Profile")]
    names = [ini[section].get("Default", "") for section in ini.sections() if section.startswith("Install")]
    names = names or [each.get("Path", "") for each in every if each.get("Default") == "1"] or [each.get("Path", "") for each in every][:1]
    return [place / name for name in dict.fromkeys(names) if name]


def user_js(profile: Path, settings: Callable[[], str]) -> Block:
    """Our block in the profile's `user.js`: the settings, and in comments what `prefs.js` said of the same names before."""

    def text() -> str:
        lines = settings()
        return "".join(f"{WAS}{line}\n" for line in before(profile, block, lines)) + lines

    block = Block(profile / "user.js", "//", text, at_end=True)  # there the last line of a name counts
    return block


def before(profile: Path, block: Block, settings: str) -> list[str]:
    """The lines that were in force before ours: those that our block of an earlier time keeps, else what `prefs.js` says now."""
    if ours := block.found():
        return _kept(ours)
    names = set(_PREFERENCE.findall(settings))
    lines = (read(profile / "prefs.js") or b"").decode(errors="replace").splitlines()
    return [line for line in lines if _name(line) in names]


def undo(profile: Path, block: Block) -> bool:
    """Take our block out of `user.js`, and give `prefs.js` what it had before. StateError while Firefox uses the profile."""
    ours = block.found()
    if not ours:
        return block.take()
    with (profile / ".parentlock").open("ab") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as Firefox does; it writes its prefs.js when it ends
        except OSError as error:
            raise StateError(f"Firefox is running with {profile}", "quit it, then try again") from error
        _restore(profile / "prefs.js", ours)
        return block.take()


def _restore(path: Path, ours: list[str]) -> None:
    content = read(path)
    if content is None:
        return
    lines = content.decode(errors="surrogateescape").splitlines(keepends=True)
    left = [line for line in lines if line.rstrip("\r\n") not in ours]
    changed_since = {_name(line) for line in left}
    left += [f"{line}\n" for line in _kept(ours) if _name(line) not in changed_since]
    replace(path, "".join(left).encode(errors="surrogateescape"))


def _kept(ours: list[str]) -> list[str]:
    return [line.removeprefix(WAS) for line in ours if line.startswith(WAS)]


def _name(line: str) -> str:
    found = _PREFERENCE.match(line)
    return found[1] if found else ""

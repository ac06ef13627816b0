"""What each client needs to be told so that it uses tuunel, and the files where it is told."""
# ruff: noqa: PLC0415 - each client imports what it needs: start-up time is what people feel

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from tuunel.cli.ownblock import Block
from tuunel.cli.report import ask_role, say
from tuunel.errors import NotRunning, UsageError
from tuunel.settings import VARIABLE, Home

DEFAULT_PROXY: Final = "localhost:1080"
UNSPECIFIED: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  #: how this machine reaches a listener on every address
CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Client(StrEnum):
    """What can be set up."""

    SSH = "ssh"
    GIT = "git"
    CURL = "curl"
    FIREFOX = "firefox"
    CHROMIUM = "chromium"
    PAC = "pac"
    ENV = "env"


@dataclass(frozen=True, slots=True)
class Setup:
    """The lines of one client and where they go, what a person does once they are written, and what is printed in their place."""

    blocks: Callable[[], list[Block]]
    next_steps: Callable[[], list[str]]
    shown: Callable[[], str] | None = None

    def printed(self) -> str:
        """What a person can read, or paste where it belongs."""
        if self.shown is not None:
            return self.shown()
        blocks = self.blocks()
        if len(blocks) == 1:
            return blocks[0].text()
        return "\n".join(f"{block.comment} in {block.path}\n{block.text()}" for block in blocks)


def ssh() -> Setup:
    """ssh, and what runs over it: scp, rsync, git."""
    path = Path.home() / ".ssh" / "config"
    return Setup(lambda: [Block(path, "#", ssh_lines)], lambda: [f"next:   ssh {ssh_option(path)}NAME.tuunel"])


def git() -> Setup:
    """git over HTTP."""
    included = Home.find().root / "gitconfig"
    return Setup(
        lambda: [
            Block(git_file(), "#", lambda: git_lines(included)),
            Block(included, "#", lambda: f"[http]\n\tproxy = socks5h://{proxy_address()}\n"),
        ],
        lambda: [
            "next:   git clone http://NAME.tuunel:PORT/PROJECT.git   while the proxy runs",
            "  git over ssh needs 'tuunel setup ssh --write' instead",
        ],
    )


def curl() -> Setup:
    """curl, by a file of its own: in `~/.curlrc` the proxy would be that of every host."""
    path = Home.find().root / "curlrc"
    command = shlex.join(["curl", "--config", str(path)])
    return Setup(
        lambda: [Block(path, "#", lambda: f'proxy = "socks5h://{proxy_address()}"\n')],
        lambda: [
            f"next:   {command} http://NAME.tuunel:PORT/",
            f"  or:   alias tcurl={shlex.quote(command)}   (curl itself cannot choose its proxy by the host)",
        ],
    )


def firefox() -> Setup:
    """Firefox, in the profile that it starts with."""
    from tuunel.cli.firefox import profiles, user_js

    def settings() -> str:
        return firefox_settings(pac_address())

    return Setup(
        lambda: [user_js(profile, settings) for profile in profiles()],
        lambda: ["next:   start Firefox again, and open http://NAME.tuunel:PORT/ while the proxy runs"],
        shown=settings,
    )


def chromium() -> Setup:
    """Chromium: a menu entry; printed, the command line that it runs."""
    entry = data_home() / "applications" / "tuunel-chromium.desktop"
    return Setup(
        lambda: [Block(entry, "#", lambda: desktop_entry(chromium_command(pac_address())))],
        lambda: ["next:   start 'Chromium through tuunel' from the menu, and open http://NAME.tuunel:PORT/ while the proxy runs"],
        shown=lambda: shlex.join(chromium_command(pac_address())) + "\n",
    )


def pac() -> Setup:
    """The running proxy's PAC script as a file."""
    path = Home.find().root / "proxy.pac"
    return Setup(
        lambda: [Block(path, "//", pac_script)],
        lambda: [
            f"next, in the browser's automatic proxy configuration:   {pac_address()}   while the proxy runs",
            f"  or, in a browser that takes a file (Chromium does not):   {path.as_uri()}",
        ],
    )


def env() -> Setup:
    """A shell's variables for programs that take their proxy from there."""
    path = Home.find().root / "env.sh"
    return Setup(lambda: [Block(path, "#", lambda: env_lines(proxy_address()))], lambda: [f"next:   . {shlex.quote(str(path))}"])


SETUPS: Final[dict[Client, Callable[[], Setup]]] = {
    Client.SSH: ssh,
    Client.GIT: git,
    Client.CURL: curl,
    Client.FIREFOX: firefox,
    Client.CHROMIUM: chromium,
    Client.PAC: pac,
    Client.ENV: env,
}


def own_command() -> list[str]:
    """How another program starts this tuunel: absolute paths, because a graphical editor's PATH is not the shell's."""
    started = Path(sys.argv[0])
    beside = Path(sys.executable).with_name("tuunel")
    for script in (started if started.name == "tuunel" else None, beside):
        if script is not None and script.is_file() and os.access(script, os.X_OK):
            return [os.fspath(script.absolute())]
    return [sys.executable, "-P", "-m", "tuunel"]  # -P: never from the directory where ssh happens to be started


def ssh_lines() -> str:
    """The lines of `~/.ssh/config` that send ssh, scp, git and rsync to `.tuunel` hosts through `tuunel nc`.

    They stand first, because ssh takes the first value that fits; `Host *` gives the lines behind them back to every host.
    """
    chosen = os.environ.get(VARIABLE) or os.environ.get("XDG_STATE_HOME")  # which an editor's environment may lack
    home = [shutil.which("env") or "/usr/bin/env", f"{VARIABLE}={Home.find().root}"] if chosen else []
    command = shlex.join([*home, *own_command(), "nc"]).replace("%", "%%")  # ssh expands % sequences
    return f"Host *.tuunel *.tuunel.\n    ProxyCommand {command} %h %p\nHost *\n"


def ssh_option(config: Path) -> str:
    """What `ssh` must be told when it reads another file than the one written: it looks in the home of the user, not in HOME."""
    import pwd

    usual = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ssh" / "config"
    return "" if usual == config else f"-F {shlex.quote(str(config))} "


def git_file() -> Path:
    """The file that holds this user's git configuration (git-config(1), FILES)."""
    if chosen := os.environ.get("GIT_CONFIG_GLOBAL"):
        return Path(chosen)
    usual = Path.home() / ".gitconfig"
    other = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "git" / "config"
    return other if other.exists() and not usual.exists() else usual


def git_lines(included: Path) -> str:
    """Lines that include a file in repositories with a `.tuunel` remote over HTTP.

    `http.<url>.proxy` could not say it: an address in it without a port means the usual port only (git-config(1)).
    """
    path = str(included).replace("\\", "\\\\").replace('"', '\\"')
    remotes = [f"{scheme}://*.tuunel{port}/**" for scheme in ("http", "https") for port in ("", ":*")]
    return "".join(f'[includeIf "hasconfig:remote.*.url:{remote}"]\n\tpath = "{path}"\n' for remote in remotes)


def firefox_settings(pac: str) -> str:
    """Lines of `user.js`: the proxy's own PAC file, names left to the proxy, and a typed `NAME.tuunel` is an address, no search."""
    values = {
        "network.proxy.type": "2",
        "network.proxy.autoconfig_url": f'"{pac}"',
        "network.proxy.socks_version": "5",
        "network.proxy.socks_remote_dns": "true",
        "network.proxy.socks5_remote_dns": "true",
        "browser.fixup.domainsuffixwhitelist.tuunel": "true",
    }
    return "".join(f'user_pref("{name}", {value});\n' for name, value in values.items())


def chromium_command(pac: str) -> list[str]:
    """The command line that starts Chromium with the proxy's PAC file, in a profile of its own: a running Chromium ignores options."""
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        raise UsageError(f"no Chromium is installed (looked for {', '.join(CHROMIUM)})", "install it, or put it on the PATH")
    return [program, f"--user-data-dir={Home.find().root / 'chromium'}", f"--proxy-pac-url={pac}"]


def desktop_entry(command: list[str]) -> str:
    """A menu entry that runs the command with the addresses to open (Desktop Entry Specification 1.5, "The Exec key")."""
    return (
        "[Desktop Entry]\nType=Application\nName=Chromium through tuunel\nComment=Browse behind your devices\n"
        f"Exec={' '.join(map(_desktop_quoted, command))} %U\nIcon=chromium\nTerminal=false\nCategories=Network;WebBrowser;\n"
    )


def _desktop_quoted(argument: str) -> str:
    quoted = "".join(f"\\{character}" if character in '"`$\\' else character for character in argument)
    return f'"{quoted}"'.replace("\\", "\\\\").replace("%", "%%")


def data_home() -> Path:
    """Where this user's desktop looks for menu entries (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")


def env_lines(proxy: str) -> str:
    """Shell lines that send programs through the proxy. `socks5h`, not `socks5`: the proxy must see the name."""
    variables = {
        "ALL_PROXY": f"socks5h://{proxy}",
        "HTTP_PROXY": f"http://{proxy}",
        "HTTPS_PROXY": f"http://{proxy}",
        "NO_PROXY": "localhost,127.0.0.1,::1",
    }
    lines = (f"export {name}={value} {name.lower()}={value}" for name, value in variables.items())
    return "\n".join(lines) + "\n"


def pac_script() -> str:
    """The running proxy's own PAC script, with its port and routes. NotRunning when no proxy runs."""
    import http.client
    import socket

    path = Home.find().socket("proxy")
    connection = http.client.HTTPConnection("127.0.0.1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        try:
            door.connect(os.fspath(path))
        except OSError as error:
            raise NotRunning("no tuunel proxy runs here, and the script names its port and routes", "start 'tuunel proxy' first") from error
        connection.sock = door
        connection.request("GET", "/proxy.pac")
        return connection.getresponse().read().decode()


def pac_address() -> str:
    """Where browsers get the PAC script. A literal address: the proxy serves it under no name that a web page could have."""
    return f"http://{proxy_address().replace('localhost', '127.0.0.1')}/proxy.pac"


def proxy_address() -> str:
    """Where the running proxy listens; the default address when none runs."""
    try:
        host, _, port = str(ask_role("proxy", "status")["listen"][0]).rpartition(":")
    except NotRunning:
        say(f"no tuunel proxy runs here; assuming {DEFAULT_PROXY}")
        return DEFAULT_PROXY
    return f"{UNSPECIFIED.get(host, host)}:{port}"

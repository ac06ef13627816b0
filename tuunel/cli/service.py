"""`tuunel service`: have the machine run a role for good. docs/howto/services.md."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tuunel.cli.report import put, say
from tuunel.errors import StateError, UsageError

if TYPE_CHECKING:
    from tuunel.unitfile import ServiceFile

app = typer.Typer(help="Have this machine run a role for good, by systemd or launchd.", no_args_is_help=True, rich_markup_mode=None)

MACOS: Final = "darwin"
PATIENCE: Final = 60.0  #: seconds for a service manager's own commands
HIDDEN: Final = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108 - what ProtectHome and PrivateTmp hide


class Role(StrEnum):
    """What can be a service."""

    RELAY = "relay"
    AGENT = "agent"
    PROXY = "proxy"


RoleArgument = Annotated[Role, typer.Argument(help="relay, agent or proxy.")]
System = Annotated[bool, typer.Option("--system", help="A service of the whole system, as a user of its own; needs root.")]


@app.command()
def install(
    role: RoleArgument,
    *,
    system: System = False,
    only_print: Annotated[bool, typer.Option("--print", help="Print what would be written, and do nothing.")] = False,
) -> None:
    """Install a role as a service of yours, and start it. Its settings are those of config.toml."""
    files = service_files(role, system=system)
    if only_print:
        for file in files:
            say(f"# {file.path}")
            put(file.content.rstrip("\n"))
        return
    check_may_install(system=system)
    for file in files:
        write(file)
        say(f"written {file.path}")
    say(*start(role, files[-1].path, system=system), *hints(role, system=system))


@app.command()
def remove(role: RoleArgument, *, system: System = False) -> None:
    """Stop a role's service, and take out what install has written. Keys and settings stay."""
    files = service_files(role, system=system)
    ours = [file.path for file in files if is_ours(file.path)]
    if files[-1].path not in ours:
        say(f"there is no {files[-1].path} of tuunel's: nothing to remove")
        return
    check_may_install(system=system)
    say(*stop(role, files[-1].path, system=system))
    for path in reversed(ours):  # the unit first: what several share goes with the last of them
        if path == files[-1].path or not others_need():
            path.unlink()
            say(f"removed {path}")
    manager(["daemon-reload"], system=system)


def service_files(role: Role, *, system: bool) -> list["ServiceFile"]:
    """The files of a role's service on this machine."""
    from tuunel import unitfile
    from tuunel.settings import VARIABLE, Home

    command = [*program(), *unitfile.ROLES[role]]
    chosen = Home.find().root if os.environ.get(VARIABLE) else None
    if sys.platform == MACOS:
        base = Path("/Library/LaunchDaemons") if system else Path.home() / "Library" / "LaunchAgents"
        log = Path("/Library/Logs" if system else Path.home() / "Library" / "Logs") / f"tuunel-{role}.log"
        return [unitfile.launchd_file(role, command, base, home=chosen, user=os.environ.get("SUDO_USER") if system else None, log=log)]
    if system:
        return unitfile.systemd_files(role, command, unitfile.SYSTEM_UNITS, home=unitfile.SYSTEM_HOME, system=True)
    return unitfile.systemd_files(role, command, user_units(), home=chosen, system=False)


def program() -> list[str]:
    """What starts this very tuunel: its script beside the interpreter, else the module, never one from the working directory."""
    script = Path(sys.executable).with_name("tuunel")
    return [str(script)] if script.exists() else [sys.executable, "-P", "-m", "tuunel"]


def what_runs() -> list[Path]:
    """The files that must be there to run this tuunel: its script, its interpreter wherever that really is, its modules."""
    return [Path(program()[0]).absolute(), Path(sys.executable).resolve(), Path(__file__).resolve()]


def user_units() -> Path:
    """Where a user's systemd looks for units."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def check_may_install(*, system: bool) -> None:
    """Raise UsageError when such a service could not be installed, or could not run."""
    if sys.platform not in {MACOS, "linux"}:
        raise UsageError(
            "services are installed for systemd and launchd only", "'tuunel service install --print' shows a unit to start from"
        )
    if system and os.geteuid() != 0:
        raise UsageError("--system needs root", "use sudo, or leave --system out for a service of yours")
    hidden = next((str(path) for path in what_runs() if str(path).startswith(HIDDEN)), None)
    if system and sys.platform == "linux" and hidden:
        raise UsageError(
            f"a system service cannot run {hidden}: homes and /tmp are hidden from it",
            "install tuunel for all users, for example into a venv at /opt/tuunel made with the system's own python3",
        )


def is_ours(path: Path) -> bool:
    """Whether the file is there and `install` has written it. Raises StateError when it cannot be read."""
    from tuunel.unitfile import MARK

    try:
        return MARK in path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"cannot read {path}: {error}", "see what it is, and who owns it") from error


def write(file: "ServiceFile") -> None:
    """Write a file, readable for all; one that is not ours is left alone, with a StateError."""
    if file.path.exists() and not is_ours(file.path):
        raise StateError(f"{file.path} is there, and not from tuunel", "move it away, or keep it and install nothing")
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.path.with_name(f".{file.path.name}.new")
        fresh.write_text(file.content, encoding="utf-8")
        fresh.chmod(0o644)
        fresh.replace(file.path)
    except OSError as error:
        raise StateError(f"cannot write {file.path}: {error.strerror}", "check the directory's owner and modes") from error


def others_need() -> bool:
    """Whether another role is a service of the system, and needs the user that they share."""
    from tuunel import unitfile

    return any(is_ours(unitfile.SYSTEM_UNITS / unitfile.unit_name(role)) for role in unitfile.ROLES)


def start(role: Role, path: Path, *, system: bool) -> list[str]:
    """Start the service now and at every boot; lines that say so, or what to do where no service manager runs."""
    from tuunel.unitfile import SYSUSERS, unit_name

    if sys.platform == MACOS:
        domain = "system" if system else f"gui/{os.getuid()}"
        run(["launchctl", "bootstrap", domain, str(path)])
        return [f"started; stop it with:   launchctl bootout {domain} {path}"]
    unit, user = unit_name(role), "" if system else "--user "
    if not systemd_runs(system=system):
        made = [f"  systemd-sysusers {SYSUSERS}"] if system else []
        commands = [f"  systemctl {user}daemon-reload", f"  systemctl {user}enable --now {unit}"]
        return ["no systemd to start it runs here; where one does:", *made, *commands]
    if system:
        run(["systemd-sysusers", str(SYSUSERS)])
    manager(["daemon-reload"], system=system)
    manager(["enable", unit], system=system)
    manager(["restart", "--no-block", unit], system=system)  # it counts as started when it is ready: an agent, when it has found its relay
    return [f"started; see it with:   systemctl {user}status {unit}"]


def stop(role: Role, path: Path, *, system: bool) -> list[str]:
    """Stop the service, now and for later boots."""
    from tuunel.unitfile import unit_name

    if sys.platform == MACOS:
        with suppress(StateError):  # it may not be loaded
            run(["launchctl", "bootout", "system" if system else f"gui/{os.getuid()}", str(path)])
    elif not manager(["disable", "--now", unit_name(role)], system=system):
        return []
    return ["stopped"]


def manager(arguments: Sequence[str], *, system: bool) -> bool:
    """Ask systemd, if it runs; whether it does. Raises StateError when it refuses."""
    if sys.platform == MACOS or not systemd_runs(system=system):
        return False
    run(["systemctl", *([] if system else ["--user"]), *arguments])
    return True


def systemd_runs(*, system: bool) -> bool:
    """Whether the system's systemd, or the one of this user, takes commands: sd_booted(3), systemctl(1)."""
    if shutil.which("systemctl") is None:
        return False
    if system:
        return Path("/run/systemd/system").is_dir()
    return (Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}") / "systemd" / "private").exists()


def run(command: Sequence[str]) -> None:
    """Run a service manager's command. Raises StateError with what it says when it fails."""
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, timeout=PATIENCE, check=False)  # noqa: S603 - no shell
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StateError(f"{' '.join(command)} cannot be run: {error}", "run it yourself, and see what it says") from error
    if done.returncode:
        raise StateError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}", "see what its log says")


def hints(role: Role, *, system: bool) -> list[str]:
    """What a person must know of a service that has just been installed."""
    from tuunel.config import config_file
    from tuunel.unitfile import SYSTEM_HOME, SYSTEM_USER

    linux = sys.platform != MACOS
    alone = system and linux  # it runs as a user of its own
    tuunel = f"sudo -u {SYSTEM_USER} env TUUNEL_HOME={SYSTEM_HOME} {shlex.join(program())}" if alone else "tuunel"
    lines = [f"its settings:   {SYSTEM_HOME / 'config.toml' if alone else config_file()}"]
    match role:
        case Role.RELAY:
            lines.append(f"next:   {tuunel} relay link   (the public name of links is 'advertise' under [relay] in its settings)")
        case Role.AGENT:
            lines.append(f"next, unless this machine is enrolled already:   {tuunel} agent LINK   once, then Ctrl-C")
        case Role.PROXY if alone:
            lines.append("next:   'all-users = true', or 'auth', under [proxy] in its settings: it serves its own user alone")
        case Role.PROXY:
            pass
    if linux and not system:
        lines.append("so that it runs while nobody is logged in, too:   loginctl enable-linger")
    return lines

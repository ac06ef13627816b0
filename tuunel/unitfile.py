"""What a service manager needs to run a role for years: systemd units, for a user or the whole system, and launchd's property lists.

Only text: nothing here writes a file or runs anything. Source: docs/howto/services.md.
"""

import plistlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MARK: Final = "written by 'tuunel service install'"  #: in every file, so that none but ours is replaced or removed
ROLES: Final = {"relay": ("relay", "serve"), "agent": ("agent",), "proxy": ("proxy",)}
SYSTEM_USER: Final = "tuunel"
SYSTEM_HOME: Final = Path("/var/lib/tuunel")
SYSTEM_UNITS: Final = Path("/etc/systemd/system")
SYSUSERS: Final = Path("/etc/sysusers.d/tuunel.conf")
WATCHDOG: Final = 60  #: seconds without a sign of life after which systemd starts a role anew
NO_RESTART: Final = 2  #: the exit code that only a person can help: UsageError

#: What needs no mount namespace: a user's manager can do it without unprivileged user namespaces, which many systems forbid.
EVERYWHERE: Final = f"""\
UMask=0077
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
WatchdogSec={WATCHDOG}
"""
#: What the system's manager can do as well. No PrivateUsers: the proxy asks the kernel whose a connection is, and must see every user.
#: No ProcSubset: the metrics tell when the process started, which is reckoned from /proc/stat.
SYSTEM_ONLY: Final = f"""\
User={SYSTEM_USER}
Group={SYSTEM_USER}
StateDirectory=tuunel
StateDirectoryMode=0700
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RemoveIPC=yes
"""


@dataclass(frozen=True, slots=True)
class ServiceFile:
    """A file that a service manager reads, and what it holds."""

    path: Path
    content: str


def unit_name(role: str) -> str:
    """What systemd calls the role's service."""
    return f"tuunel-{role}.service"


def systemd_unit(role: str, command: Sequence[str], *, home: Path | None, system: bool) -> str:
    """The unit of `role`, which `command` starts; `home` is its TUUNEL_HOME, None for the platform's usual place."""
    environment = f"Environment={quoted(f'TUUNEL_HOME={home}')}\n" if home is not None else ""
    network = "Wants=network-online.target\nAfter=network-online.target\n" if system else ""  # a user's manager knows no such target
    return f"""\
# {MARK}; change it with 'systemctl {"" if system else "--user "}edit {unit_name(role)}'
[Unit]
Description=tuunel {role}
Documentation=man:tuunel(1)
{network}StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={" ".join(map(quoted, command))}
ExecReload=/bin/kill -HUP $MAINPID
{environment}Restart=always
RestartSec=5
RestartPreventExitStatus={NO_RESTART}
TimeoutStartSec=infinity
LimitNOFILE=524288
{EVERYWHERE}{SYSTEM_ONLY if system else ""}
[Install]
WantedBy={"multi-user" if system else "default"}.target
"""


def sysusers() -> str:
    """The user that system services run as, for systemd-sysusers."""
    return f'# {MARK}\nu {SYSTEM_USER} - "tuunel" {SYSTEM_HOME}\n'


def systemd_files(role: str, command: Sequence[str], units: Path, *, home: Path | None, system: bool) -> list[ServiceFile]:
    """The files of a service, in the order in which they are written; `units` is where the manager looks for units."""
    unit = ServiceFile(units / unit_name(role), systemd_unit(role, command, home=home, system=system))
    return [ServiceFile(SYSUSERS, sysusers()), unit] if system else [unit]


def launchd_label(role: str) -> str:
    """What launchd calls the role's service."""
    return f"tuunel.{role}"


def launchd_file(role: str, command: Sequence[str], agents: Path, *, home: Path | None, user: str | None, log: Path) -> ServiceFile:
    """The property list of `role` in the directory `agents`; `user` runs it, None for the one whose it is. It logs to `log`."""
    properties: dict[str, object] = {
        "Label": launchd_label(role),
        "ProgramArguments": list(command),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 5,
        "ProcessType": "Background",
        "SoftResourceLimits": {"NumberOfFiles": 10240},
        "Umask": 0o077,
        "StandardErrorPath": str(log),
        "Comment": MARK,
    }
    if home is not None:
        properties["EnvironmentVariables"] = {"TUUNEL_HOME": str(home)}
    if user is not None:
        properties["UserName"] = user
    return ServiceFile(agents / f"{launchd_label(role)}.plist", plistlib.dumps(properties).decode())


def quoted(word: str) -> str:
    """A word as systemd reads it in a setting: systemd.service(5), "Command lines"."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or not word or any(each.isspace() or each in "'\";" for each in word) else word

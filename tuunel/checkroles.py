"""Do the roles that run here answer, as the machine that they should be, and are they online? Source: docs/reference/doctor.md."""

import errno
import os
import socket
from typing import Any, Final

from tuunel.address import HostPort
from tuunel.control import call
from tuunel.errors import NotRunning, StateError, TuunelError
from tuunel.finding import Finding, failed, ok, warning, wrong
from tuunel.identity import IdentityKey
from tuunel.settings import Home

LOOPBACKS: Final = {"localhost": ("127.0.0.1", "::1")}


def running_roles(home: Home) -> tuple[dict[str, dict[str, Any]], list[Finding]]:
    """The status of every role that answers, by its name, and what is to be said of the others."""
    answers: dict[str, dict[str, Any]] = {}
    findings = []
    for path in sorted(home.run_dir.glob("*.sock")):
        try:
            answers[path.stem] = call(path, "status")
        except NotRunning:
            findings.append(
                warning("roles", f"{path.stem} was ended without time to clean up: {path} is left", "start it again; the next one takes it")
            )
        except TuunelError as error:
            findings.append(failed("roles", error))
    return answers, findings


def check_roles(home: Home, answers: dict[str, dict[str, Any]]) -> list[Finding]:
    """Look at each running role's word about itself."""
    try:
        own = str(IdentityKey.load(home.identity_key).device_id)
    except StateError:
        own = None  # what is wrong with the key is told elsewhere
    findings = [finding for role, status in answers.items() for finding in _check_role(role, status, own)]
    return findings or [ok("roles", "none runs here")]


def _check_role(role: str, status: dict[str, Any], own: str | None) -> list[Finding]:
    name = role.partition("-")[0]
    if own is not None and status["device_id"] not in {None, own}:  # a relay is no device
        message = f"the running {name} is {status['device_id']}, but the key on disk is that of {own}"
        return [wrong("roles", message, f"start the {name} again; if the key was not changed on purpose, restore it from a backup")]
    offline = [each["relay"] for each in status["relays"] if each["state"] != "online"]
    if offline:
        return [wrong("roles", f"{name} runs, but is offline at {', '.join(offline)}", "see what is said of this relay")]
    where = f", listens on {', '.join(status['listen'])}" if status["listen"] else ""
    return [ok("roles", f"{name} runs{where}")]


def check_port(listen: HostPort, proxy: dict[str, Any] | None) -> Finding:
    """Can a proxy listen at `listen`, or is it there already? Nothing is connected to, and the port is not taken."""
    if proxy is not None:
        return ok("port", f"the proxy has {', '.join(proxy['listen'])}")
    taken = [host for host in LOOPBACKS.get(listen.host, (listen.host,)) if _is_taken(host, listen.port)]
    if not taken:
        return ok("port", f"{listen} is free for 'tuunel proxy'")
    places = ", ".join(str(HostPort(host, listen.port)) for host in taken)
    return warning(
        "port",
        f"another program listens on {places}, where 'tuunel proxy' would",
        f"find it with 'ss -ltnp sport = :{listen.port}' and stop it, or: tuunel proxy --listen localhost:{listen.port + 1}",
    )


def _is_taken(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        if os.name == "posix":  # as the proxy does: what has ended just now is no obstacle
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False

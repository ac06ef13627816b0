"""The exact next command, for every role that has become ready and every pairing that has worked."""

import shlex
from ipaddress import ip_address
from typing import Final

from tuunel.address import HostPort
from tuunel.events import Ready

WILDCARDS: Final = frozenset({"0.0.0.0", "::"})  #: what means every address of this machine; `::` those of both IP versions


def after_ready(ready: Ready) -> list[str]:
    """Lines that tell a person what to do now that a role serves; empty when there is nothing left to do."""
    steps = {"relay": after_relay, "agent": after_agent, "forward": after_forward, "proxy": after_proxy}
    lines = steps[ready.role](ready) if ready.role in steps else []
    return [*lines, f"metrics on http://{ready.metrics}/metrics"] if ready.metrics else lines


def after_relay(ready: Ready) -> list[str]:
    """What to do with the relay's first link. No link, no step: its devices are enrolled already."""
    return after_link(ready.link) if ready.link else []


def after_link(link: str) -> list[str]:
    """What to do with an enrolment link."""
    from tuunel.links import PLACEHOLDER_HOST  # noqa: PLC0415 - only a relay's commands need it: start-up time

    step = f"next, on the machine to reach:   tuunel agent {shlex.quote(link)}"
    if PLACEHOLDER_HOST in link:
        return [step, f"{PLACEHOLDER_HOST}: this relay knows no public name of its own; start it again with --advertise HOST[:PORT]"]
    return [step]


def after_agent(ready: Ready) -> list[str]:
    """What to do with the agent's first invite, and who decides when it admits whatever is enrolled."""
    steps = []
    if ready.admits_enrolled:
        steps.append("admits every device that is enrolled at the relay: the relay's operator decides who may come in")
    if ready.invite:
        steps.append(f"next, on your laptop, within 15 min:   tuunel pair {shlex.quote(ready.invite)} --name NAME")
    return steps


def after_invite(invite: str) -> list[str]:
    """What to do with an invite."""
    return [f"next, on the other machine:   tuunel pair {shlex.quote(invite)} --name NAME"]


def after_proxy(ready: Ready) -> list[str]:
    """How to send an app through the proxy. A place that only a listener can have is not one to connect to."""
    listen = HostPort.parse(ready.listen or "")
    login = f" --proxy-user {shlex.quote(ready.user)}" if ready.user is not None else ""
    where = reachable(listen)
    beyond = "   (from other machines, too)" if where != listen else ""
    curl = f"curl --proxy socks5h://{where}{login} http://NAME.tuunel:PORT/{beyond}"
    return [f"SOCKS5 + HTTP on {listen}", f"next:   {curl}   or   tuunel setup ssh|git|curl|firefox|chromium|pac|env"]


def reachable(listen: HostPort) -> HostPort:
    """Where a program connects to what listens on `listen`: for every address of this machine, one that others can reach if it has one."""
    if listen.host not in WILDCARDS:
        return listen
    from tuunel.networkwatch import FAR_AWAY, local_address  # noqa: PLC0415 - only this needs it: start-up time

    found = (local_address(place) for place in FAR_AWAY if listen.host == "::" or ":" not in place.host)
    return HostPort(next((address for address in found if address is not None), "127.0.0.1"), listen.port)


def after_forward(ready: Ready) -> list[str]:
    """What leads where, and which of it others can use, too."""
    lines = []
    for place in ready.forwards or ():
        beyond = "" if is_only_here(place["listen"]) else "   (for everyone who can connect to this machine)"
        lines.append(f"{place['listen']} leads to {place['target']}{beyond}")
    return lines


def is_only_here(listen: str) -> bool:
    """Whether `listen`, the path of a unix socket or an address and port, can be reached from this machine alone."""
    if listen.startswith("/"):
        return True
    host = listen.rpartition(":")[0].strip("[]")
    return host == "localhost" or ip_address(host).is_loopback


def after_pairing(name: str) -> list[str]:
    """How to reach the device just paired."""
    return ["next:   tuunel proxy", f"  or:   ssh -o ProxyCommand='tuunel nc %h %p' {name}.tuunel"]

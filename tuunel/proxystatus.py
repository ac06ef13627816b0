"""What an answer of the HTTP door says of a connection in its head: the exact failure as Proxy-Status (RFC 9209), or its number.

`tuunel nc` reads what the door has written, and must start fast: this needs nothing but `re`. Source: docs/spec/front-doors.md.
"""

import re
from typing import Final

from tuunel.errors import Failure, Reason, Speaker

CONNECTION_HEADER: Final = "Tuunel-Connection"  # on the success answer at the unix socket: the number that the proxy's events use
MAX_DETAIL: Final = 200  # characters of a failure's detail that are passed on: what the wire allows for one

_PROXY_STATUS: Final = re.compile(r'tuunel; error=[a-z_]+; details="([a-z]+) ([A-Z0-9_]+)(?:: ((?:[^"\\]|\\["\\])*))?"')


def proxy_status(failure: Failure) -> str:
    """Write the `Proxy-Status` value that carries the exact failure: `tuunel; error=<type>; details="<speaker> <REASON>: <text>"`."""
    text = printable(failure.detail).encode("ascii", "replace").decode()
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    details = f"{failure.speaker} {failure.reason}{f': {text}' if text else ''}"
    return f'tuunel; error={failure.answer.proxy_status}; details="{details}"'


def parse_proxy_status(value: str) -> tuple[Speaker, Reason, str] | None:
    """Read what `proxy_status` wrote: speaker, reason, detail. None when the value says something else."""
    match = _PROXY_STATUS.fullmatch(value.strip())
    if match is None or match[1] not in set(Speaker) or match[2] not in set(Reason):
        return None
    return Speaker(match[1]), Reason(match[2]), re.sub(r"\\(.)", r"\1", match[3] or "")


def printable(text: str) -> str:
    """Make untrusted text fit for one line that a person reads: control characters become spaces, and its length is limited."""
    return "".join(character if character.isprintable() else " " for character in text[:MAX_DETAIL])

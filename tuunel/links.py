"""What people copy from one machine to another: enrolment links of a relay and invites of an agent. docs/spec/names.md section 6.

    tuunel://HOST:PORT?pin=...[&enrol=...]&sum=...
    tuunel://HOST:PORT?pin=...&device=...&secret=...[&enrol=...]&sum=...

Both are bearer secrets: `str()` is the real text, `repr()` masks what opens something.
"""

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Final

from tuunel.address import HostPort
from tuunel.errors import UsageError
from tuunel.hkdf import expand_label
from tuunel.identity import DeviceID

SCHEME: Final = "tuunel://"
MAX_LINK: Final = 1024  # the longest real one, with a host of 253 characters, has fewer than 500
PIN_LENGTH: Final = 32
SECRET_LENGTH: Final = 16  # 128 bits
SUM_LENGTH: Final = 5
INVITE_ID_LENGTH: Final = 8
PLACEHOLDER_HOST: Final = "PUBLIC-NAME"  #: stands in a link whose relay does not know its public name
_AGAIN: Final = "copy it again, whole, and put it in single quotes"


@dataclass(frozen=True, slots=True)
class RelayLink:
    """Where a relay is and how to recognise it: `pin` is the 32-byte relay id; `enrol` a one-use enrolment token of 16 bytes."""

    address: HostPort
    pin: bytes
    enrol: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_length("pin", self.pin, PIN_LENGTH)
        if self.enrol is not None:
            _check_length("enrol", self.enrol, SECRET_LENGTH)

    def __str__(self) -> str:
        return _write(self.address, pin=self.pin, enrol=self.enrol)


@dataclass(frozen=True, slots=True)
class Invite:
    """Opens one device to one more machine: the agent's relay, its device ID and a secret of 16 bytes.

    `relay.enrol` is a token with which the invited machine may enrol at that relay.
    """

    relay: RelayLink
    device: DeviceID
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_length("secret", self.secret, SECRET_LENGTH)

    @property
    def invite_id(self) -> bytes:
        """What the relay may know of the invite: 8 bytes."""
        return invite_id(self.secret)

    @property
    def proof_key(self) -> bytes:
        """The key that proves the invite inside the end-to-end handshake: 32 bytes; the agent keeps this instead of the secret."""
        return invite_proof_key(self.secret)

    def __str__(self) -> str:
        return _write(self.relay.address, pin=self.relay.pin, device=self.device.raw, secret=self.secret, enrol=self.relay.enrol)


def invite_id(secret: bytes) -> bytes:
    """Return the 8-byte id of the invite with this secret: XL(secret, "invite id")."""
    return expand_label(secret, "invite id", length=INVITE_ID_LENGTH)


def invite_proof_key(secret: bytes) -> bytes:
    """Return the 32-byte proof key of the invite with this secret: XL(secret, "invite proof")."""
    return expand_label(secret, "invite proof")


def parse_link(text: str) -> RelayLink:
    """Read an enrolment link; white space around it is allowed. UsageError tells a typo, a cut, or an invite in its place."""
    address, fields = _read(text, "link")
    if "secret" in fields or "device" in fields:
        raise UsageError("this is an invite, not a relay's link", "use it with 'tuunel pair'")
    return RelayLink(address, _take(fields, "pin", PIN_LENGTH), _take_optional(fields, "enrol", SECRET_LENGTH))


def parse_invite(text: str) -> Invite:
    """Read an invite; white space around it is allowed. UsageError tells a typo, a cut, or a relay's link in its place."""
    address, fields = _read(text, "invite")
    if "secret" not in fields and "device" not in fields:
        raise UsageError(
            "this is a relay's link, not an invite", "use it with 'tuunel agent', or ask for an invite made by 'tuunel invite'"
        )
    relay = RelayLink(address, _take(fields, "pin", PIN_LENGTH), _take_optional(fields, "enrol", SECRET_LENGTH))
    return Invite(relay, DeviceID.parse(fields.get("device", "")), _take(fields, "secret", SECRET_LENGTH))


def _write(address: HostPort, **fields: bytes | None) -> str:
    query = "&".join(f"{key}={_encode(value)}" for key, value in fields.items() if value is not None)
    body = f"{SCHEME}{address}?{query}"
    return f"{body}&sum={_checksum(body)}"


def _read(text: str, kind: str) -> tuple[HostPort, dict[str, str]]:
    text = text.strip()
    if len(text) > MAX_LINK:
        raise UsageError(f"this {kind} is longer than {MAX_LINK} characters", _AGAIN)
    if not text.startswith(SCHEME):
        raise UsageError(f"a {kind} starts with {SCHEME}", _AGAIN)
    body, found, checksum = text.rpartition("&sum=")
    if not found or len(checksum) < SUM_LENGTH * 8 // 5:
        raise UsageError(f"this {kind} is cut short", "put it in single quotes: without them the shell ends it at the first '&'")
    if checksum != _checksum(body):
        raise UsageError(f"this {kind} has a typo: its checksum does not match", _AGAIN)
    where, _, query = body.removeprefix(SCHEME).partition("?")
    address = HostPort.parse(where)
    if address.host == PLACEHOLDER_HOST:
        raise UsageError(f"this {kind} does not say where the relay is", "start the relay with '--advertise' and its public name")
    if "%" in address.host:
        raise UsageError(f"this {kind} has an address with a zone, which means nothing on another machine", _AGAIN)
    if address.port == 0:
        raise UsageError(f"this {kind} has port 0, where nothing can listen", "start the relay with '--advertise HOST:PORT'")
    return address, _read_fields(query, kind)


def _read_fields(query: str, kind: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for item in query.split("&"):
        key, _, value = item.partition("=")
        if key not in ("pin", "device", "secret", "enrol"):
            raise UsageError(f"this {kind} has a part that this tuunel does not know: {key!r}", "bring tuunel up to date")
        if key in fields:
            raise UsageError(f"this {kind} has {key!r} twice", _AGAIN)
        fields[key] = value
    return fields


def _take_optional(fields: dict[str, str], key: str, length: int) -> bytes | None:
    return _take(fields, key, length) if key in fields else None


def _take(fields: dict[str, str], key: str, length: int) -> bytes:
    text = fields.get(key, "")
    try:
        value = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except ValueError:
        value = b""
    # one value has one spelling: the unused low bits of the last character must be zero, and the case lower
    if len(value) != length or _encode(value) != text:
        raise UsageError(f"the {key!r} in it is not {length} bytes in base32", _AGAIN)
    return value


def _encode(value: bytes) -> str:
    return base64.b32encode(value).decode().lower().rstrip("=")


def _checksum(body: str) -> str:
    return _encode(hashlib.sha256(b"tuunel/1 link checksum\x00" + body.encode()).digest()[:SUM_LENGTH])


def _check_length(what: str, value: bytes, length: int) -> None:
    if len(value) != length:
        raise ValueError(f"{what} has {length} bytes, not {len(value)}")

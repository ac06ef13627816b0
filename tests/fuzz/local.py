"""What is read from people and from this machine: links and invites, lines at the control socket, and state files."""

import base64
import hashlib
import json
import tempfile
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

from tests.e2e.tunnels import AGENT, INVITE, NOW
from tests.fuzz.harness import Choices, harness, pieces
from tuunel.address import HostPort
from tuunel.control import MAX_REQUEST, _answer_requests
from tuunel.devices import Devices
from tuunel.errors import Failure, Reason, Speaker, StateError, UsageError
from tuunel.grants import Grants
from tuunel.identity import DeviceID
from tuunel.links import MAX_LINK, RelayLink, parse_invite, parse_link
from tuunel.policy import parse_target_pattern
from tuunel.relay.wire import admission_records
from tuunel.statefile import MAX_SIZE

_LINK: Final = RelayLink(HostPort("relay.example.net", 7443), bytes(range(32)), b"e" * 16)


def _summed(text: str) -> str:
    """The text with its right checksum: a typo in it is no obstacle to somebody who means harm."""
    body = text.rpartition("&sum=")[0] or text
    digest = hashlib.sha256(b"tuunel/1 link checksum\x00" + body.encode("utf-8", "surrogatepass")).digest()[:5]
    return f"{body}&sum={base64.b32encode(digest).decode().lower()}"


@harness(
    max_length=1100,
    seeds=[mode + str(each).encode() for mode in (b"\0", b"\1") for each in (_LINK, INVITE, RelayLink(HostPort("::1", 1), bytes(32)))]
    + [b"\1" + str(INVITE).replace("pin", "device").encode(), b"\1tuunel://h:1?pin=", b"\1" + b"x" * 1050],
    words=[b"tuunel://", b"&sum=", b"?pin=", b"&device=", b"&secret=", b"&enrol=", b":7443"],
)
def links(data: bytes) -> None:
    """Any text is a link, an invite or UsageError, in under 1025 characters; what is read is written back, and never a secret in repr."""
    mode, text = (data or b"\0")[0] % 2, data[1:].decode("utf-8", "replace")
    if mode:
        text = _summed(text)
    read = 0
    for parse in (parse_link, parse_invite):
        with suppress(UsageError):
            link = parse(text)
            read += 1
            assert len(text.strip()) <= MAX_LINK
            assert parse(str(link)) == link
            secret = getattr(link, "secret", None) or getattr(link, "enrol", None)
            assert secret is None or repr(secret) not in repr(link)
            assert str(link).isprintable()
            assert str(link).isascii()
    assert read <= 1, "a link is not an invite too"


class _Caller:
    """The control socket's end at the role: these pieces of lines, then the end; what is answered."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self.answers = b""
        self.read = 0

    async def receive(self) -> bytes:
        """The next piece."""
        piece = next(self._pieces, b"")
        self.read += len(piece)
        return piece

    async def send_all(self, data: bytes) -> None:
        """Take an answer."""
        self.answers += data


async def _echo(request: Mapping[str, Any]) -> dict[str, Any]:
    return {"echo": request.get("value")}


async def _invite(request: Mapping[str, Any]) -> dict[str, Any]:
    """Take arguments as the roles' handlers do."""
    targets = [str(parse_target_pattern(text)) for text in request["targets"]]
    return {"targets": targets, "uses": int(request["uses"]), "device": str(DeviceID.parse(request["device"]))}


async def _refuse(request: Mapping[str, Any]) -> dict[str, Any]:
    raise Failure(Reason(request["reason"]), Speaker.AGENT, request["detail"])


_HANDLERS: Final = {"echo": _echo, "invite": _invite, "refuse": _refuse}


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run what never waits."""
    with suppress(StopIteration):
        coroutine.send(None)
        raise AssertionError("it waits for something")


@harness(
    max_length=2000,
    seeds=[
        b'\0{"command": "echo", "value": [1, null, "\\ud800"]}\n{"command": "no"}\n',
        b'\3{"command": "invite", "targets": ["*"], "uses": 1, "device": "' + str(AGENT.device_id).encode() + b'"}\n',
        b'\0{"command": "refuse", "reason": "INTERNAL", "detail": "x"}\n',
        b"\0[]\n{}\nnull\n\xff\n",
        b'\0{"command": "echo", "value": ' + b"[" * 1500 + b"\n",
        b'\0{"command": "echo", "value": 1e999}\n',
    ],
    words=[b'"command": ', b'"echo"', b'"invite"', b'"refuse"', b'"value": ', b"\\ud800", b"NaN", b"1e999"],
)
def control_lines(data: bytes) -> None:
    """Any lines, in any pieces, get one JSON answer each, whose `ok` says whether it was understood, and which takes no handler down."""
    size, data = (data or b"\0")[0], data[1:]
    caller = _Caller(pieces(data, size))
    _run(_answer_requests(cast("Any", caller), _HANDLERS))
    lines = caller.answers.split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == data.count(b"\n")
    for line in lines:
        answer = json.loads(line)
        assert answer["ok"] in (True, False)
        assert answer["ok"] or answer["error"]["message"]


@harness(max_length=12, seeds=[b"\x01\0\0\0", b"\0\xff\xff\xff", b"\0\1\0\1"])
def control_flood(data: bytes) -> None:
    """A line that does not end is refused at 64 KiB and one piece, however large the pieces are."""
    choices = Choices(data)
    size, length = max(1 + choices.number(2), 512), min(choices.number(2) * 8, 400_000)
    piece = b"x" * size
    caller = _Caller(piece for _ in range(-(-length // size)))
    _run(_answer_requests(cast("Any", caller), _HANDLERS))
    assert caller.read <= MAX_REQUEST + 2 * size
    assert bool(caller.answers) == (caller.read > MAX_REQUEST)


_FOLDER: Final = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)  # gone with the process


def _write(name: str, data: bytes) -> Path:
    path = Path(_FOLDER.name) / name
    path.write_bytes(data)
    path.chmod(0o600)
    return path


_DEVICE: Final = str(AGENT.device_id)
_GRANT: Final = {"device": _DEVICE, "name": "laptop", "targets": ["*"], "created": 1, "expires": None}
_INVITE: Final = {
    "id": "00" * 8,
    "proof_key": "00" * 32,
    "targets": ["*", "internet"],
    "uses": 2,
    "expires": NOW + 9,
    "name": "",
    "access": 60,
    "used_by": [_DEVICE],
    "barred": [],
}
_FILE_MEMORY: Final = MAX_SIZE + 4 * 1024 * 1024  # room for the largest file is made before its size is known
_JSON_WORDS: Final = (b"null", b"true", b"-1", b"1e999", b"NaN", b'"', b"[]", b"{}", b"\\ud800", b'"expires": ', b'"targets": ')


@harness(
    max_length=2500,
    seeds=[
        json.dumps({"version": 1, **content}).encode()
        for content in (
            {},
            {"grants": [_GRANT]},
            {"grants": [{**_GRANT, "expires": NOW + 5}], "invites": [_INVITE], "revocations": [{"device": _DEVICE, "at": 5}]},
            {"invites": [_INVITE, {**_INVITE, "access": None}]},
            {"grants": None},
        )
    ]
    + [b"[" * 2000, b'{"version": 2}', b"\xff"],
    words=_JSON_WORDS,
    memory=_FILE_MEMORY,
)
def grants_file(data: bytes) -> None:
    """Any file is a book whose every answer can be given and told the relay, or StateError that names it."""
    grants = Grants(_write("grants.json", data), admit_enrolled=bool(len(data) % 2))
    try:
        live, invites, admission = grants.grants(NOW), grants.open_invites(NOW), grants.admission(NOW)
    except StateError as error:
        if "grants.json" not in str(error):
            raise
        return
    for grant in live:
        assert grant.name.isprintable()
        assert all(str(parse_target_pattern(target)) == target for target in grant.targets)
        assert grants.admit(grant.device, NOW).device == grant.device
    assert all(invite.is_open(NOW) for invite in invites)
    ends = grants.next_expiry(NOW)
    assert ends is None or ends > NOW
    told = admission_records(enrolled=admission.enrolled, paired=admission.paired, invites=admission.invites, revoked=admission.revoked)
    assert all(record.encode() for record in told)


_RELAY: Final = {"id": "00" * 32, "address": "relay.example.net:7443", "enrolled": True}


@harness(
    max_length=2000,
    seeds=[
        json.dumps({"version": 1, **content}).encode()
        for content in (
            {},
            {"relays": [_RELAY], "devices": [{"name": "home", "device": _DEVICE, "relays": ["00" * 32]}]},
            {"relays": [{**_RELAY, "enrolled": False}], "devices": [{"name": "home", "device": _DEVICE, "relays": ["11" * 32]}]},
            {"relays": "no"},
        )
    ],
    words=(*_JSON_WORDS, b'"relays": ', b'"devices": ', b'"address": '),
    memory=_FILE_MEMORY,
)
def devices_file(data: bytes) -> None:
    """Any file is a book in which each device is found by its name and ID, or StateError that names it."""
    devices = Devices(_write("devices.json", data))
    try:
        known, relays = devices.devices(), devices.relays()
    except StateError as error:
        if "devices.json" not in str(error):
            raise
        return
    assert all(len(relay.id) == 32 and str(relay.address).isprintable() for relay in relays)
    for device in known:
        for name in (device.name, device.name.upper(), str(device.id)):
            try:
                found = devices.resolve(name)
            except Failure as failure:
                if failure.reason is not Reason.NOT_PAIRED:
                    raise
                assert not any(relay.enrolled for relay in device.relays)
            else:
                assert found.relays
                assert all(relay.enrolled for relay in found.relays)
    assert devices.free_alias("home")

"""Links come by mail and chat, from anybody: what tuunel has not written opens nothing, connects nowhere, draws nothing on a terminal."""

import base64
import hashlib
import io
import socket
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.world import LOOPBACK, world
from tuunel import pairing
from tuunel.address import HostPort
from tuunel.cli import app
from tuunel.errors import Failure, Reason, UsageError
from tuunel.events import Ready
from tuunel.identity import IdentityKey
from tuunel.links import MAX_LINK, Invite, RelayLink, parse_invite, parse_link
from tuunel.rawstream import RawStream

DEVICE = IdentityKey.from_private_value(7).device_id
LINK = RelayLink(HostPort("relay.example.net", 7443), bytes(range(32)), bytes(range(16)))
INVITE = Invite(LINK, DEVICE, bytes(range(16, 32)))
PARTS = str(INVITE).rpartition("&sum=")[0]
PIN, QUERY = f"pin={'a' * 52}", PARTS.partition("?")[2]
ESCAPES = "\x00\x07\x08\x1b\x7f\x85\x9b\u200b\u200e\u202e\u2028\u2066\ufeff"


def with_sum(body: str) -> str:
    """A link whose checksum is right, whoever wrote it."""
    digest = hashlib.sha256(b"tuunel/1 link checksum\0" + body.encode()).digest()[:5]
    return f"{body}&sum={base64.b32encode(digest).decode().lower()}"


def test_the_checksum_used_here_is_the_real_one() -> None:
    assert with_sum(PARTS) == str(INVITE)


def hosts() -> list[str]:
    """What must not stand where a relay's name does."""
    return [
        "", ".", "-h", "a b", "h/..", "h?x", "h#x", "h%41", "%6c", "user@h", "user:pw@h", "h\\", "a" * 254, "[::1", "::1]", "[::1]x", "[h]",
        "h:1", "h\t", "h\n", "h\r\nX: y", "$(id)", "`id`", "'h'", '"h"', "h;id", "h|id", "h&x", "h\0", "*", "relay\u3002example",
        "re\u0131ay", "r\u0435lay.example", "\uff52elay", "relay.example\u200b", "xn--\u00e4", "\u0661.2.3.4", "1\u0664",
        *(f"h{mark}" for mark in ESCAPES), *(f"[fe80::1%{zone}]" for zone in ("eth0", "a b", "x\ny", *ESCAPES)),
    ]  # fmt: skip


@pytest.mark.parametrize("host", hosts(), ids=lambda host: ascii(host)[1:30])
def test_a_host_that_is_no_name_and_no_address_is_refused_under_a_right_sum(host: str) -> None:
    for read in (parse_invite, parse_link):
        with pytest.raises(UsageError):
            read(with_sum(f"tuunel://{host}:7443?{QUERY if read is parse_invite else PIN}"))


@pytest.mark.parametrize(
    "port", ["", "0", "-1", "+1", "65536", "99999999999", "1 ", " 1", "0x50", "1e3", "1_0", "\u0661", "\uff11", "1;", "80 80"]
)
def test_a_port_that_is_none_is_refused_under_a_right_sum(port: str) -> None:
    for read in (parse_invite, parse_link):
        with pytest.raises(UsageError):
            read(with_sum(f"tuunel://h:{port}?{QUERY if read is parse_invite else PIN}"))


@pytest.mark.parametrize(
    "scheme",
    [
        "", "tuunel:", "tuunel:/", "tuunel:///", "TUUNEL://", "Tuunel://", "tunnel://", "tuune1://", "http://", "https://", "file:///", "ssh://",
        "javascript://", "data:,", "//", "-", "--", "\u200btuunel://", "\ufeff\u200btuunel://", "tuunel\u200b://", "tuunel:\u2215\u2215",
        "tuunel\uff1a//", "\uff54uunel://", "tu\u03c5nel://", "\u1d57uunel://", "tuunel%3A//", "tuunel://tuunel://",
    ],
    ids=ascii,
)  # fmt: skip
def test_another_scheme_or_one_that_only_looks_like_ours_is_refused(scheme: str) -> None:
    for read, rest in ((parse_invite, f"h:1?{QUERY}"), (parse_link, f"h:1?{PIN}")):
        with pytest.raises(UsageError):
            read(with_sum(scheme + rest))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("&", "&amp;"),
        lambda text: text.replace("&", ";"),
        lambda text: text.replace("=", "%3D"),
        lambda text: text.replace("pin=", "%70in="),
        lambda text: text.replace("pin=", "PIN="),
        lambda text: text.replace("pin=", "p\u0456n="),
        lambda text: text.replace("pin=", "pin= "),
        lambda text: text.replace("pin=", "pin[]="),
        lambda text: text.replace("secret=", "secret=%20"),
        lambda text: text.replace("?", "?&"),
        lambda text: text.replace("?", "??"),
        lambda text: text.replace("?", "/?"),
        lambda text: text.replace("?", "#?"),
        lambda text: text.replace("&", "&\n"),
        lambda text: text.replace("&", "\0&"),
        lambda text: text + "&pin=" + "a" * 52,
        lambda text: text + "&secret=" + "a" * 26,
        lambda text: text + "&",
        lambda text: text + "&redirect=http://evil.example",
        lambda text: text + "#fragment",
        lambda text: text.upper(),
        lambda text: text.replace("a", "\u0430"),
        lambda text: text.replace("a", "\uff41", 1),
        lambda text: text.replace("aa", "a\u0301a", 1),
        lambda text: "".join(f"{letter}\u200b" for letter in text),
        lambda text: text[: len(text) // 2] + "\n" + text[len(text) // 2 :],
    ],
)
def test_no_other_spelling_of_the_parts_is_read_under_a_right_sum(change: Callable[[str], str]) -> None:
    with pytest.raises(UsageError):
        parse_invite(with_sum(change(PARTS)))


def test_marks_behind_the_sum_are_no_part_of_it() -> None:
    for tail in (".", ",", ")", ">", "&", "#x", "\0", "\u200b", "a", "\u202e", "%0a", "&sum=aaaaaaaa", str(INVITE)):
        with pytest.raises(UsageError):
            parse_invite(f"{INVITE}{tail}")


@pytest.mark.parametrize("size", [MAX_LINK + 1, 1 << 20, 1 << 24])
def test_what_is_too_long_is_told_by_its_length_alone(size: int) -> None:
    for text in ("tuunel://" + "a" * size, str(INVITE) + "&" * size, "&sum=" * (size // 5 + 1), with_sum(f"tuunel://{'h' * size}:1?{PIN}")):
        for read in (parse_invite, parse_link):
            with pytest.raises(UsageError, match=f"longer than {MAX_LINK}"):
                read(text)


@given(st.text(st.characters(codec="utf-8"), max_size=80), st.integers(0, len(PARTS)))
def test_nothing_that_is_put_into_a_link_makes_it_another_one(extra: str, place: int) -> None:
    changed = PARTS[:place] + extra + PARTS[place:]
    try:
        read = parse_invite(with_sum(changed))
    except UsageError:
        return
    assert str(read) == with_sum(changed.strip()), "one link has one spelling"


# what a person sees


@pytest.mark.parametrize("command", ["pair", "agent"])
@pytest.mark.parametrize("where", ["host", "port", "part", "device", "scheme", "stdin"])
def test_a_link_cannot_draw_on_the_terminal(
    command: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUUNEL_HOME", str(tmp_path / "home"))
    evil = f"x\x1b]0;owned\x07\x1b[2J\x1b[31m{ESCAPES}"
    text = {
        "host": with_sum(f"tuunel://{evil}:7443?{QUERY}"),
        "port": with_sum(f"tuunel://h:{evil}?{QUERY}"),
        "part": with_sum(f"{PARTS}&{evil}=1"),
        "device": with_sum(f"tuunel://h:1?{PIN}&device={evil}&secret={'a' * 26}"),
        "scheme": f"{evil}://h",
        "stdin": "-",
    }[where]
    if where == "stdin":
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{evil}\n"))
    assert app.main([command, text]) == UsageError.exit_code
    out, said = capsys.readouterr()
    assert not out
    drawing = {letter for letter in said if unicodedata.category(letter) in {"Cc", "Cf", "Zl", "Zp"} and letter != "\n"}
    assert not drawing, f"{said!r}"
    assert len(said.splitlines()) <= 2


# what a link can make a machine do


@pytest.mark.anyio
async def test_a_wrong_pin_gives_nothing_away_and_uses_nothing_up() -> None:
    """Somebody else at the relay's address, or a link that lies about the relay: the token and the device stay unknown there."""
    async with world() as made:
        relay = await made.relay()
        link = await relay.until(Ready)
        assert link.link
        agent = await made.agent(link.link)
        invite = parse_invite((await agent.role._make_invite({}))["invite"])
        true = invite.relay
        home = made.home()
        lie = Invite(RelayLink(true.address, bytes(32), true.enrol), invite.device, invite.secret)
        with pytest.raises(Failure) as caught:
            await pairing.pair(home, lie, "home")
        assert caught.value.reason is Reason.RELAY_UNTRUSTED
        device = IdentityKey.load(home.identity_key).device_id
        assert not [event for event in relay.events if str(device) in repr(event)]
        with pytest.raises(Failure):
            await pairing.pair(home, lie, "home")
        paired = await pairing.pair(home, invite, "home")  # the token and the invite were not used up
        assert paired.id == invite.device


@pytest.mark.anyio
async def test_an_invite_for_another_device_than_its_own_is_not_taken_for_it() -> None:
    async with world() as made:
        relay = await made.relay()
        link = (await relay.until(Ready)).link
        assert link
        agent, other = await made.agent(link), await made.agent(link)
        invite = parse_invite((await agent.role._make_invite({}))["invite"])
        swapped = Invite(invite.relay, other.role._identity.device_id, invite.secret)
        with pytest.raises(Failure) as caught:
            await pairing.pair(made.home(), swapped, "home")
        assert caught.value.reason in {Reason.INVITE_INVALID, Reason.PEER_UNAVAILABLE, Reason.NOT_PAIRED}
        assert not other.role._grants.grants(0)


@pytest.mark.anyio
async def test_a_link_that_leads_to_any_other_service_tells_it_nothing() -> None:
    """What is sent before the relay has proven itself is HELLO: random bytes and a fresh key."""
    heard: list[bytes] = []
    async with world() as made:

        async def listen(stream: RawStream) -> None:
            heard.append(await stream.receive(65536))
            stream.reset()

        port = await made.target(listen)
        link = RelayLink(HostPort(LOOPBACK.host, port), bytes(32), b"T" * 16)
        home = made.home()
        with pytest.raises(Failure):
            await pairing.pair(home, Invite(link, DEVICE, b"S" * 16), "home")
        identity = IdentityKey.load(home.identity_key)
        assert heard
        for said in heard:
            assert len(said) <= 512
            for wrong in (
                b"T" * 16,
                b"S" * 16,
                DEVICE.raw,
                identity.device_id.raw,
                identity.public_bytes[1:],
                socket.gethostname().encode(),
            ):
                assert wrong not in said

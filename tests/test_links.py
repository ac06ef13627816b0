"""Links and invites read back as they were written, a typo is told as a typo, and secrets do not show themselves."""

import base64
import contextlib
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_identity import VECTORS
from tuunel.address import HostPort
from tuunel.errors import UsageError
from tuunel.hkdf import expand_label
from tuunel.identity import DeviceID
from tuunel.links import MAX_LINK, Invite, RelayLink, parse_invite, parse_link

LINK = VECTORS["links"][0]["text"]
INVITE = VECTORS["invites"][0]["text"]


def optional(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


def with_sum(body: str) -> str:
    digest = hashlib.sha256(b"tuunel/1 link checksum\0" + body.encode()).digest()[:5]
    return f"{body}&sum={base64.b32encode(digest).decode().lower()}"


@pytest.mark.parametrize("case", VECTORS["links"])
def test_links_are_frozen(case):
    link = RelayLink(HostPort(case["host"], case["port"]), bytes.fromhex(case["pin"]), optional(case["enrol"]))
    assert str(link) == case["text"]
    assert parse_link(case["text"]) == link


@pytest.mark.parametrize("case", VECTORS["invites"])
def test_invites_are_frozen(case):
    relay = RelayLink(HostPort(case["host"], case["port"]), bytes.fromhex(case["pin"]), optional(case["enrol"]))
    invite = Invite(relay, DeviceID.parse(case["device"]), bytes.fromhex(case["secret"]))
    assert str(invite) == case["text"]
    assert parse_invite(case["text"]) == invite
    assert invite.invite_id.hex() == case["invite_id"]
    assert invite.proof_key.hex() == case["proof_key"]


def test_what_the_relay_knows_of_an_invite_comes_from_its_secret():
    invite = parse_invite(INVITE)
    assert invite.invite_id == expand_label(invite.secret, "invite id", length=8)
    assert invite.proof_key == expand_label(invite.secret, "invite proof")


@pytest.mark.parametrize("text", VECTORS["links"] + VECTORS["invites"])
def test_the_sum_is_what_the_spec_says(text):
    assert with_sum(text["text"].rpartition("&sum=")[0]) == text["text"]


def test_white_space_around_it_is_allowed():
    assert parse_link(f"  {LINK}\r\n") == parse_link(LINK)
    assert parse_invite(f"\t{INVITE}\n") == parse_invite(INVITE)


@given(st.data())
def test_any_single_wrong_character_is_told(data):
    read, text = data.draw(st.sampled_from([(parse_link, LINK), (parse_invite, INVITE)]))
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.characters(min_codepoint=33, max_codepoint=126).filter(lambda letter: letter != text[place]))
    with pytest.raises(UsageError):
        read(text[:place] + letter + text[place + 1 :])


@given(st.integers(0, len(INVITE) - 1))
def test_any_cut_is_told(length):
    with pytest.raises(UsageError):
        parse_invite(INVITE[:length])


@given(st.text(max_size=200))
def test_no_text_is_more_than_a_usage_error(text):
    for read in (parse_link, parse_invite):
        for whole in (text, "tuunel://" + text, with_sum("tuunel://" + text) if text.isascii() else text):
            with contextlib.suppress(UsageError):
                read(whole)


def test_a_typo_is_told_as_a_typo():
    with pytest.raises(UsageError, match="typo"):
        parse_link(LINK.replace("pin=", "pin=a"))


def test_a_link_that_the_shell_cut_at_the_ampersand_is_told_so():
    with pytest.raises(UsageError, match="cut short") as caught:
        parse_link(LINK.partition("&")[0])
    assert "quotes" in caught.value.advice


def test_the_other_kind_is_told_with_its_command():
    with pytest.raises(UsageError, match="is an invite") as caught:
        parse_link(INVITE)
    assert "tuunel pair" in caught.value.advice
    with pytest.raises(UsageError, match="is a relay's link") as caught:
        parse_invite(LINK)
    assert "tuunel agent" in caught.value.advice


def test_a_link_without_a_public_name_says_what_the_relay_needs():
    with pytest.raises(UsageError, match="where the relay is") as caught:
        parse_link(str(RelayLink(HostPort("PUBLIC-NAME", 7443), bytes(32))))
    assert "--advertise" in caught.value.advice


PIN = "a" * 52
TOKEN = "a" * 26


@pytest.mark.parametrize(
    "body",
    [
        f"tuunel://h:1?enrol={TOKEN}",
        f"tuunel://h:1?pin={PIN[:-1]}",
        f"tuunel://h:1?pin={PIN}a",
        f"tuunel://h:1?pin={PIN[:-1]}b",  # unused bits set: a second spelling of the same bytes
        f"tuunel://h:1?pin={PIN.upper()}",
        f"tuunel://h:1?pin={PIN}====",
        f"tuunel://h:1?pin={PIN}&enrol=",
        f"tuunel://h:1?pin={PIN}&pin={PIN}",
        f"tuunel://h:1?pin={PIN}&new=thing",
        f"tuunel://h:1?pin={PIN}&",
        f"tuunel://h:0?pin={PIN}",
        f"tuunel://h?pin={PIN}",
        f"tuunel://h:1/?pin={PIN}",
        f"tuunel://u@h:1?pin={PIN}",
        "tuunel://h:1?",
        "tuunel://h:1",
        f"http://h:1?pin={PIN}",
        f"tuunel://h:1?pin={PIN}&device={'a' * 40}",
    ],
)
def test_a_right_sum_does_not_excuse_a_wrong_link(body):
    for read in (parse_link, parse_invite):
        with pytest.raises(UsageError):
            read(with_sum(body))


def test_an_invite_needs_both_device_and_secret():
    device = VECTORS["devices"][0]["compact"]
    good = f"tuunel://h:1?pin={PIN}&device={device}&secret={TOKEN}"
    assert parse_invite(with_sum(good)).relay.enrol is None
    for bad in (good.replace(f"&device={device}", ""), good.replace(f"&secret={TOKEN}", ""), good.replace(device, device[::-1])):
        with pytest.raises(UsageError):
            parse_invite(with_sum(bad))


def test_the_ceiling():
    with pytest.raises(UsageError, match="longer than"):
        parse_link("tuunel://" + "a" * (MAX_LINK - 8))
    longest = RelayLink(HostPort("a" * 253, 65535), b"\xff" * 32, b"\xff" * 16)
    assert len(str(Invite(longest, DeviceID.parse(VECTORS["devices"][0]["text"]), b"\xff" * 16))) < 500


def test_secrets_mask_themselves():
    link = RelayLink(HostPort("h", 1), bytes(32), b"T" * 16)
    invite = Invite(link, DeviceID.parse(VECTORS["devices"][0]["text"]), b"S" * 16)
    for shown in (repr(link), repr(invite), f"{invite!r}"):
        assert "TTT" not in shown
        assert "SSS" not in shown
        assert "krkf" not in shown  # the same in base32


@pytest.mark.parametrize("make", [lambda: RelayLink(HostPort("h", 1), b""), lambda: RelayLink(HostPort("h", 1), bytes(32), bytes(15))])
def test_our_own_code_cannot_make_a_wrong_one(make):
    with pytest.raises(ValueError):
        make()


def test_the_spec_quotes_these_vectors():
    page = (Path(__file__).parents[1] / "docs" / "spec" / "names.md").read_text(encoding="utf-8")
    device, invite = VECTORS["devices"][0], VECTORS["invites"][0]
    quoted = [device[part] for part in ("public", "raw", "text", "compact", "label", "digest", "signature")]
    quoted += [invite[part] for part in ("pin", "device", "secret", "enrol", "text", "invite_id", "proof_key")]
    quoted += [LINK, *(case["output"] for case in VECTORS["expand_label"] if case["label"] in {"key", "iv"})]
    assert [value for value in quoted if value not in page] == []

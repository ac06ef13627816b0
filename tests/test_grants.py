"""Who may come in: an invite works once, for who can prove it; what was taken back stays taken back."""

import hmac
import json
import stat
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuunel import statefile
from tuunel.errors import Failure, Reason, Speaker, StateError, UsageError
from tuunel.grants import MAX_NAME, MAX_TARGETS, MAX_USES, REMEMBERED, Admission, Grants
from tuunel.identity import DeviceID, IdentityKey
from tuunel.links import invite_id, invite_proof_key

NOW = 1_800_000_000
SECRET = b"a secret of 128b"
T3 = b"t" * 32
LAPTOP, PHONE, GUEST = (IdentityKey.from_private_value(value).device_id for value in (1, 2, 3))


def prove(secret: bytes = SECRET, t3: bytes = T3) -> bytes:
    return hmac.digest(invite_proof_key(secret), t3, "sha256")


def invite(book: Grants, secret: bytes = SECRET, targets=(), *, uses=1, lasts=900, name="", access=None, now=NOW) -> None:
    book.make_invite(secret, targets, uses=uses, expires=now + lasts, name=name, now=now, access=access)


def redeem(book: Grants, device: DeviceID, secret: bytes = SECRET, *, label="laptop", now=NOW):
    return book.redeem(invite_id(secret), prove(secret), T3, device, label=label, now=now)


def refusal(call, *arguments, **named) -> Reason:
    with pytest.raises(Failure) as caught:
        call(*arguments, **named)
    assert caught.value.speaker is Speaker.AGENT
    return caught.value.reason


@pytest.fixture
def path(tmp_path):
    return tmp_path / "grants.json"


@pytest.fixture
def book(path):
    return Grants(path)


# nobody, then one


def test_the_default_is_to_refuse(book, path):
    assert refusal(book.admit, LAPTOP, NOW) is Reason.NOT_PAIRED
    assert book.grants(NOW) == []
    assert book.admission(NOW) == Admission(enrolled=False, paired=(), invites=(), revoked=())
    assert book.next_expiry(NOW) is None
    assert not path.exists()


def test_an_invite_lets_one_device_in(book):
    invite(book)
    assert book.admission(NOW).invites == (invite_id(SECRET),)
    grant = redeem(book, LAPTOP)
    assert (grant.device, grant.name, grant.targets, grant.created, grant.expires) == (LAPTOP, "laptop", ("*",), NOW, None)
    assert book.admit(LAPTOP, NOW) == grant
    assert book.grants(NOW) == [grant]
    assert book.admission(NOW) == Admission(enrolled=False, paired=(LAPTOP,), invites=(), revoked=())
    assert refusal(redeem, book, PHONE) is Reason.INVITE_INVALID
    assert refusal(book.admit, PHONE, NOW) is Reason.NOT_PAIRED


def test_the_same_key_again_is_accepted_and_uses_nothing_up(book):
    invite(book, uses=2)
    first = redeem(book, LAPTOP)
    for later in (0, 100, 900, 901, REMEMBERED - 1):
        assert redeem(book, LAPTOP, now=NOW + later) == first
    assert redeem(book, PHONE).device == PHONE
    assert refusal(redeem, book, GUEST) is Reason.INVITE_INVALID
    assert redeem(book, LAPTOP) == first


def test_an_invite_for_several_counts_them(book):
    invite(book, uses=2, name="team")
    assert [redeem(book, device).name for device in (LAPTOP, PHONE)] == ["team", "team-2"]
    assert refusal(redeem, book, GUEST) is Reason.INVITE_INVALID


def test_an_expired_invite_is_refused(book):
    invite(book, lasts=900)
    assert refusal(redeem, book, LAPTOP, now=NOW + 900) is Reason.INVITE_INVALID
    assert book.open_invites(NOW + 900) == []
    assert book.admission(NOW + 900).invites == ()
    assert redeem(book, LAPTOP, now=NOW + 899).device == LAPTOP


@pytest.mark.parametrize(
    "proof", [b"", prove()[:-1], prove() + b"\0", bytes(32), prove(t3=b"u" * 32), prove(secret=b"another secret!!"), SECRET]
)
def test_only_who_proves_the_secret_over_this_handshake_comes_in(book, proof):
    invite(book)
    assert refusal(book.redeem, invite_id(SECRET), proof, T3, LAPTOP, label="", now=NOW) is Reason.INVITE_INVALID
    assert redeem(book, PHONE).device == PHONE


def test_a_proof_is_asked_of_the_same_key_as_well(book):
    invite(book)
    redeem(book, LAPTOP)
    assert refusal(book.redeem, invite_id(SECRET), bytes(32), T3, LAPTOP, label="", now=NOW) is Reason.INVITE_INVALID


def test_an_unknown_invite_is_refused(book):
    assert refusal(redeem, book, LAPTOP) is Reason.INVITE_INVALID


def test_the_secret_is_not_kept(book, path):
    invite(book)
    assert SECRET not in path.read_bytes()
    assert SECRET.hex() not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert invite_proof_key(SECRET).hex() not in repr(book.open_invites(NOW))
    assert repr(invite_proof_key(SECRET)) not in repr(book.open_invites(NOW))


# atomic


def test_a_disk_that_fails_uses_nothing_up_and_grants_nothing(book, monkeypatch):
    invite(book)

    def full(*_: object) -> None:
        raise StateError("disk full", "make room")

    with monkeypatch.context() as broken:
        broken.setattr(statefile, "write_private", full)
        with pytest.raises(StateError):
            redeem(book, LAPTOP)
        assert refusal(book.admit, LAPTOP, NOW) is Reason.NOT_PAIRED
    assert redeem(book, PHONE).device == PHONE


def test_using_up_and_granting_are_one_write(book, monkeypatch):
    invite(book)
    written = []
    real = statefile.write_private
    monkeypatch.setattr(statefile, "write_private", lambda path, data: (written.append(json.loads(data)), real(path, data)))
    redeem(book, LAPTOP)
    (content,) = written
    assert [each["uses"] for each in content["invites"]] == [0]
    assert [each["device"] for each in content["grants"]] == [str(LAPTOP)]


REDEEMER = """
import pathlib, sys
from tests.test_grants import *
print(flush=True)
device = IdentityKey.from_private_value(int(sys.argv[2])).device_id
try:
    redeem(Grants(pathlib.Path(sys.argv[1])), device)
    print("in")
except Failure as failure:
    print(failure.reason.value)
"""


def test_of_several_processes_with_one_invite_one_comes_in(book, path):
    invite(book)
    with statefile.locked(path):
        racers = [subprocess.Popen([sys.executable, "-c", REDEEMER, path, str(n)], stdout=subprocess.PIPE, text=True) for n in (1, 2, 3)]
        for racer in racers:
            assert racer.stdout is not None
            racer.stdout.readline()
    answers = sorted(racer.communicate(timeout=60)[0].strip() for racer in racers)
    assert answers == ["INVITE_INVALID", "INVITE_INVALID", "in"]
    assert len(book.grants(NOW)) == 1


def test_another_process_revoking_is_seen_at_once(book, path):
    invite(book)
    redeem(book, LAPTOP)
    book.admit(LAPTOP, NOW)
    Grants(path).revoke(LAPTOP, NOW)
    assert refusal(book.admit, LAPTOP, NOW) is Reason.POLICY_REVOKED


# access that ends


def test_access_for_a_time_ends(book):
    invite(book, access=3600)
    assert redeem(book, LAPTOP, now=NOW + 10).expires == NOW + 3610
    assert book.admit(LAPTOP, NOW + 3609).device == LAPTOP
    assert refusal(book.admit, LAPTOP, NOW + 3610) is Reason.POLICY_REVOKED
    assert book.grants(NOW + 3610) == []
    assert book.admission(NOW + 3610) == Admission(enrolled=False, paired=(), invites=(), revoked=(LAPTOP,))
    assert book.admission(NOW + 3610 + REMEMBERED).revoked == ()
    assert refusal(redeem, book, LAPTOP, now=NOW + 3610) is Reason.POLICY_REVOKED


def test_the_next_expiry_is_the_earliest_of_grants_and_invites(book):
    invite(book, access=100)
    assert book.next_expiry(NOW) == NOW + 900
    redeem(book, LAPTOP)
    assert book.next_expiry(NOW) == NOW + 100
    invite(book, b"another secret!!", lasts=50)
    assert book.next_expiry(NOW) == NOW + 50
    assert book.next_expiry(NOW + 50) == NOW + 100
    assert book.next_expiry(NOW + 100) is None


def test_a_second_invite_adds_to_the_first_and_ends_by_itself(book):
    invite(book, targets=["nas.lab:80"])
    redeem(book, LAPTOP)
    invite(book, b"another secret!!", ["internet"], access=3600)
    both = redeem(book, LAPTOP, b"another secret!!", label="renamed")
    assert (both.name, both.targets, both.expires) == ("laptop", ("nas.lab:80", "internet"), NOW + 3600)
    assert [(grant.targets, grant.expires) for grant in book.grants(NOW)] == [(("nas.lab:80",), None), (("internet",), NOW + 3600)]
    after = book.admit(LAPTOP, NOW + 3600)
    assert (after.targets, after.expires) == (("nas.lab:80",), None)


def test_what_several_grants_give_ends_with_the_first_of_them(book):
    invite(book, targets=["nas.lab:80"], access=7200)
    redeem(book, LAPTOP)
    invite(book, b"another secret!!", ["internet"], access=3600)
    assert redeem(book, LAPTOP, b"another secret!!").expires == NOW + 3600
    assert book.admit(LAPTOP, NOW + 3600).expires == NOW + 7200


def test_the_same_targets_again_take_the_longer_time(book):
    ends = []
    for number, access in enumerate([100, 200, None]):
        invite(book, bytes((number,)) * 16, access=access)
        ends.append(redeem(book, LAPTOP, bytes((number,)) * 16).expires)
    assert ends == [NOW + 100, NOW + 200, None]
    assert [grant.expires for grant in book.grants(NOW)] == [None]
    assert book.admit(LAPTOP, NOW + 10_000).expires is None


# taking back


def test_a_revoke_by_name_or_id_takes_everything_back(book):
    for number, who in enumerate(("laptop", "LAPTOP", LAPTOP, str(LAPTOP), LAPTOP.compact.upper())):
        secret = bytes((number,)) * 16
        invite(book, secret)
        redeem(book, LAPTOP, secret)
        lost = book.revoke(who, NOW)
        assert (lost.device, lost.name) == (LAPTOP, "laptop")
        assert refusal(book.admit, LAPTOP, NOW) is Reason.POLICY_REVOKED
        assert book.grants(NOW) == []
        assert book.admission(NOW).revoked == (LAPTOP,)
        assert book.admission(NOW + REMEMBERED).revoked == ()
        assert refusal(book.admit, LAPTOP, NOW + 100 * REMEMBERED) is Reason.POLICY_REVOKED


def test_a_used_invite_does_not_give_back_what_was_revoked(book):
    invite(book)
    redeem(book, LAPTOP)
    book.revoke(LAPTOP, NOW)
    assert refusal(redeem, book, LAPTOP) is Reason.POLICY_REVOKED


def test_the_invite_by_which_it_came_is_closed_for_fresh_keys_too(book):
    invite(book, uses=5)
    redeem(book, LAPTOP)
    redeem(book, PHONE)
    book.revoke(LAPTOP, NOW)
    assert refusal(redeem, book, GUEST) is Reason.INVITE_INVALID
    assert redeem(book, PHONE).device == PHONE
    assert book.admission(NOW).invites == ()


def test_an_invite_that_was_open_then_stays_closed_to_the_revoked_device(book):
    invite(book)
    redeem(book, LAPTOP)
    invite(book, b"open meanwhile!!", ["internet"])
    book.revoke(LAPTOP, NOW)
    assert refusal(redeem, book, LAPTOP, b"open meanwhile!!") is Reason.POLICY_REVOKED
    invite(book, b"made afterwards!", ["nas.lab:80"])
    assert redeem(book, LAPTOP, b"made afterwards!").targets == ("nas.lab:80",)
    assert refusal(redeem, book, LAPTOP, b"open meanwhile!!") is Reason.POLICY_REVOKED
    assert book.admit(LAPTOP, NOW).targets == ("nas.lab:80",)
    assert redeem(book, PHONE, b"open meanwhile!!").device == PHONE
    assert book.admission(NOW).revoked == ()


def test_who_is_not_here_cannot_be_revoked(book):
    invite(book)
    redeem(book, LAPTOP)
    for who in ("phone", PHONE, str(PHONE), "", "lap"):
        with pytest.raises(UsageError) as caught:
            book.revoke(who, NOW)
        assert "tuunel clients" in caught.value.advice
    book.revoke(LAPTOP, NOW)
    with pytest.raises(UsageError):
        book.revoke(LAPTOP, NOW)


def test_an_expired_grant_can_be_revoked(book):
    invite(book, access=10)
    redeem(book, LAPTOP)
    assert book.revoke("laptop", NOW + 20).device == LAPTOP
    assert Grants(book._file.path, [LAPTOP]).grants(NOW + 20) == []


# allowed without an invite


def test_allowed_devices_need_no_entry(path):
    book = Grants(path, [LAPTOP, LAPTOP])
    grant = book.admit(LAPTOP, NOW)
    assert (grant.targets, grant.expires, grant.name) == (("*",), None, str(LAPTOP)[:5])
    assert book.grants(NOW) == [grant]
    assert book.admission(NOW).paired == (LAPTOP,)
    assert refusal(book.admit, PHONE, NOW) is Reason.NOT_PAIRED
    assert not path.exists()


def test_a_revoke_stands_above_allow_and_survives_a_restart(path):
    assert Grants(path, [LAPTOP]).revoke(str(LAPTOP)[:5], NOW).device == LAPTOP
    for book in (Grants(path, [LAPTOP]), Grants(path, [LAPTOP], admit_enrolled=True)):
        assert refusal(book.admit, LAPTOP, NOW + 100 * REMEMBERED) is Reason.POLICY_REVOKED
        assert book.admission(NOW).paired == ()
        assert book.admission(NOW).revoked == (LAPTOP,)


def test_allow_adds_to_a_grant(path):
    book = Grants(path, [LAPTOP])
    invite(book, targets=["internet"], access=10)
    assert redeem(book, LAPTOP).targets == ("internet", "*")
    assert book.admit(LAPTOP, NOW + 10).targets == ("*",)
    assert book.admission(NOW + 10).revoked == ()


def test_enrolled_admits_who_has_no_entry(path):
    book = Grants(path, admit_enrolled=True)
    assert book.admit(LAPTOP, NOW).targets == ("*",)
    assert book.admission(NOW).enrolled
    assert book.grants(NOW) == []
    assert book.revoke(LAPTOP, NOW).device == LAPTOP
    assert refusal(book.admit, LAPTOP, NOW) is Reason.POLICY_REVOKED
    assert book.admit(PHONE, NOW).device == PHONE


def test_enrolled_never_widens_what_a_guest_has_or_had(path):
    book = Grants(path, admit_enrolled=True)
    invite(book, targets=["nas.lab:80"], access=10)
    redeem(book, GUEST)
    assert book.admit(GUEST, NOW).targets == ("nas.lab:80",)
    for later in (10, REMEMBERED, 100 * REMEMBERED):
        invite(book, bytes((later % 251,)) * 16, now=NOW + later)  # any change tidies the book
        assert refusal(book.admit, GUEST, NOW + later) is Reason.POLICY_REVOKED


# names


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("laptop", "laptop"),
        ("  Ann's   laptop ", "Ann's laptop"),
        ("a\x1b[31mred\x07\nb\tc", "a [31mred b c"),
        ("evil\u202egnp.exe\u200b", "evil gnp.exe"),
        ("x" * 1000, "x" * MAX_NAME),
        ("", str(LAPTOP)[:5]),
        ("\0\0", str(LAPTOP)[:5]),
        (str(PHONE), str(LAPTOP)[:5]),
        (PHONE.compact, str(LAPTOP)[:5]),
        ("日本", "日本"),
    ],
)
def test_labels_are_made_harmless(book, label, name):
    invite(book)
    assert redeem(book, LAPTOP, label=label).name == name


def test_names_are_unique_in_any_case(book):
    invite(book, uses=3)
    assert redeem(book, LAPTOP, label="Ann").name == "Ann"
    assert redeem(book, PHONE, label="ann").name == "ann-2"
    assert redeem(book, GUEST, label="ANN").name == "ANN-3"
    assert book.revoke("ann-2", NOW).device == PHONE


def test_a_long_name_stays_within_its_ceiling(book):
    invite(book, uses=2)
    names = [redeem(book, device, label="x" * MAX_NAME).name for device in (LAPTOP, PHONE)]
    assert names == ["x" * MAX_NAME, "x" * (MAX_NAME - 2) + "-2"]


def test_a_label_cannot_take_the_short_name_of_an_allowed_device(path):
    book = Grants(path, [PHONE])
    invite(book)
    assert redeem(book, LAPTOP, label=str(PHONE)[:5]).name == f"{str(PHONE)[:5]}-2"
    assert book.revoke(str(PHONE)[:5], NOW).device == PHONE


def test_the_owners_name_for_an_invite_wins_over_the_label(book):
    invite(book, name="Ann")
    assert book.open_invites(NOW)[0].name == "Ann"
    assert redeem(book, LAPTOP, label="root").name == "Ann"


# what an invite may say


@pytest.mark.parametrize(
    "wrong",
    [
        {"targets": ["not a pattern"]},
        {"targets": ["*"] * (MAX_TARGETS + 1)},
        {"uses": 0},
        {"uses": -1},
        {"uses": MAX_USES + 1},
        {"lasts": 0},
        {"lasts": -5},
        {"access": 0},
    ],
)
def test_what_cannot_be_meant_is_refused_and_not_written(book, path, wrong):
    with pytest.raises(UsageError):
        invite(book, **wrong)
    assert not path.exists()


def test_targets_are_kept_in_their_normal_spelling(book):
    invite(book, targets=[" NAS.lab:80", "nas.lab:80", "10.0.0.0/8"])
    assert book.open_invites(NOW)[0].targets == ("nas.lab:80", "10.0.0.0/8")


# the file


def test_everything_survives_a_restart(book, path):
    invite(book, targets=["nas.lab:80"], uses=3, name="team", access=500)
    redeem(book, LAPTOP)
    redeem(book, PHONE)
    book.revoke(PHONE, NOW + 1)
    invite(book, b"another secret!!", uses=2)
    again = Grants(path)
    assert again.grants(NOW) == book.grants(NOW)
    assert again.open_invites(NOW) == book.open_invites(NOW)
    assert again.admission(NOW + 1) == book.admission(NOW + 1)
    assert refusal(redeem, again, PHONE) is Reason.POLICY_REVOKED


def test_old_invites_are_dropped(book, path):
    invite(book)
    redeem(book, LAPTOP)
    invite(book, b"never used......")
    invite(book, b"much later......", now=NOW + 900 + REMEMBERED)
    assert len(json.loads(path.read_text())["invites"]) == 1
    assert book.admit(LAPTOP, NOW + 900 + REMEMBERED).device == LAPTOP


@pytest.mark.parametrize(
    "damage",
    [
        {"grants": [{}]},
        {"grants": {}, "invites": [1]},
        {"grants": [{"device": "x", "name": "n", "targets": [], "created": 1, "expires": None}]},
        {"grants": [{"device": str(LAPTOP), "name": "n", "targets": ["** **"], "created": 1, "expires": None}]},
        {"grants": [{"device": str(LAPTOP), "name": "n", "targets": ["*"], "created": 1, "expires": "never"}]},
        {"grants": [{"device": str(LAPTOP), "name": 5, "targets": ["*"], "created": 1, "expires": None}]},
        {"revocations": [{"device": str(LAPTOP), "at": True}]},
    ],
)
def test_a_damaged_book_admits_nobody(path, damage):
    statefile.write_json(path, 1, damage)
    book = Grants(path, [LAPTOP], admit_enrolled=True)
    for call in (lambda: book.admit(LAPTOP, NOW), lambda: book.admission(NOW), lambda: invite(book)):
        with pytest.raises(StateError, match="damaged"):
            call()


# any history


ACTIONS = st.one_of(
    st.tuples(st.just("invite"), st.integers(0, 3), st.sampled_from([None, 5, 50]), st.integers(1, 2)),
    st.tuples(st.just("redeem"), st.integers(0, 3), st.sampled_from([LAPTOP, PHONE, GUEST]), st.just(0)),
    st.tuples(st.just("revoke"), st.just(0), st.sampled_from([LAPTOP, PHONE, GUEST]), st.just(0)),
    st.tuples(st.just("wait"), st.integers(1, 40), st.none(), st.just(0)),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(ACTIONS, max_size=12))
def test_nobody_is_in_without_an_invite_and_nobody_stays_in_after_a_revoke(tmp_path_factory, actions):
    book = Grants(tmp_path_factory.mktemp("grants") / "grants.json")
    now, made, uses, invited = NOW, 0, {}, set()
    for action, number, what, count in actions:
        secret = bytes((number, made & 0xFF)) * 8
        if action == "wait":
            now += number
        elif action == "invite":
            made += 1
            invite(book, bytes((number, made & 0xFF)) * 8, uses=count, lasts=60, access=what, now=now)
            uses[number, made] = count
        elif action == "redeem":
            before = {grant.device for grant in book.grants(now)}
            try:
                redeem(book, what, secret, now=now)
                invited.add(what)
                if what not in before:
                    assert uses[number, made] > 0
            except Failure as failure:
                assert failure.reason in {Reason.INVITE_INVALID, Reason.POLICY_REVOKED}  # noqa: PT017 - either may be said
        elif any(grant.device == what for grant in book.grants(now)):
            book.revoke(what, now)
            invited.discard(what)
        admission = book.admission(now)
        assert set(admission.paired) <= invited
        assert {grant.device for grant in book.grants(now)} == set(admission.paired)
        assert not set(admission.paired) & set(admission.revoked)
        for device in (LAPTOP, PHONE, GUEST):
            if device in admission.paired:
                book.admit(device, now)
            else:
                assert refusal(book.admit, device, now) in {Reason.NOT_PAIRED, Reason.POLICY_REVOKED}


def test_a_grant_ends_at_its_second(book):
    invite(book)
    grant = redeem(book, LAPTOP)
    assert replace(grant, expires=NOW).is_live(NOW - 1)
    assert not replace(grant, expires=NOW).is_live(NOW)

"""The agent's book of who may come in: grants, open invites, and those whose access has ended. docs/spec/policy.md sections 1 and 2.

One file, one atomic write per change: an invite is used up and its grant written in the same step, or neither.
"""

import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tuunel.errors import Failure, Reason, Speaker, UsageError
from tuunel.identity import DeviceID
from tuunel.links import invite_id as id_of_invite
from tuunel.links import invite_proof_key
from tuunel.policy import parse_target_pattern
from tuunel.statefile import StateFile

VERSION: Final = 1
DEFAULT_TARGETS: Final = ("*",)
INVITE_ID: Final = 8  # bytes: docs/spec/names.md section 6
PROOF_KEY: Final = 32
MAX_NAME: Final = 64  # characters of a client's name: it must fit a row of the table
MAX_TARGETS: Final = 64  # patterns in one invite: each is tried at every open
MAX_USES: Final = 1000
REMEMBERED: Final = 30 * 24 * 3600  #: seconds for which the relay lets an ended device ask, and a used invite is known to its user


@dataclass(frozen=True, slots=True)
class Grant:
    """What one device may reach. Times are unix seconds; `expires` None means until revoked.

    Of a device with several grants `Grants.admit` returns the sum, which ends when the first of them does: ask again then.
    """

    device: DeviceID
    name: str
    targets: tuple[str, ...]
    created: int
    expires: int | None = None

    def is_live(self, now: int) -> bool:
        """Tell whether it has not expired."""
        return self.expires is None or now < self.expires


@dataclass(frozen=True, slots=True)
class OpenInvite:
    """An invite as the agent keeps it: without its secret. `uses` is what is left, `used_by` who took the others.

    `barred` are devices that were revoked while it was open: it does not open for them again.
    """

    id: bytes
    proof_key: bytes = field(repr=False)
    targets: tuple[str, ...]
    uses: int
    expires: int
    name: str = ""
    access: int | None = None  #: seconds for which a grant made from it lasts
    used_by: tuple[DeviceID, ...] = ()
    barred: tuple[DeviceID, ...] = ()

    def is_open(self, now: int) -> bool:
        """Tell whether it can still let somebody in."""
        return self.uses > 0 and now < self.expires


@dataclass(frozen=True, slots=True)
class Revocation:
    """A device whose access was taken back. Only a later invite lets it in again."""

    device: DeviceID
    at: int


@dataclass(frozen=True, slots=True)
class Admission:
    """Whom the relay should let knock: an optimisation of the relay's, never the decision."""

    enrolled: bool
    paired: tuple[DeviceID, ...]
    invites: tuple[bytes, ...]
    revoked: tuple[DeviceID, ...]


@dataclass(frozen=True, slots=True)
class _Book:
    grants: tuple[Grant, ...] = ()
    invites: tuple[OpenInvite, ...] = ()
    revocations: tuple[Revocation, ...] = ()

    def of(self, device: DeviceID) -> list[Grant]:
        return [grant for grant in self.grants if grant.device == device]

    def is_revoked(self, device: DeviceID) -> bool:
        return any(revocation.device == device for revocation in self.revocations)


class Grants:
    """The book at `path`. It may be shared by threads and by processes; every answer is from the newest content.

    `allow`: devices that may reach `*` without an entry; `admit_enrolled`: so may every device that is enrolled at the relay and has
    no entry of its own. A revocation stands above both. Times are unix seconds. Any method raises StateError when the file is unusable.
    """

    def __init__(self, path: Path, allow: Iterable[DeviceID] = (), *, admit_enrolled: bool = False) -> None:
        self._file = StateFile(path, VERSION, _decode, _encode)
        self.admit_without_pairing(allow, enrolled=admit_enrolled)

    def admit_without_pairing(self, allow: Iterable[DeviceID], *, enrolled: bool) -> None:
        """Replace `allow` and `admit_enrolled`."""
        self._allow = tuple(dict.fromkeys(allow))
        self._admit_enrolled = enrolled

    def grants(self, now: int) -> list[Grant]:
        """Return every live grant, those of `allow` behind the others."""
        book = self._file.read()
        return [grant for grant in book.grants if grant.is_live(now)] + self._allowed(book)

    def open_invites(self, now: int) -> list[OpenInvite]:
        """Return the invites that can still let somebody in."""
        return [invite for invite in self._file.read().invites if invite.is_open(now)]

    def admit(self, device: DeviceID, now: int) -> Grant:
        """Return what the device may reach now. Failure(POLICY_REVOKED or NOT_PAIRED, speaker AGENT) when it may not come in."""
        return self._admit(self._file.read(), device, now)

    def admission(self, now: int) -> Admission:
        """Return the list for the relay. `revoked` are those who were revoked, or expired, in the last 30 days."""
        book = self._file.read()
        paired = dict.fromkeys(grant.device for grant in self.grants(now))
        ended = {revocation.device: revocation.at for revocation in book.revocations}
        for grant in book.grants:
            if grant.expires is not None:
                ended[grant.device] = max(grant.expires, ended.get(grant.device, 0))
        recent = (device for device, at in ended.items() if device not in paired and now - at < REMEMBERED)
        invites = (invite.id for invite in book.invites if invite.is_open(now))
        return Admission(self._admit_enrolled, tuple(paired), tuple(invites), tuple(recent))

    def next_expiry(self, now: int) -> int | None:
        """Return when the next live grant or open invite ends; None when none does."""
        book = self._file.read()
        ends = [grant.expires for grant in book.grants if grant.expires is not None and grant.is_live(now)]
        ends += [invite.expires for invite in book.invites if invite.is_open(now)]
        return min(ends, default=None)

    def make_invite(
        self, secret: bytes, targets: Sequence[str], *, uses: int, expires: int, name: str, now: int, access: int | None = None
    ) -> None:
        """Write down an invite: it opens `targets` (none: `*`) for `uses` devices, until `expires`.

        `access`: seconds for which each grant lasts from its making; None: until revoked. `name` goes to the grant, empty: the device
        names itself. The secret is not kept. UsageError when a target, `uses` or a time cannot be meant.
        """
        if len(targets) > MAX_TARGETS:
            raise UsageError(f"an invite has at most {MAX_TARGETS} targets", "name ranges and *.domains, or make a second invite")
        if not 1 <= uses <= MAX_USES:
            raise UsageError(f"an invite has 1 to {MAX_USES} uses, not {uses}", "make another one when they are used up")
        if expires <= now or (access is not None and access <= 0):
            raise UsageError("an invite and the access that it gives must last some time", "give a duration like 8h")
        normal = tuple(dict.fromkeys(str(parse_target_pattern(target)) for target in targets)) or DEFAULT_TARGETS
        invite = OpenInvite(id_of_invite(secret), invite_proof_key(secret), normal, uses, expires, _clean(name), access)
        self._file.change(lambda book: (_tidy(replace(book, invites=(*book.invites, invite)), now), None))

    def redeem(self, invite_id: bytes, proof: bytes, t3: bytes, device: DeviceID, *, label: str, now: int) -> Grant:
        """Use up one use of the invite for the device and write its grant, in one step; return what the device may reach now.

        `proof` must be HMAC-SHA256(proof key, t3). A device that already used this invite gets its grant again and uses nothing up.
        Failure(INVITE_INVALID, speaker AGENT) for an invite that is unknown, used up, expired or wrongly proven; Failure(POLICY_REVOKED)
        when the access that this device got from it has ended, or the device was revoked while it was open. `label` is untrusted text.
        """

        def step(book: _Book) -> tuple[_Book, Grant]:
            invite = _proven(book, invite_id, proof, t3)
            if device in invite.used_by:
                return book, self._admit(book, device, now)
            if device in invite.barred:
                raise Failure(Reason.POLICY_REVOKED, Speaker.AGENT)
            if not invite.is_open(now):
                raise Failure(Reason.INVITE_INVALID, Speaker.AGENT)
            reserved = {grant.name for grant in self._allowed(book) if grant.device != device}
            expires = None if invite.access is None else now + invite.access
            name = _choose_name(book, device, invite.name or label, reserved)
            after = _tidy(_use(book, invite, Grant(device, name, invite.targets, now, expires)), now)
            return after, self._admit(after, device, now)

        return self._file.change(step)

    def revoke(self, who: str | DeviceID, now: int) -> Grant:
        """Take back the access of a device, named by its name or ID, and return what it had.

        Invites that it used let nobody else in from now on, for it knows their secrets; those open now stay closed to it. UsageError
        when nobody of that name may come in.
        """

        def step(book: _Book) -> tuple[_Book, Grant]:
            lost = self._find(book, who, now)
            after = _Book(
                grants=tuple(grant for grant in book.grants if grant.device != lost.device),
                invites=tuple(_bar(invite, lost.device) for invite in book.invites),
                revocations=(*(r for r in book.revocations if r.device != lost.device), Revocation(lost.device, now)),
            )
            return _tidy(after, now), lost

        return self._file.change(step)

    def _allowed(self, book: _Book) -> list[Grant]:
        return [Grant(device, _short(device), DEFAULT_TARGETS, 0) for device in self._allow if not book.is_revoked(device)]

    def _admit(self, book: _Book, device: DeviceID, now: int) -> Grant:
        own = book.of(device)
        live = [grant for grant in own if grant.is_live(now)]
        live += [grant for grant in self._allowed(book) if grant.device == device]
        if live:
            return _sum(live)
        if own or book.is_revoked(device):
            raise Failure(Reason.POLICY_REVOKED, Speaker.AGENT)
        if self._admit_enrolled:
            return Grant(device, _short(device), DEFAULT_TARGETS, 0)
        raise Failure(Reason.NOT_PAIRED, Speaker.AGENT)

    def _find(self, book: _Book, who: str | DeviceID, now: int) -> Grant:
        device = who if isinstance(who, DeviceID) else _as_device(who)
        if device is None:
            wanted = str(who).casefold()
            known = [*book.grants, *self._allowed(book)]
            device = next((grant.device for grant in known if grant.name.casefold() == wanted), None)
        if device is not None:
            try:
                return self._admit(book, device, now)
            except Failure:
                own = book.of(device)
                if own:  # expired: nothing to cut, but the revocation is remembered
                    return _sum(own)
        advice = "see 'tuunel clients'; an invite that nobody has used ends by itself"
        raise UsageError(f"nobody called {str(who)!r} may come in here", advice)


def _proven(book: _Book, invite_id: bytes, proof: bytes, t3: bytes) -> OpenInvite:
    for invite in book.invites:
        if invite.id == invite_id and hmac.compare_digest(hmac.digest(invite.proof_key, t3, "sha256"), proof):
            return invite
    raise Failure(Reason.INVITE_INVALID, Speaker.AGENT)


def _bar(invite: OpenInvite, device: DeviceID) -> OpenInvite:
    if device in invite.used_by:
        return replace(invite, uses=0)  # with the secret that it knows, it could come back under a fresh key
    return replace(invite, barred=(*invite.barred, device))


def _use(book: _Book, invite: OpenInvite, grant: Grant) -> _Book:
    used = replace(invite, uses=invite.uses - 1, used_by=(*invite.used_by, grant.device))
    return _Book(
        grants=(*(old for old in book.grants if not _covers(grant, old)), grant),
        invites=tuple(used if old is invite else old for old in book.invites),
        revocations=tuple(r for r in book.revocations if r.device != grant.device),
    )


def _covers(new: Grant, old: Grant) -> bool:
    return (
        new.device == old.device
        and new.targets == old.targets
        and (new.expires is None or (old.expires is not None and old.expires <= new.expires))
    )


def _sum(grants: Sequence[Grant]) -> Grant:
    if len(grants) == 1:
        return grants[0]
    targets = tuple(dict.fromkeys(target for grant in grants for target in grant.targets))
    ends = [grant.expires for grant in grants if grant.expires is not None]
    return replace(grants[0], targets=targets, expires=min(ends, default=None))


def _tidy(book: _Book, now: int) -> _Book:
    """Drop what can matter no more: superseded expired grants, and invites that ended long ago or that nobody used."""
    living = {grant.device for grant in book.grants if grant.is_live(now)}
    last = {grant.device: grant for grant in sorted(book.grants, key=lambda grant: grant.expires or 0)}
    return _Book(
        # the last expired grant of a device stays for good: `enrolled` must not widen what a guest had
        grants=tuple(g for g in book.grants if g.is_live(now) or (g.device not in living and g is last[g.device])),
        invites=tuple(i for i in book.invites if i.is_open(now) or (i.used_by and now < i.expires + REMEMBERED)),
        revocations=book.revocations,
    )


def _choose_name(book: _Book, device: DeviceID, wanted: str, reserved: set[str]) -> str:
    for grant in book.of(device):
        return grant.name
    name = _clean(wanted)
    if not name or _as_device(name) is not None:  # a device cannot call itself by another one's ID
        name = _short(device)
    taken = {grant.name.casefold() for grant in book.grants} | reserved
    candidate, number = name, 1
    while candidate.casefold() in taken:
        number += 1
        suffix = f"-{number}"
        candidate = name[: MAX_NAME - len(suffix)] + suffix
    return candidate


def _clean(text: str) -> str:
    # isprintable() is false for control, format and bidirectional characters: none may reach a terminal or a log
    return " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * MAX_NAME]).split())[:MAX_NAME].strip()


def _short(device: DeviceID) -> str:
    return str(device).partition("-")[0]


def _as_device(text: str) -> DeviceID | None:
    try:
        return DeviceID.parse(text)
    except UsageError:
        return None


def _encode(book: _Book) -> Mapping[str, object]:
    return {
        "grants": [
            {"device": str(g.device), "name": g.name, "targets": g.targets, "created": g.created, "expires": g.expires} for g in book.grants
        ],
        "invites": [
            {
                "id": i.id.hex(),
                "proof_key": i.proof_key.hex(),
                "targets": i.targets,
                "uses": i.uses,
                "expires": i.expires,
                "name": i.name,
                "access": i.access,
                "used_by": list(map(str, i.used_by)),
                "barred": list(map(str, i.barred)),
            }
            for i in book.invites
        ],
        "revocations": [{"device": str(r.device), "at": r.at} for r in book.revocations],
    }


def _decode(content: dict[str, Any]) -> _Book:
    return _Book(
        grants=tuple(
            Grant(
                DeviceID.parse(g["device"]), _clean(g["name"]), _targets(g["targets"]), _whole(g["created"]), _whole_or_none(g["expires"])
            )
            for g in content.get("grants", [])
        ),
        invites=tuple(
            OpenInvite(
                id=_exactly(INVITE_ID, i["id"]),
                proof_key=_exactly(PROOF_KEY, i["proof_key"]),
                targets=_targets(i["targets"]),
                uses=_whole(i["uses"]),
                expires=_whole(i["expires"]),
                name=_clean(i["name"]),
                access=_whole_or_none(i["access"]),
                used_by=tuple(map(DeviceID.parse, i["used_by"])),
                barred=tuple(map(DeviceID.parse, i["barred"])),
            )
            for i in content.get("invites", [])
        ),
        revocations=tuple(Revocation(DeviceID.parse(r["device"]), _whole(r["at"])) for r in content.get("revocations", [])),
    )


def _targets(texts: list[str]) -> tuple[str, ...]:
    return tuple(str(parse_target_pattern(text)) for text in texts)


def _exactly(length: int, text: str) -> bytes:
    data = bytes.fromhex(text)
    if len(data) != length:
        raise ValueError(f"{text!r} has not {length} bytes")
    return data


def _whole(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} is no whole number")


def _whole_or_none(value: object) -> int | None:
    return None if value is None else _whole(value)

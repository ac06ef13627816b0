"""Who may reach what: the rules of policy.md said a second time, in a few lines that share nothing with the agent's book."""

from dataclasses import dataclass, field

ANYWHERE_NEAR = ("*",)
ONE_HOST = ("192.168.7.5",)
#: Hosts that apps ask for, and the targets of a grant that let them.
HOSTS = {"192.168.7.5": (ANYWHERE_NEAR, ONE_HOST), "": (ANYWHERE_NEAR,), "8.8.8.8": (), "169.254.169.254": ()}


@dataclass
class KnownInvite:
    """An invite as those know it who made it."""

    id: bytes
    uses: int
    ends: float
    targets: tuple[str, ...]
    access: int | None
    users: list[str] = field(default_factory=list)
    closed_to: set[str] = field(default_factory=set)
    spoilt: bool = False  #: somebody who knows its secret was revoked


class Book:
    """What was granted, and what of it was taken back."""

    def __init__(self) -> None:
        self.invites: dict[bytes, KnownInvite] = {}
        self.granted: dict[str, list[tuple[tuple[str, ...], float]]] = {}

    def redeemed(self, who: str, invite_id: bytes, now: float) -> list[str]:
        """Note that the agent let somebody in, and say what is wrong with that."""
        invite = self.invites[invite_id]
        if who in invite.users:
            return [] if self.is_in(who, now) else ["a device came back with an invite after its access had ended"]
        allowed = now < invite.ends and len(invite.users) < invite.uses and not invite.spoilt and who not in invite.closed_to
        invite.users.append(who)
        ends = float("inf") if invite.access is None else now + invite.access
        self.granted.setdefault(who, []).append((invite.targets, ends))
        return [] if allowed else ["an invite let in somebody whom it may not let in"]

    def revoked(self, who: str) -> None:
        self.granted.pop(who, None)
        for invite in self.invites.values():
            if who in invite.users:
                invite.spoilt = True
            else:
                invite.closed_to.add(who)

    def is_in(self, who: str, now: float) -> bool:
        return any(now < ends for _, ends in self.granted.get(who, []))

    def may(self, who: str, host: str, now: float) -> bool:
        return any(now < ends and targets in HOSTS[host] for targets, ends in self.granted.get(who, []))

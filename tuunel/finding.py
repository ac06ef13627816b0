"""What one check of this machine found: its state, what is wrong, and the remedy in one line."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from tuunel.errors import TuunelError


class Verdict(StrEnum):
    """How bad it is. `warning`: it works, but not as safely or as well as it could, or not for everything."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result. `what` and `fix` hold no secret; what a relay said in them is untrusted text."""

    check: str
    state: Verdict
    what: str
    fix: str = ""

    def document(self) -> dict[str, Any]:
        """The finding as JSON shows it."""
        return asdict(self)


def ok(check: str, what: str) -> Finding:
    """Nothing is wrong here."""
    return Finding(check, Verdict.OK, what)


def warning(check: str, what: str, fix: str) -> Finding:
    """It works, but something should be done."""
    return Finding(check, Verdict.WARNING, what, fix)


def wrong(check: str, what: str, fix: str) -> Finding:
    """It cannot work, or is not safe, until something is done."""
    return Finding(check, Verdict.WRONG, what, fix)


def failed(check: str, error: TuunelError) -> Finding:
    """What the error says, with its advice."""
    return wrong(check, str(error), error.advice)

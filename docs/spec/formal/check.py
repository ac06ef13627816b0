#!/usr/bin/env python3
"""Ask a theorem prover every question about the end-to-end handshake, and compare its answers with those that are written down here.

Exit status: 0 all as expected; 1 a difference; 2 the prover is not here. Needs nothing but Python 3.11 and the prover E (`eprover`). Asks
SPASS for a second opinion if told to, and Verifpal about replays if that is here. What it all means: README.md.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model import GOALS, Attacker, Protocol, Setting, build

SECONDS: Final = 300  #: for one question
INSTALL: Final = "On Debian and Ubuntu: apt install eprover (and spass); Verifpal: cargo install verifpal"

FROM_FORWARD: Final = ("secret target", "secret early data", "secret late data")
FROM_AGENT: Final = ("secret answer", "secret reply")
SECRETS: Final = FROM_FORWARD + FROM_AGENT
TO_AGENT: Final = tuple(goal for goal in GOALS if goal.startswith("R: "))
TO_FORWARD: Final = tuple(goal for goal in GOALS if goal.startswith("F: "))
INVITE: Final = ("invite redeemed by its holder only",)
ALL: Final = SECRETS + TO_AGENT + TO_FORWARD + INVITE
#: what holds between the two even when somebody else has the keys of the records
HANDSHAKE: Final = ("R: eF is alice's", "R: alice ran with this offer", "R: same ct", *TO_FORWARD[:3])

ALICE_LOST: Final = Attacker(knows=("identity(alice)",))
AGENT_LOST: Final = Attacker(knows=("identity(bob)",))
#: what does not, then
BEHIND_KEYS: Final = tuple(goal for goal in SECRETS + TO_AGENT + TO_FORWARD if goal not in HANDSHAKE)
IDENTITIES_LATER: Final = ("identity(X)", "invite(J,N,H)")
RUN_KEYS: Final = ("one_time(bob,run_r)", "one_time_kem(bob,run_r)")
BROKEN_CURVE: Final = ("point(X)",)
BROKEN_KEM: Final = ("kem(X)", "sealed_kem(Y,X)")


@dataclass(frozen=True)
class Row:
    """A setting, what is asked of it, and which of that must turn out to be possible for the attacker (no other may)."""

    name: str
    setting: Setting
    goals: tuple[str, ...]
    possible: tuple[str, ...] = ()


def _row(
    name: str,
    goals: Sequence[str],
    possible: Sequence[str] = (),
    *,
    attacker: Attacker | None = None,
    protocol: Protocol | None = None,
    agent: str = "bob",
) -> Row:
    return Row(name, Setting(protocol or Protocol(), attacker or Attacker(), agent), tuple(goals), tuple(possible))


#: the questions whose answer is a promise of the protocol: nothing here may be possible but honest runs
PROMISES: Final = (
    _row("honest runs are possible", ["run"], ["run"]),
    _row("honest runs of a device with itself are possible", ["run"], ["run"], agent="alice"),
    _row("secrecy of target and data", SECRETS),
    _row("the agent knows whom it serves", TO_AGENT),
    _row("the forward proxy knows whom it reaches", TO_FORWARD),
    _row("an invite is redeemed by its holder only", INVITE),
    _row("all of it between a device and itself", ALL, agent="alice"),
    _row("forward proxy's identity key stolen: nobody poses as the agent to it", (*FROM_FORWARD, *TO_FORWARD), attacker=ALICE_LOST),
    _row("the same: its own runs get secret replies", ["secret reply to alice's own run"], attacker=ALICE_LOST),
    _row("agent's identity key stolen: nobody poses as the forward proxy to it", (*FROM_AGENT, *TO_AGENT), attacker=AGENT_LOST),
    _row("the same: the holder alone redeems the invite", INVITE, attacker=AGENT_LOST),
    _row("all identity keys and invites stolen later", SECRETS, attacker=Attacker(later=IDENTITIES_LATER)),
    _row(
        "the same, and the keys of offers that never took an INIT: what follows ACCEPT",
        ["secret late data", *FROM_AGENT],
        attacker=Attacker(later=IDENTITIES_LATER, unused_offers=True),
    ),
    _row("all identity keys and every eR stolen later", SECRETS, attacker=Attacker(later=(*IDENTITIES_LATER, "one_time(J,S)"))),
    _row("all identity keys and every ML-KEM key stolen later", SECRETS, attacker=Attacker(later=(*IDENTITIES_LATER, "one_time_kem(J,S)"))),
    _row("discrete logarithm broken later", SECRETS, attacker=Attacker(inverts_later=BROKEN_CURVE)),
    _row("ML-KEM broken later", SECRETS, attacker=Attacker(inverts_later=BROKEN_KEM)),
    _row("ML-KEM broken from the start", ALL, attacker=Attacker(inverts=BROKEN_KEM)),
    _row("one-time secrets of all other runs known", ALL, attacker=Attacker(other_sessions=True)),
    _row("this offer's keys stolen before its use: who it is with", HANDSHAKE, attacker=Attacker(knows=RUN_KEYS)),
)

#: what the protocol does not promise: the attack must be found
LIMITS: Final = (
    _row(
        "keys of offers that never took an INIT stolen later: early data",
        ["secret target", "secret early data"],
        ["secret target", "secret early data"],
        attacker=Attacker(unused_offers=True),
    ),
    _row("this offer's keys not erased and stolen later", SECRETS, SECRETS, attacker=Attacker(later=RUN_KEYS)),
    _row("discrete logarithm and ML-KEM broken later", SECRETS, SECRETS, attacker=Attacker(inverts_later=BROKEN_CURVE + BROKEN_KEM)),
    _row(
        "discrete logarithm broken during the handshake",
        [*SECRETS, *TO_AGENT, *TO_FORWARD[:2]],
        [*SECRETS, *TO_AGENT, *TO_FORWARD[:2]],
        attacker=Attacker(inverts=BROKEN_CURVE),
    ),
    _row(
        "forward proxy's identity key stolen: the thief is served in its name",
        [*FROM_AGENT, "R: eF is alice's"],
        [*FROM_AGENT, "R: eF is alice's"],
        attacker=ALICE_LOST,
    ),
    _row(
        "agent's identity key stolen: the thief serves in its name",
        [*FROM_FORWARD, "F: eR is the agent's"],
        [*FROM_FORWARD, "F: eR is the agent's"],
        attacker=AGENT_LOST,
    ),
    _row("this offer's keys stolen before its use: the rest", BEHIND_KEYS, BEHIND_KEYS, attacker=Attacker(knows=RUN_KEYS)),
)

#: negative controls: the protocol without one thing, and what then goes wrong
CONTROLS: Final = (
    _row("sigR not verified", ALL, ["secret target", "secret early data"], protocol=Protocol(offer_signature=False)),
    _row(
        "device ID of the offer not compared",
        ALL,
        [*FROM_FORWARD, "F: eR is the agent's"],
        protocol=Protocol(device_id=False),
    ),
    _row("sigF not verified", ALL, [*FROM_AGENT, "R: eF is alice's"], protocol=Protocol(initiator_signature=False)),
    _row("sigF not over the transcript", ALL, [*FROM_AGENT, "R: eF is alice's"], protocol=Protocol(bound_initiator=False)),
    _row(
        "sigR2 not verified, this offer's keys stolen",
        HANDSHAKE,
        ["F: the agent took this INIT"],
        attacker=Attacker(knows=RUN_KEYS),
        protocol=Protocol(responder_signature=False),
    ),
    _row(
        "sigR2 not over the transcript, this offer's keys stolen",
        HANDSHAKE,
        ["F: the agent took this INIT"],
        attacker=Attacker(knows=RUN_KEYS),
        protocol=Protocol(bound_responder=False),
    ),
    _row(
        "neither the offer's key and signature nor OPEN's device ID hashed",
        ALL,
        ["R: alice ran with this offer", "R: same ct", "R: same target", "R: same early data"],
        protocol=Protocol(names_in_transcript=False),
    ),
    _row(
        "invite's proof not over the transcript, agent's key stolen",
        INVITE,
        INVITE,
        attacker=AGENT_LOST,
        protocol=Protocol(bound_proof=False),
    ),
    _row(
        "no KEM, discrete logarithm broken later",
        SECRETS,
        SECRETS,
        attacker=Attacker(inverts_later=BROKEN_CURVE),
        protocol=Protocol(kem=False),
    ),
    _row("no ECDH, ML-KEM broken later", SECRETS, SECRETS, attacker=Attacker(inverts_later=BROKEN_KEM), protocol=Protocol(ecdh=False)),
)

#: checks that these questions do not need: another one stops the same attacks
SPARE: Final = (
    _row("OPEN's device ID not checked by the agent", ALL, protocol=Protocol(open_names_agent=False)),
    _row("hs without salt", ALL, protocol=Protocol(salted=False)),
)

TABLES: Final = {"promises": PROMISES, "limits": LIMITS, "negative controls": CONTROLS, "spare checks": SPARE}


# --- provers ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prover:
    """A program that saturates clauses, with a strategy that is complete: when it ends without a contradiction there is none."""

    name: str
    command: tuple[str, ...]
    impossible: str  #: what it prints when it has saturated the clauses without a contradiction
    possible: str  #: and when it has found one
    version: tuple[str, ...]

    def ask(self, path: Path) -> str:
        """possible, impossible, or no answer."""
        done = subprocess.run([*self.command, str(path)], capture_output=True, text=True, check=False)  # noqa: S603
        return "impossible" if self.impossible in done.stdout else "possible" if self.possible in done.stdout else "no answer"

    def present(self) -> bool:
        """Whether it is installed."""
        return shutil.which(self.command[0]) is not None

    def title(self) -> str:
        """Its name and version."""
        done = subprocess.run(self.version, capture_output=True, text=True, check=False)  # noqa: S603
        found = re.search(r"^\s*(?:E (\d\S*)|SPASS V (\S+))", done.stdout, re.MULTILINE)
        return f"{self.name} {(found[1] or found[2]) if found else 'of unknown version'}"


E: Final = Prover(
    "E",
    ("eprover", "--silent", "--literal-selection-strategy=SelectMaxLComplexAPPNTNp", "--term-ordering=KBO6", f"--cpu-limit={SECONDS}"),
    "# SZS status Satisfiable",
    "# SZS status Unsatisfiable",
    ("eprover", "--version"),
)
# IEmS and ISoR are not for speed: SPASS treats `knows(X)` on the left as a sort, and without their rules resolves nothing with it
_SPASS_RULES: Final = "IEmS ISoR IORe IOFc IEqF ISpR ISpL IERR RFSub RBSub RTaut RFRew RBRew RUnC RObv RCon Select"
SPASS: Final = Prover(
    "SPASS",
    ("SPASS", "-TPTP", "-Auto=0", "-PGiven=0", "-PProblem=0", "-TimeLimit=60", *(f"-{rule}=1" for rule in _SPASS_RULES.split())),
    "SPASS beiseite: Completion found.",
    "SPASS beiseite: Proof found.",
    ("SPASS",),
)


def _ask(row: Row, goal: str, provers: Sequence[Prover]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "question.p"
        path.write_text(build(row.setting, goal), encoding="ascii")
        return [prover.ask(path) for prover in provers]


# --- Verifpal -----------------------------------------------------------------------------------------------------------------------------

REPLAY: Final = Path(__file__).with_name("replay.vp")
#: Verifpal's code for its answers: a0 is "no attack on this authentication query found", a1 is "attack"; with what to edit first
REPLAYS: Final = (
    ("every message is accepted once", (), "a0a0a0a0"),
    (
        "eR and ekR for more than one connection",
        (("knows private idr", "knows private idr, er, dkr"), ("generates er, dkr\n", "\n")),
        "a1a1a0a0",
    ),
)


def _replays(only: str) -> Iterator[tuple[str, bool]]:
    """Verifpal's bounded search for replays, in two sessions."""
    yield "\nreplay, by Verifpal in two sessions (a search, not a proof)", True
    for name, edits, expected in REPLAYS:
        if only not in name:
            continue
        text = REPLAY.read_text(encoding="utf-8")
        for old, new in edits:
            if old not in text:
                raise ValueError(f"{REPLAY.name} has no {old!r}")
            text = text.replace(old, new, 1)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "replay.vp"
            path.write_text(text, encoding="utf-8")
            command = ["verifpal", "verify", str(path), "--sessions", "2", "--result-code", "--quiet", "--color", "never"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        code = done.stdout.strip().splitlines()[-1:] or ["no answer"]
        yield f"  {_verdict(good=code == [expected])}  {name}: {code[0]}", code == [expected]


# --- report -------------------------------------------------------------------------------------------------------------------------------


def _verdict(*, good: bool) -> str:
    return "as expected" if good else "DIFFERENT  "


def _report(provers: Sequence[Prover], only: str) -> Iterator[tuple[str, bool]]:
    """Lines to print, each with whether it is as expected."""
    unanswered = asked = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for title, rows in TABLES.items():
            yield f"\n{title}", True
            for row in rows:
                if only not in row.name:
                    continue
                answers = dict(zip(row.goals, pool.map(lambda goal, row=row: _ask(row, goal, provers), row.goals), strict=True))
                asked += len(answers)
                good = True
                for goal, (first, *second) in answers.items():
                    good = good and first == ("possible" if goal in row.possible else "impossible")
                    good = good and set(second) <= {first, "no answer"}
                    unanswered += second.count("no answer")
                yield f"  {_verdict(good=good)}  {row.name}", good
                for goal, (first, *second) in answers.items():
                    others = [f" (SPASS: {answer})" for answer in second if answer != first]
                    yield f"      {first:12} {goal}{''.join(others)}", True
    yield f"\n{asked} questions asked of {provers[0].name}", True
    for prover in provers[1:]:
        yield f"{prover.name} answers {asked - unanswered} of them", True


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Ask a theorem prover about the end-to-end handshake.")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the rows whose name has this text")
    parser.add_argument("--second", action="store_true", help="ask SPASS too, which is slower: it may have no answer, but no other one")
    parser.add_argument("--clauses", metavar="GOAL", help="print the clauses of the first such row with this goal, for a prover, and stop")
    arguments = parser.parse_args()
    write = sys.stdout.write
    if arguments.clauses is not None:
        row = next(row for rows in TABLES.values() for row in rows if arguments.only in row.name)
        write(build(row.setting, arguments.clauses))
        return 0
    provers = [E, SPASS] if arguments.second else [E]
    for prover in provers:
        if not prover.present():
            write(f"{prover.name} is not here. {INSTALL}\n")
            return 2
    write(f"asked: {', '.join(prover.title() for prover in provers)}\n")
    all_good = True
    parts = [_report(provers, arguments.only)]
    if shutil.which("verifpal"):
        parts.append(_replays(arguments.only))
    for part in parts:
        for line, good in part:
            write(f"{line}\n")
            sys.stdout.flush()
            all_good = all_good and good
    if len(parts) == 1:
        write(f"\nreplay: not searched for, verifpal is not here. {INSTALL}\n")
    write(f"\n{'every answer is as expected' if all_good else 'NOT every answer is as expected'}\n")
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())

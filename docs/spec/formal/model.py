"""The end-to-end handshake as first-order clauses, for theorem provers that saturate.

One clause is one thing that can happen: "whoever knows these values can have that value". `knows(x)` is what the attacker can know,
`later(x)` what it can know after the handshakes are over. A goal is a clause that says "and this must not happen". When a prover saturates
the clauses with the goal ("Satisfiable", "Completion found"), the goal cannot happen, in any number of runs. When it finds a contradiction,
it can.

Capital letters are variables: I and J devices (as forward proxy and as agent), T and S their runs, X and Y the private halves of an offer,
P that of its identity key, E, R, K, W what an agent finds in OPEN and INIT, D the private half of the identity key that was asked for. A
public key is always the image of a private one (`point`, `kem`): every point of P-256 is such an image.

Source: docs/spec/end-to-end.md. What is left out, and why: README.md.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from types import MappingProxyType
from typing import Final

# --- terms --------------------------------------------------------------------------------------------------------------------------------

#: every function symbol and its number of arguments
SYMBOLS: Final[Mapping[str, int]] = MappingProxyType(
    {
        # primitives
        "point": 1,  # the P-256 point of a private key
        "dh": 2,  # the shared point of two private keys, in either order
        "kem": 1,  # the encapsulation key of an ML-KEM private key
        "sealed_kem": 2,  # ct: encapsulation key, randomness
        "shared_kem": 2,  # ss: the same
        "sign": 2,  # private key, message
        "hash": 2,
        "mac": 2,  # key, message
        "extract": 3,  # salt, shared point, ss
        "expand": 3,  # secret, label, context
        "aead": 3,  # key, sequence number, plaintext
        "pair": 2,
        # secrets of honest devices: the device, its run, and what the run had seen when it made them
        "identity": 1,
        "one_time": 2,  # eR: agent, run
        "one_time_kem": 2,  # dkR
        "ephemeral": 2,  # eF: forward proxy, run
        "coins": 5,  # the randomness of Encaps
        "target": 5,
        "early": 5,
        "late": 5,
        "connected": 5,
        "reply": 5,
        "invite": 3,  # agent, number, device that it was handed to
        "used": 1,  # a run of an agent that can take an INIT, where there are others
        # public constants, and names of devices and runs
        **dict.fromkeys(["t0", "offer", "initiator", "responder", "init", "accept", "f2r", "r2f", "invite_id", "invite_proof"], 0),
        **dict.fromkeys(["none", "relay", "not_after", "connect", "okay", "zero", "one", "two"], 0),
        **dict.fromkeys(["alice", "bob", "run_f", "run_r", "other"], 0),
    }
)
PREDICATES: Final = frozenset({"knows", "later", "offered", "accepted", "taken", "allowed_offer", "allowed_init"})
PUBLIC: Final = tuple(name for name, arity in SYMBOLS.items() if arity == 0)


def chain(*terms: str) -> str:
    """H(H(H(a || b) || c) || ...): one step of the transcript for each term behind the first."""
    result, *rest = terms
    for term in rest:
        result = f"hash({result},{term})"
    return result


def _apply(name: str, *arguments: str) -> str:
    return f"{name}({','.join(arguments)})" if arguments else name


def split(term: str) -> tuple[str, list[str]]:
    """A term's symbol and its arguments."""
    name, bracket, rest = term.partition("(")
    if not bracket:
        return name, []
    arguments, depth, start = [], 0, 0
    for at, character in enumerate(rest[:-1]):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            arguments.append(rest[start:at])
            start = at + 1
    return name, [*arguments, rest[start:-1]]


# --- what is asked ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Protocol:
    """The handshake, with every check and every ingredient; a negative control takes one away."""

    offer_signature: bool = True  #: F verifies sigR
    device_id: bool = True  #: F compares the device ID of the offer's identity key
    open_names_agent: bool = True  #: R checks that OPEN names itself
    initiator_signature: bool = True  #: R verifies sigF
    bound_initiator: bool = True  #: sigF is over t3 (else: over its label and idpkF only)
    responder_signature: bool = True  #: F verifies sigR2
    bound_responder: bool = True  #: sigR2 is over t4 (else: over its label and idpkR only)
    names_in_transcript: bool = True  #: idpkR and sigR of the offer and the device ID of OPEN are hashed
    bound_proof: bool = True  #: the invite's proof is over t3 (else: over its label only)
    salted: bool = True  #: hs has t2' as salt
    ecdh: bool = True  #: hs has ECDH(eF, eR)
    kem: bool = True  #: hs has ss


@dataclass(frozen=True)
class Attacker:
    """What the attacker has beside the network, every other device and its own invites. Terms may have variables."""

    knows: tuple[str, ...] = ()  #: from the start
    later: tuple[str, ...] = ()  #: after the handshakes
    inverts: tuple[str, ...] = ()  #: from the start: out of this term it computes its X
    inverts_later: tuple[str, ...] = ()
    other_sessions: bool = False  #: one-time secrets of all runs but run_f of alice and run_r of the agent
    unused_offers: bool = False  #: later: one-time secrets of runs of agents that have not taken an INIT


@dataclass(frozen=True)
class Setting:
    """One world: a protocol, an attacker, and which device bob is: another one, or alice herself."""

    protocol: Protocol = Protocol()
    attacker: Attacker = Attacker()
    agent: str = "bob"


# --- clauses ------------------------------------------------------------------------------------------------------------------------------


class Clauses:
    """Clauses in the making."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.lines: list[str] = []
        self._numbers = count(1)
        self._differing: dict[str, str] = {}

    def add(self, conclusion: str | None, hypotheses: Iterable[str] = ()) -> None:
        """If all hypotheses then the conclusion; without one: not all hypotheses."""
        literals = [f"~{hypothesis}" for hypothesis in hypotheses] + ([conclusion] if conclusion else [])
        role = "axiom" if conclusion else "negated_conjecture"
        self.lines.append(f"cnf(c{next(self._numbers)},{role},({' | '.join(literals)})).")

    def differs(self, variable: str, pattern: str) -> str:
        """A literal: `variable` is not of this shape. In the pattern * is anything; it has no variables."""
        name = self._differing.get(pattern)
        if name is None:
            name = self._differing[pattern] = f"differs{len(self._differing)}"
            symbol, arguments = split(pattern)
            for other, arity in SYMBOLS.items():
                variables = [f"V{index}" for index in range(arity)]
                if other != symbol:
                    self.add(f"{name}({_apply(other, *variables)})")
                    continue
                for own, argument in zip(variables, arguments, strict=True):
                    if argument != "*":
                        self.add(f"{name}({_apply(other, *variables)})", [self.differs(own, argument)])
        return f"{name}({variable})"

    def text(self) -> str:
        """All clauses, in TPTP's syntax."""
        return "\n".join(self.lines) + "\n"


def _abilities(clauses: Clauses, has: str) -> None:
    """What the attacker can compute. `has` is knows or later."""

    def can(result: str, *needs: str) -> None:
        clauses.add(f"{has}({result})", [f"{has}({need})" for need in needs])

    can("point(X)", "X")
    can("dh(X,Y)", "point(X)", "Y")
    can("kem(X)", "X")
    can("sealed_kem(X,R)", "kem(X)", "R")
    can("shared_kem(X,R)", "kem(X)", "R")
    can("shared_kem(X,R)", "sealed_kem(X,R)", "X")
    can("sign(K,M)", "K", "M")
    can("hash(X,Y)", "X", "Y")
    can("mac(K,M)", "K", "M")
    can("extract(X,Y,Z)", "X", "Y", "Z")
    can("expand(X,Y,Z)", "X", "Y", "Z")
    can("aead(K,N,M)", "K", "N", "M")
    can("M", "aead(K,N,M)", "K")
    can("pair(X,Y)", "X", "Y")
    can("X", "pair(X,Y)")
    can("Y", "pair(X,Y)")


@dataclass(frozen=True)
class Handshake:
    """Every message and secret of one handshake, from the values that either side puts in or finds in what it receives."""

    protocol: Protocol
    x: str  #: eR
    y: str  #: the ML-KEM private key
    identity_r: str
    asked: str  #: the private half of the identity key whose device ID is in OPEN
    e: str  #: eF
    coins: str
    identity_f: str
    purpose: str
    invite: str = "none"  #: the invite's secret
    status: str = "okay"

    @property
    def offer(self) -> str:
        """OFFER without its signature."""
        return chain(f"point({self.x})", f"kem({self.y})", "not_after", "relay", f"point({self.identity_r})")

    @property
    def sig_r(self) -> str:
        """The offer's signature."""
        return f"sign({self.identity_r},hash(offer,hash(t0,{self.offer})))"

    @property
    def ct(self) -> str:
        """The KEM's ciphertext."""
        return f"sealed_kem({self.y},{self.coins})"

    @property
    def invite_id(self) -> str:
        """What OPEN and INIT say of the invite."""
        return "none" if self.invite == "none" else f"expand({self.invite},invite_id,none)"

    @property
    def t2(self) -> str:
        """The transcript t2'."""
        if not self.protocol.names_in_transcript:
            return chain("t0", f"point({self.x})", f"kem({self.y})", f"point({self.e})", self.invite_id, self.ct)
        sent_offer = f"hash({self.offer},{self.sig_r})" if self.protocol.offer_signature else self.offer
        sent_open = chain(f"point({self.asked})", f"point({self.e})", self.invite_id)
        return chain("t0", sent_offer, sent_open, self.ct)

    @property
    def hs(self) -> str:
        """The handshake secret."""
        point = f"dh({self.e},{self.x})" if self.protocol.ecdh else "none"
        shared = f"shared_kem({self.y},{self.coins})" if self.protocol.kem else "none"
        return f"extract({self.t2 if self.protocol.salted else 'none'},{point},{shared})"

    @property
    def t3(self) -> str:
        """The transcript t3."""
        return f"hash({self.t2},point({self.identity_f}))"

    @property
    def sig_f(self) -> str:
        """The initiator's signature."""
        if not self.protocol.initiator_signature:
            return "none"
        return f"sign({self.identity_f},hash(initiator,{self.t3 if self.protocol.bound_initiator else f'point({self.identity_f})'}))"

    @property
    def proof(self) -> str:
        """The invite's proof."""
        return "none" if self.invite == "none" else f"mac(expand({self.invite},invite_proof,none),{self._proven})"

    @property
    def _proven(self) -> str:
        return self.t3 if self.protocol.bound_proof else "invite_proof"

    @property
    def init(self) -> str:
        """INIT's sealed part."""
        plaintext = f"pair(point({self.identity_f}),pair({self.sig_f},pair({self.proof},{self.purpose})))"
        return f"aead(expand({self.hs},init,none),zero,{plaintext})"

    @property
    def t4(self) -> str:
        """The transcript t4."""
        return chain(self.t3, self.sig_f, self.invite_id, self.proof, self.purpose)

    @property
    def sig_r2(self) -> str:
        """The responder's signature."""
        if not self.protocol.responder_signature:
            return "none"
        return f"sign({self.identity_r},hash(responder,{self.t4 if self.protocol.bound_responder else f'point({self.identity_r})'}))"

    @property
    def accept(self) -> str:
        """ACCEPT's sealed part."""
        return f"aead(expand({self.hs},accept,{self.t4}),zero,pair({self.status},{self.sig_r2}))"

    @property
    def t5(self) -> str:
        """The transcript t5."""
        return chain(self.t4, self.status, self.sig_r2)

    def record_f(self, number: str, body: str) -> str:
        """A record of the forward proxy."""
        return f"aead(expand({self.hs},f2r,{self.t4}),{number},{body})"

    def record_r(self, number: str, body: str) -> str:
        """A record of the agent."""
        return f"aead(expand({self.hs},r2f,{self.t5}),{number},{body})"


def forward(protocol: Protocol, i: str, t: str, *, offer: tuple[str, str, str], asked: str, invite: str) -> Handshake:
    """Run t of device i as forward proxy, which asked for the device of `asked` and got an offer with these x, y and p."""
    x, y, p = offer
    coins = f"coins({i},{t},{x},{y},{asked})"
    return Handshake(protocol, x, y, p, asked, f"ephemeral({i},{t})", coins, f"identity({i})", "connect", invite)


def agent(protocol: Protocol, j: str, s: str, *, received: tuple[str, str, str, str], invite: str) -> Handshake:
    """Run s of device j as agent, which gets OPEN and INIT with these k, e, r and w in them."""
    own = f"identity({j})"
    k, e, r, w = received
    asked = own if protocol.open_names_agent else "Z"
    return Handshake(protocol, f"one_time({j},{s})", f"one_time_kem({j},{s})", own, asked, e, r, k, w, invite)


#: what invite a run can be with: none; one that the honest agent J handed to H; one that the attacker made
INVITES: Final = ("none", "invite(J,N,H)", "A")

ALICE_RUN: Final = "run_f"  #: the run of alice as forward proxy that goals speak of
AGENT_RUN: Final = "run_r"  #: the run of the agent


def _forward_steps(clauses: Clauses, *, blocked: Handshake | None) -> None:
    """Every run of every device as forward proxy; but not that alice's run_f takes the blocked offer.

    offered(i, t, x, y, p, d, invite): it has taken an offer. accepted(..., status): it has taken ACCEPT.
    """
    protocol = clauses.setting.protocol
    clauses.add("knows(point(ephemeral(I,T)))")
    for invite in INVITES:
        # an invite names its agent: a run with it asks for that one; a device ID that is compared leaves one identity key
        asked = "identity(J)" if invite.startswith("invite") else "P" if protocol.device_id else "D"
        got = asked if protocol.device_id else "P"
        own_invite = invite.replace("H", "I")
        run = forward(protocol, "I", "T", offer=("X", "Y", got), asked=asked, invite=own_invite)
        values = f"I,T,X,Y,{got},{asked},{own_invite}"
        offer = [f"point({run.x})", f"kem({run.y})", f"point({run.identity_r})", f"point({run.asked})"]
        needs = [f"knows({value})" for value in ([*offer, run.sig_r] if protocol.offer_signature else offer)]
        if invite == "A":
            needs.append("knows(A)")
        if blocked is not None:
            needs.append(f"allowed_offer(I,T,X,Y,{got})")
        clauses.add(f"offered({values})", needs)
        offered = [f"offered({values})"]
        data = f"I,{asked},T,X,Y"
        clauses.add(f"knows({run.invite_id})", ["knows(A)"] if invite == "A" else [])  # OPEN goes out before the offer is here
        clauses.add(f"knows({run.ct})", offered)
        clauses.add(f"knows({run.init})", offered)
        clauses.add(f"knows({run.record_f('zero', f'target({data})')})", offered)
        clauses.add(f"knows({run.record_f('one', f'early({data})')})", offered)
        answered = replace(run, status="V")
        accepted = f"accepted({values},V)"
        clauses.add(accepted, [*offered, f"knows({answered.accept})"])
        clauses.add(f"knows({run.record_f('two', f'late({data})')})", [accepted])
    if blocked is not None:
        block = ("alice", ALICE_RUN, blocked.x, blocked.y, blocked.identity_r)
        for variable, value in zip("ITXYP", block, strict=True):
            clauses.add("allowed_offer(I,T,X,Y,P)", [clauses.differs(variable, value)])


def _agent_steps(clauses: Clauses, *, blocked: Handshake | None) -> None:
    """Every run of every device as agent; but not that run_r of the agent takes the blocked INIT.

    taken(j, s, k, e, r, w, invite): it has taken an INIT. Policy admits everybody.
    """
    protocol, attacker = clauses.setting.protocol, clauses.setting.attacker
    clauses.add("knows(point(identity(J)))")
    made = agent(protocol, "J", "S", received=("K", "E", "R", "W"), invite="none")
    for value in (f"point({made.x})", f"kem({made.y})", made.sig_r):
        clauses.add(f"knows({value})")
    used = "used(S)" if attacker.unused_offers else "S"
    for invite in INVITES[:2]:
        run = agent(protocol, "J", used, received=("K", "E", "R", "W"), invite=invite)
        received = [f"point({run.e})", f"point({run.asked})", f"point({run.identity_f})", run.invite_id, run.ct, run.init]
        needs = [f"knows({value})" for value in received]
        if blocked is not None:
            needs.append("allowed_init(J,S,K,E,R,W)")
        taken = [f"taken(J,{used},K,E,R,W,{invite})"]
        clauses.add(taken[0], needs)
        clauses.add(f"knows({run.accept})", taken)
        clauses.add(f"knows({run.record_r('zero', f'connected(J,K,{used},E,R)')})", taken)
        clauses.add(f"knows({run.record_r('one', f'reply(J,K,{used},E,R)')})", taken)
    if blocked is not None:
        block = (clauses.setting.agent, AGENT_RUN, blocked.identity_f, blocked.e, blocked.coins, blocked.purpose)
        for variable, value in zip("JSKERW", block, strict=True):
            clauses.add("allowed_init(J,S,K,E,R,W)", [clauses.differs(variable, value)])


def _attackers_own(clauses: Clauses) -> None:
    """What this attacker has from the start: all public names, every other device, its own invites, and what the setting gives it."""
    setting = clauses.setting
    for name in PUBLIC:
        clauses.add(f"knows({name})")
    clauses.add("knows(identity(X))", [clauses.differs("X", "alice"), clauses.differs("X", "bob")])
    clauses.add("knows(invite(J,N,H))", [clauses.differs("H", "alice"), clauses.differs("H", "bob")])
    for term in setting.attacker.knows:
        clauses.add(f"knows({term})")
    for image in setting.attacker.inverts:
        clauses.add("knows(X)", [f"knows({image})"])
    if setting.attacker.other_sessions:
        for index, value in (("J", setting.agent), ("S", AGENT_RUN)):
            for secret in ("one_time", "one_time_kem"):
                clauses.add(f"knows({secret}(J,S))", [clauses.differs(index, value)])
        for index, value in (("I", "alice"), ("T", ALICE_RUN)):
            clauses.add("knows(ephemeral(I,T))", [clauses.differs(index, value)])
            clauses.add("knows(coins(I,T,X,Y,D))", [clauses.differs(index, value)])


def _afterwards(clauses: Clauses) -> None:
    """What the attacker has when the handshakes are over: all it knew, and what falls into its hands then."""
    attacker = clauses.setting.attacker
    clauses.add("later(X)", ["knows(X)"])
    _abilities(clauses, "later")
    for term in attacker.later:
        clauses.add(f"later({term})")
    for image in attacker.inverts_later:
        clauses.add("later(X)", [f"later({image})"])
    if attacker.unused_offers:
        for secret in ("one_time", "one_time_kem"):
            clauses.add(f"later({secret}(J,S))", [clauses.differs("S", "used(*)")])


def build(setting: Setting, goal: str) -> str:
    """The clauses of a setting with one goal, for a prover."""
    clauses = Clauses(setting)
    honest = _honest(clauses)
    _abilities(clauses, "knows")
    _attackers_own(clauses)
    _forward_steps(clauses, blocked=honest if goal in BLOCKS_FORWARD else None)
    _agent_steps(clauses, blocked=honest if goal in BLOCKS_AGENT else None)
    if _has_later(setting.attacker):
        _afterwards(clauses)
    clauses.add("dh(X,Y)=dh(Y,X)")
    for hypotheses in GOALS[goal](clauses):
        clauses.add(None, hypotheses)
    text = clauses.text()
    unknown = set(re.findall(r"\b[a-z]\w*", text)) - set(SYMBOLS) - PREDICATES
    if unknown := {name for name in unknown if not re.fullmatch(r"cnf|axiom|negated_conjecture|c\d+|differs\d+", name)}:
        raise ValueError(f"symbols that `differs` does not know: {unknown}")
    return text


def _honest(clauses: Clauses, invite: str = "none") -> Handshake:
    """run_f of alice with the offer of run_r of the agent."""
    j = clauses.setting.agent
    own = f"identity({j})"
    x, y = f"one_time({j},{AGENT_RUN})", f"one_time_kem({j},{AGENT_RUN})"
    return forward(clauses.setting.protocol, "alice", ALICE_RUN, offer=(x, y, own), asked=own, invite=invite)


def _has_later(attacker: Attacker) -> bool:
    return bool(attacker.later or attacker.inverts_later or attacker.unused_offers)


# --- goals: what must not happen ----------------------------------------------------------------------------------------------------------

Hypotheses = Iterator[list[str]]


def _known(clauses: Clauses, term: str) -> str:
    return f"{'later' if _has_later(clauses.setting.attacker) else 'knows'}({term})"


def _sent_by_forward(name: str) -> Callable[[Clauses], Hypotheses]:
    """The attacker knows what run_f of alice sends to the agent, whatever offer it took (run_r's, where it has the keys of the others)."""

    def goal(clauses: Clauses) -> Hypotheses:
        honest = _honest(clauses)
        offer = f"{honest.x},{honest.y}" if clauses.setting.attacker.other_sessions else "X,Y"
        yield [_known(clauses, f"{name}(alice,{honest.asked},{ALICE_RUN},{offer})")]

    return goal


def _sent_by_agent(name: str, ephemeral: str) -> Callable[[Clauses], Hypotheses]:
    """The attacker knows what run_r of the agent sends to alice (to her run_f, where the attacker has the keys of her others)."""

    def goal(clauses: Clauses) -> Hypotheses:
        e = f"ephemeral(alice,{ALICE_RUN})" if clauses.setting.attacker.other_sessions else ephemeral
        run = f"used({AGENT_RUN})" if clauses.setting.attacker.unused_offers else AGENT_RUN
        yield [_known(clauses, f"{name}({clauses.setting.agent},identity(alice),{run},{e},R)")]

    return goal


def _taken(clauses: Clauses, e: str = f"ephemeral(alice,{ALICE_RUN})", r: str = "R", *, invite: str = "A") -> str:
    """run_r of the agent has taken an INIT as alice's."""
    return f"taken({clauses.setting.agent},{AGENT_RUN},identity(alice),{e},{r},W,{invite})"


def _stranger_in_alices_name(clauses: Clauses) -> Hypotheses:
    yield [_taken(clauses, e="E"), clauses.differs("E", "ephemeral(alice,*)")]


def _alice_never_asked(clauses: Clauses) -> Hypotheses:
    yield [_taken(clauses)]


def _other_coins(clauses: Clauses) -> Hypotheses:
    yield [_taken(clauses), clauses.differs("R", _honest(clauses).coins)]


def _other_purpose(clauses: Clauses) -> Hypotheses:
    yield [_taken(clauses), clauses.differs("W", "connect")]


def _agent_reads(number: str, name: str) -> Callable[[Clauses], Hypotheses]:
    """run_r takes as alice's, in that place of her records, what she did not send there."""

    def goal(clauses: Clauses) -> Hypotheses:
        honest, setting = _honest(clauses), clauses.setting
        sent = f"{name}(alice,{honest.asked},{ALICE_RUN},{honest.x},{honest.y})"
        for invite in INVITES[:2]:
            run = agent(setting.protocol, setting.agent, AGENT_RUN, received=("identity(alice)", honest.e, "R", "W"), invite=invite)
            yield [_taken(clauses, invite=invite), f"knows({run.record_f(number, 'M')})", clauses.differs("M", sent)]

    return goal


def _accepted(clauses: Clauses, x: str, y: str, *, status: str = "V", got: str = "P", invite: str = "A") -> str:
    """run_f of alice, which asked for the agent, has taken an ACCEPT."""
    return f"accepted(alice,{ALICE_RUN},{x},{y},{got},identity({clauses.setting.agent}),{invite},{status})"


def _stranger_in_agents_name(clauses: Clauses) -> Hypotheses:
    yield [_accepted(clauses, "X", "Y"), clauses.differs("X", f"one_time({clauses.setting.agent},*)")]


def _other_kem_key(clauses: Clauses) -> Hypotheses:
    honest = _honest(clauses)
    yield [_accepted(clauses, honest.x, "Y"), clauses.differs("Y", honest.y)]


def _agent_never_answered(clauses: Clauses) -> Hypotheses:
    honest = _honest(clauses)
    yield [_accepted(clauses, honest.x, honest.y)]


def _other_status(clauses: Clauses) -> Hypotheses:
    honest = _honest(clauses)
    yield [_accepted(clauses, honest.x, honest.y), clauses.differs("V", "okay")]


def _alice_reads(number: str, name: str) -> Callable[[Clauses], Hypotheses]:
    """run_f takes as the agent's, in that place of its records, what it did not send there."""

    def goal(clauses: Clauses) -> Hypotheses:
        for invite in ("none", f"invite({clauses.setting.agent},N,alice)", "A"):
            honest = _honest(clauses, invite)
            sent = f"{name}({clauses.setting.agent},identity(alice),{AGENT_RUN},{honest.e},{honest.coins})"
            accepted = _accepted(clauses, honest.x, honest.y, status="okay", got=honest.identity_r, invite=invite)
            yield [accepted, f"knows({honest.record_r(number, 'M')})", clauses.differs("M", sent)]

    return goal


def _invite_redeemed_by_another(clauses: Clauses) -> Hypotheses:
    j = clauses.setting.agent
    yield [f"taken({j},{AGENT_RUN},K,E,R,W,invite({j},N,alice))", clauses.differs("K", "identity(alice)")]


def _whole_run(clauses: Clauses) -> Hypotheses:
    """Not a danger: honest runs, without and with an invite, up to the last record. The other answers mean nothing if there are none."""
    j = clauses.setting.agent
    honest = _honest(clauses)
    late = f"late(alice,{honest.asked},{ALICE_RUN},{honest.x},{honest.y})"
    reply = f"reply({j},{honest.identity_f},{AGENT_RUN},{honest.e},{honest.coins})"
    yield [f"knows({honest.record_f('two', late)})", f"knows({honest.record_r('one', reply)})"] + [
        literal
        for invite in ("none", f"invite({j},N,alice)")
        for literal in (
            _accepted(clauses, honest.x, honest.y, status="okay", got=honest.identity_r, invite=invite),
            _taken(clauses, honest.e, honest.coins, invite=invite),
        )
    ]


GOALS: Final[Mapping[str, Callable[[Clauses], Hypotheses]]] = MappingProxyType(
    {
        "secret target": _sent_by_forward("target"),
        "secret early data": _sent_by_forward("early"),
        "secret late data": _sent_by_forward("late"),
        "secret answer": _sent_by_agent("connected", "E"),
        "secret reply": _sent_by_agent("reply", "E"),
        "secret reply to alice's own run": _sent_by_agent("reply", f"ephemeral(alice,{ALICE_RUN})"),
        "R: eF is alice's": _stranger_in_alices_name,
        "R: alice ran with this offer": _alice_never_asked,
        "R: same ct": _other_coins,
        "R: same purpose": _other_purpose,
        "R: same target": _agent_reads("zero", "target"),
        "R: same early data": _agent_reads("one", "early"),
        "R: same late data": _agent_reads("two", "late"),
        "F: eR is the agent's": _stranger_in_agents_name,
        "F: same ekR": _other_kem_key,
        "F: the agent took this INIT": _agent_never_answered,
        "F: same status": _other_status,
        "F: same answer": _alice_reads("zero", "connected"),
        "F: same reply": _alice_reads("one", "reply"),
        "invite redeemed by its holder only": _invite_redeemed_by_another,
        "run": _whole_run,
    }
)

#: goals that ask what happens if run_f of alice did not take run_r's offer, and if run_r did not take run_f's INIT
BLOCKS_FORWARD: Final = ("R: alice ran with this offer",)
BLOCKS_AGENT: Final = ("F: the agent took this INIT",)

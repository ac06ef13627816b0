"""Whatever is shown of an object - in a log, a traceback, a debugger's list - holds no secret: every object of a working world is asked.

A world of relay, agent and proxy enrols, pairs and carries bytes while each secret that comes into being is noted: what the key schedules
expand and agree on, private keys, invites, tokens, the proxy's password. At every signature all of tuunel's objects are shown.
"""

import base64
import gc
import secrets
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.world import LOOPBACK, PATIENCE, World, connect, echo, world
from tuunel import hkdf, identity, pairing
from tuunel.address import HostPort
from tuunel.e2e.offer import OneTimeKeys
from tuunel.errors import Failure, TuunelError
from tuunel.events import Ready
from tuunel.frontdoor import Credentials
from tuunel.identity import IdentityKey
from tuunel.links import Invite, RelayLink, parse_invite, parse_link
from tuunel.proxy import Proxy
from tuunel.relay.handshake import Register

SHORTEST = 16  #: bytes; an iv of 12 and an invite id of 8 are no secrets
PASSWORD = "correct-horse-battery-staple"  # the word of a test


def forms(secret: bytes) -> set[str]:
    """How bytes can be shown: Python's way, hexadecimal, base64, base32, and as one number."""
    number = int.from_bytes(secret)
    coded = {base64.b64encode(secret), base64.urlsafe_b64encode(secret), base64.b32encode(secret), base64.b32encode(secret).lower()}
    shown = {text.decode().rstrip("=") for text in coded}
    return shown | {repr(secret)[2:-1], secret.hex(), secret.hex().upper(), str(number), f"{number:x}", repr(list(secret))[1:-1]}


#: Their text is made to be copied to another machine, once; everything else must mask what they hold.
BEARERS = (Invite, RelayLink)


@dataclass
class Watch:
    """Every secret that has come into being, and every text that an object of tuunel has shown."""

    known: set[bytes] = field(default_factory=set)
    forms: set[str] = field(default_factory=lambda: {PASSWORD})
    texts: set[str] = field(default_factory=set)
    kinds: set[str] = field(default_factory=set)
    _new_forms: set[str] = field(default_factory=set)

    def note(self, secret: bytes) -> bytes:
        if len(secret) >= SHORTEST and secret not in self.known:
            self.known.add(bytes(secret))
            self._new_forms |= forms(secret)
        return secret

    def look(self) -> None:
        """Show every object of tuunel that lives now."""
        new_texts = {text for thing in gc.get_objects() if (text := self._show(thing))} - self.texts
        new_forms, self._new_forms = self._new_forms, set()
        self.texts |= new_texts
        self.forms |= new_forms
        for found, wanted in ((new_texts, self.forms), (self.texts, new_forms)):
            shown = "\n".join(found)
            leaked = [form for form in wanted if form in shown]
            assert not leaked, f"a secret is shown: {[text[:300] for text in found if leaked[0] in text]}"

    def _show(self, thing: object) -> str:
        kind = type(thing)
        if isinstance(thing, type) or not str(getattr(kind, "__module__", "")).startswith("tuunel."):
            return ""
        self.kinds.add(kind.__name__)
        if kind.__repr__ is object.__repr__ and kind.__str__ is object.__str__:
            return ""  # its name and where it lies
        return repr(thing) if isinstance(thing, BEARERS) else f"{thing!r} {thing!s}"


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Sees what comes into being in this test: the rest of a long test run's objects would take minutes to look through."""
    gc.collect()
    gc.freeze()
    made = Watch()

    def noting(function: Callable[..., bytes]) -> Callable[..., bytes]:
        return lambda *arguments, **named: made.note(function(*arguments, **named))

    def sign(*arguments: Any) -> bytes:
        made.look()
        return sign_with(*arguments)

    def keep(self: IdentityKey, private: ec.EllipticCurvePrivateKey) -> None:
        made.note(private.private_numbers().private_value.to_bytes(32))
        init(self, private)

    sign_with, init = identity.sign_with, IdentityKey.__init__

    monkeypatch.setattr(hkdf, "expand", noting(hkdf.expand))
    for module in ("tuunel.e2e.keyschedule", "tuunel.relay.keyschedule"):
        monkeypatch.setattr(f"{module}.extract", noting(hkdf.extract))
    for module in ("tuunel.e2e.handshake", "tuunel.relay.handshake"):
        monkeypatch.setattr(f"{module}.ecdh", noting(identity.ecdh))
    monkeypatch.setattr(secrets, "token_bytes", noting(secrets.token_bytes))
    monkeypatch.setattr(identity, "sign_with", sign)
    monkeypatch.setattr(IdentityKey, "__init__", keep)
    yield made
    gc.unfreeze()


async def use_everything(made: World, watch: Watch) -> None:
    """Enrol, pair, connect cold and hot, be refused, revoke."""
    ready = await (await made.relay()).until(Ready)
    assert ready.link
    token = parse_link(ready.link).enrol
    if token:
        watch.note(token)
    agent = await made.agent(ready.link)
    invite = parse_invite((await agent.role._make_invite({}))["invite"])
    watch.note(invite.secret)
    watch.note(invite.proof_key)
    assert invite.relay.enrol
    watch.note(invite.relay.enrol)
    home = made.home()
    watch.look()
    await pairing.pair(home, invite, "home")
    with pytest.raises(Failure):
        await pairing.pair(made.home(), invite, "again")
    credentials = ("ann", PASSWORD)
    proxy = made.start(home, lambda emit: Proxy(home, listen=LOOPBACK, other="direct", routes=(), credentials=credentials, emit=emit))
    await proxy.until(Ready)
    port = await made.target(echo)
    for password, code in ((PASSWORD, b"200"), ("wrong", b"407"), (PASSWORD, b"200")):
        stream = await connect(proxy.role._addresses[0].port)
        login = base64.b64encode(f"ann:{password}".encode()).decode()
        head = f"CONNECT home.tuunel:{port} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic {login}\r\n\r\n"
        await stream.send_all(head.encode())
        with anyio.fail_after(PATIENCE):
            assert await stream.receive_exactly(12) == b"HTTP/1.1 " + code
        watch.look()
        stream.close()
    await agent.role._revoke({"who": next(iter(agent.role._grants.grants(0))).name})
    watch.look()


@pytest.mark.anyio
async def test_no_object_of_a_working_world_shows_a_secret(watch: Watch) -> None:
    async with world() as made:
        await use_everything(made, watch)
    assert len(watch.known) > 30
    holders = {"IdentityKey", "Invite", "Credentials", "OfferSecrets", "OneTimeKeys", "KeySchedule", "AeadKey", "OpenInvite", "Register"}
    assert holders <= watch.kinds, "an object that holds secrets was never there to be shown"


class Careless:
    """An object of tuunel that masks nothing."""

    __module__ = "tuunel.careless"

    def __init__(self, show: Callable[[bytes], object], secret: bytes) -> None:
        self.show, self.secret = show, secret

    def __repr__(self) -> str:
        return f"Careless({self.show(self.secret)})"


@pytest.mark.parametrize("show", [str, bytes.hex, base64.b64encode, base64.b32encode, int.from_bytes, list])
def test_the_watch_would_notice(watch: Watch, show: Callable[[bytes], object]) -> None:
    careless = Careless(show, watch.note(secrets.token_bytes(32)))
    with pytest.raises(AssertionError, match="a secret is shown"):
        watch.look()
    assert careless.secret in watch.known


# what makes each error, and each line of a log


def test_errors_and_events_are_made_without_secrets() -> None:
    """A secret in an error's text would pass every mask: what is wrong is told by its kind and length."""
    invite = Invite(RelayLink(HostPort("relay.example", 7443), bytes(range(32)), b"t" * 16), IdentityKey.generate().device_id, b"s" * 16)
    text = str(invite)
    for place in range(len("tuunel://relay.example:7443?"), len(text)):
        for read in (parse_invite, parse_link):
            with pytest.raises(TuunelError) as caught:
                read(text[:place])
            told = f"{caught.value} {caught.value.advice}"
            assert not [part for part in text.split("=")[1:] if part.partition("&")[0] in told]


def test_a_traceback_that_shows_its_local_variables_shows_no_secret() -> None:
    """Some tools print locals with `repr`."""

    def crash(*held: object) -> None:
        raise ZeroDivisionError

    keys = OneTimeKeys(ec.generate_private_key(ec.SECP256R1()), object())  # type: ignore[arg-type]
    link = RelayLink(HostPort("relay.example", 7443), bytes(32), b"T" * 16)
    held = (Credentials("ann", PASSWORD), link, Register(b"T" * 16, "laptop"), hkdf.AeadKey(b"T" * 32, b"T" * 12), keys)
    try:
        crash(*held)
    except ZeroDivisionError as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "Credentials" in shown
    for wrong in (PASSWORD, "TTTT", (b"T" * 16).hex(), base64.b32encode(b"T" * 16).decode().lower().rstrip("=")):
        assert wrong not in shown

"""The command table: what each command asks of whom, and what it prints."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tuunel.address import HostPort
from tuunel.cli import agent, app, relay
from tuunel.devices import Devices
from tuunel.errors import NotRunning, TuunelError, UsageError
from tuunel.events import Emit
from tuunel.identity import DeviceID, IdentityKey
from tuunel.links import Invite, RelayLink
from tuunel.relay.limits import Allowances
from tuunel.settings import Home

LIMITS = ("--limit", "device-opens=50/s", "--limit", "prefix-rate=20MB/s")
LINK = RelayLink(HostPort("relay.example.net", 7443), bytes(range(32)), bytes(16))
DEVICE = IdentityKey.from_private_value(7).device_id
INVITE = Invite(LINK, DEVICE, bytes(range(16)))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("TUUNEL_HOME", str(tmp_path / "state"))
    found = Home.find()
    found.ensure()
    return found


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The roles that commands have built, with what they were given."""
    roles: list[SimpleNamespace] = []

    def run_role(name: str, build: Callable[[Emit], Any], *, as_json: bool, drain: float, **_options: Any) -> None:
        roles.append(SimpleNamespace(name=name, as_json=as_json, drain=drain, **build(print)))

    def taken(home: Home, **arguments: Any) -> dict[str, Any]:
        return {"home": home, **arguments}

    monkeypatch.setattr("tuunel.cli.running.run_role", run_role)
    for module, name in (
        ("tuunel.relay.server", "RelayServer"),
        ("tuunel.agent", "Agent"),
        ("tuunel.proxy", "Proxy"),
        ("tuunel.forward", "Forward"),
    ):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: taken}))
    return roles


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[str, str, dict[str, Any]]], dict[str, Any]]:
    """What commands have asked of running roles, and the answer that they get."""
    questions: list[tuple[str, str, dict[str, Any]]] = []
    reply: dict[str, Any] = {}

    def ask_role(role: str, command: str, **arguments: Any) -> dict[str, Any]:
        questions.append((role, command, arguments))
        return reply

    monkeypatch.setattr(relay, "ask_role", ask_role)
    monkeypatch.setattr(agent, "ask_role", ask_role)
    return questions, reply


def test_relay_serve(built: list[SimpleNamespace], home: Home) -> None:
    assert app.main(["relay", "serve"]) == 0
    options = ["--listen", "127.0.0.1:0", "--advertise", "relay.example.net", "--open-enrolment", "--json", *LIMITS]
    assert app.main(["relay", "serve", *options]) == 0
    plain, other = built
    assert (plain.home, plain.listen, plain.advertise, plain.open_enrolment) == (home, HostPort("::", 7443), None, False)
    assert (plain.name, plain.as_json, plain.drain) == ("relay", False, 2.0)
    assert (other.listen, other.advertise, other.open_enrolment, other.as_json) == (
        HostPort("127.0.0.1", 0),
        "relay.example.net",
        True,
        True,
    )
    assert (plain.allowances, other.allowances) == (Allowances(), Allowances.parse(["device-opens=50/s", "prefix-rate=20MB/s"]))


@pytest.mark.parametrize("limits", [["device-opens=fast"], ["device-rate=1MB/s", "device-rate=2MB/s"], ["tunnels=5"]])
def test_a_limit_that_cannot_be_meant_starts_nothing(
    built: list[SimpleNamespace], capsys: pytest.CaptureFixture[str], limits: list[str]
) -> None:
    assert app.main(["relay", "serve", *(part for each in limits for part in ("--limit", each))]) == UsageError.exit_code
    assert built == []
    assert limits[-1].partition("=")[0] in capsys.readouterr().err


def test_agent(built: list[SimpleNamespace]) -> None:
    assert app.main(["agent", str(LINK), "--allow", str(DEVICE), "--drain", "10"]) == 0
    assert app.main(["agent", "--allow", "enrolled"]) == 0
    first, second = built
    assert (first.link, first.allow, first.admit_enrolled, first.drain) == (LINK, [DEVICE], False, 10.0)
    assert (second.link, second.allow, second.admit_enrolled) == (None, [], True)


def test_proxy(built: list[SimpleNamespace]) -> None:
    assert app.main(["proxy"]) == 0
    assert app.main(["proxy", "--other", "via:home", "--route", "*.lab=home", "--route", "10.0.0.0/8=home"]) == 0
    plain, routed = built
    assert (plain.listen, plain.other, plain.routes, plain.credentials) == (HostPort("localhost", 1080), "direct", [], None)
    assert (routed.other, routed.routes) == ("via:home", ["*.lab=home", "10.0.0.0/8=home"])


def test_proxy_with_a_password(built: list[SimpleNamespace], home: Home) -> None:
    file = home.root / "proxy-password"
    file.write_text("s3cret\n")
    file.chmod(0o600)
    assert app.main(["proxy", "--listen", "0.0.0.0:1080", "--auth", "ann"]) == 0
    assert built[0].credentials == ("ann", "s3cret")


def test_an_open_proxy_is_refused(built: list[SimpleNamespace], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["proxy", "--listen", "0.0.0.0:1080"]) == 2
    assert built == []
    assert "not a loopback address" in capsys.readouterr().err


def test_forward(built: list[SimpleNamespace], home: Home) -> None:
    assert app.main(["forward", "8080:home.tuunel:80"]) == 0
    assert (
        app.main(["forward", "0:home.tuunel:53/udp", "/run/x:home.tuunel:80", "--http-hosts", "localhost,home", "--json", "--drain", "9"])
        == 0
    )
    plain, other = built
    assert (plain.name, plain.home, plain.http_hosts, plain.as_json) == ("forward", home, frozenset(), False)
    assert [str(each.to) for each in plain.forwardings] == ["home.tuunel:80"]
    assert [each.listen for each in other.forwardings] == [HostPort("127.0.0.1", 0), "/run/x"]
    assert (other.http_hosts, other.as_json, other.drain) == ({"localhost", "home"}, True, 9.0)


@pytest.mark.parametrize("arguments", [["80"], ["8080:home:80"], ["8080:home.tuunel:80", "--http-hosts", "a b"], []])
def test_a_forward_that_cannot_be_meant_starts_nothing(built: list[SimpleNamespace], arguments: list[str]) -> None:
    assert app.main(["forward", *arguments]) == UsageError.exit_code
    assert built == []


def test_relay_link(asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    questions, reply = asked
    reply["link"] = str(LINK)
    assert app.main(["relay", "link", "--uses", "3", "--for", "2d"]) == 0
    assert questions == [("relay", "link", {"uses": 3, "for": 172800})]
    out, errors = capsys.readouterr()
    assert out == f"{LINK}\n"
    assert f"tuunel agent '{LINK}'" in errors


def test_relay_devices(asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, reply = asked
    reply["devices"] = [
        {"device_id": "aaa", "label": "home\x1b[2J", "created": 1, "last_seen": 0, "online": True, "agent": True, "banned": False},
        {"device_id": "bbb", "label": "", "created": 1, "last_seen": 86400, "online": False, "agent": False, "banned": True},
    ]
    assert app.main(["relay", "devices"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "DEVICE  STATE          LAST SEEN             LABEL",
        "aaa     agent, online  never                 home[2J",
        "bbb     banned         1970-01-02 00:00 UTC",
    ]


def test_relay_devices_stand_beside_their_limits(asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, reply = asked

    def use(tunnels: int, opens: float, rate: float, refused: int, *at_limit: str) -> dict[str, Any]:
        return {"tunnels": tunnels, "opens_per_second": opens, "bytes_per_second": rate, "refused": refused, "at_limit": at_limit}

    known = {"label": "", "created": 1, "last_seen": 0, "online": True, "agent": False, "banned": False}
    reply["devices"] = [
        {"device_id": "aaa", **known, "use": use(512, 0.4, 1_200_000, 7, "tunnels", "rate")},
        {"device_id": "bbb", **known, "label": "home", "use": use(0, 0, 0, 0)},
    ]
    reply["prefixes"] = [{"prefix": "2001:db8:1:2300::/56", "use": use(512, 0.4, 1_200_000, 0)}]
    reply["limits"] = {
        "device": {"tunnels": 512, "opens_per_second": 50, "bytes_per_second": 1_000_000},
        "prefix": {"tunnels": None, "opens_per_second": None, "bytes_per_second": None},
    }
    assert app.main(["relay", "devices"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "DEVICE  STATE            LAST SEEN  TUNNELS   OPENS/S  BYTES/S     REFUSED  LABEL",
        "aaa     forward, online  never      512/512!  0.4/50   1.2M/1.0M!  7",
        "bbb     forward, online  never      0/512     0/50     0/1.0M      0        home",
        "",
        "PREFIX                TUNNELS  OPENS/S  BYTES/S  REFUSED",
        "2001:db8:1:2300::/56  512      0.4      1.2M     0",
    ]


def test_relay_revoke(asked: Any) -> None:
    questions, reply = asked
    reply.update(revoked=str(DEVICE), cut=2)
    assert app.main(["relay", "revoke", DEVICE.compact]) == 0
    assert questions == [("relay", "revoke", {"device": str(DEVICE)})]
    assert app.main(["relay", "revoke", DEVICE.compact[:-1]]) == 2


def test_invite(asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    questions, reply = asked
    reply.update(invite=str(INVITE), expires=86400, targets=["*"], access=None)
    assert app.main(["invite"]) == 0
    assert app.main(["invite", "--target", "*", "--target", "10.0.0.1:22", "--for", "8h", "--uses", "2", "--name", "bob", "--json"]) == 0
    assert questions == [
        ("agent", "invite", {"targets": ["*"], "uses": 1, "name": "", "for": None}),
        ("agent", "invite", {"targets": ["*", "10.0.0.1:22"], "uses": 2, "name": "bob", "for": 28800}),
    ]
    out, errors = capsys.readouterr()
    assert out == f"{INVITE}\n" + json.dumps(reply) + "\n"
    assert f"tuunel pair '{INVITE}' --name NAME" in errors
    assert app.main(["invite", "--for", ""]) == UsageError.exit_code


@pytest.mark.parametrize(("access", "lasting"), [(None, "until revoked"), (28800, "for 8h"), (90, "for 90s"), (86400, "for 1d")])
def test_an_invite_says_what_it_opens_and_for_how_long(
    asked: Any, capsys: pytest.CaptureFixture[str], access: int | None, lasting: str
) -> None:
    asked[1].update(invite=str(INVITE), expires=86400, targets=["10.0.0.1:22", "*.lab:443"], access=access)
    assert app.main(["invite"]) == 0
    assert capsys.readouterr().err.startswith(f"opens 10.0.0.1:22 *.lab:443 {lasting}\nto be used until 1970-01-02")


def test_clients(asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, reply = asked
    reply["clients"] = [{"name": "bob", "device_id": "bbb", "targets": ["*", "10.0.0.1:22"], "created": 1, "expires": None}]
    reply["invites"] = [{"id": "0011", "name": "eve", "uses": 1, "expires": 86400}]
    assert app.main(["clients"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "CLIENT  DEVICE  TARGETS        UNTIL",
        "bob     bbb     * 10.0.0.1:22  no limit",
        "OPEN INVITE  FOR  USES  UNTIL",
        "0011         eve  1     1970-01-02 00:00 UTC",
    ]


def test_revoke(asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    questions, reply = asked
    reply.update(revoked="bob", cut=1)
    assert app.main(["revoke", "bob"]) == 0
    assert questions == [("agent", "revoke", {"who": "bob"})]
    assert capsys.readouterr() == ("", "revoked bob; 1 live tunnel cut\n")


def test_pair(monkeypatch: pytest.MonkeyPatch, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    async def pair(where: Home, invite: Invite, name: str | None) -> Any:
        assert (where, invite, name) == (home, INVITE, "home")
        return SimpleNamespace(name="home", id=DEVICE, relays=[SimpleNamespace(address=LINK.address)])

    monkeypatch.setitem(sys.modules, "tuunel.pairing", SimpleNamespace(pair=pair))
    assert app.main(["pair", str(INVITE), "--name", "home"]) == 0
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.splitlines()[0] == "paired with home, verified end to end"
    assert "tuunel proxy" in errors


def test_pair_takes_no_link_of_a_relay(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["pair", str(LINK)]) == 2
    assert capsys.readouterr().err.startswith("tuunel: ")


def test_devices_add(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    async def add_device(where: Home, device: DeviceID, link: RelayLink, name: str) -> Any:
        assert (where, device, link, name) == (home, DEVICE, LINK, "lab")
        return SimpleNamespace(name="lab", id=DEVICE, relays=[])

    monkeypatch.setitem(sys.modules, "tuunel.pairing", SimpleNamespace(add_device=add_device))
    assert app.main(["devices", "add", str(DEVICE), "--relay", str(LINK), "--name", "lab"]) == 0


def test_devices_rename_and_forget(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    book = Devices(home.devices_file)
    book.remember_relay(LINK, enrolled=True)
    book.add("home", DEVICE, LINK.pin)
    assert app.main(["rename", "home", "house"]) == 0
    capsys.readouterr()
    assert app.main(["devices", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    own = IdentityKey.load(home.identity_key).device_id
    assert document == {
        "device_id": str(own),
        "devices": [{"name": "house", "device_id": str(DEVICE), "relays": ["relay.example.net:7443"]}],
    }
    assert app.main(["devices"]) == 0
    assert "house" in capsys.readouterr().out
    assert app.main(["forget", "house"]) == 0
    assert app.main(["forget", "house"]) == UsageError.exit_code


def test_a_command_whose_role_does_not_run_says_how_to_start_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["clients"]) == NotRunning.exit_code
    assert "tuunel agent" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["relay", "link", "--for", "soon"], ["relay", "link", "--uses", "0"], ["nonsense"], ["pair"], ["agent", "tuunel://x"]]
)
def test_usage_errors_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(arguments) == 2
    assert capsys.readouterr().out == ""


def test_an_error_inside_a_group_of_tasks_gets_its_exit_code(monkeypatch: pytest.MonkeyPatch, built: list[SimpleNamespace]) -> None:
    def fails(name: str, build: Any, **_options: Any) -> None:
        raise ExceptionGroup("tasks", [UsageError("no such route", "name another")])

    monkeypatch.setattr("tuunel.cli.running.run_role", fails)
    assert app.main(["proxy"]) == 2


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch, built: list[SimpleNamespace]) -> None:
    def fails(name: str, build: Any, **_options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("tuunel.cli.running.run_role", fails)
    with pytest.raises(ZeroDivisionError):
        app.main(["proxy"])


def test_every_error_class_has_an_exit_code_that_shells_can_show() -> None:
    assert all(0 < each.exit_code < 126 for each in TuunelError.__subclasses__())

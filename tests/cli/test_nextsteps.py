"""Every command prints the exact next one: what is printed is what the shell and the next command can read."""

import shlex
import socket

import pytest

from tuunel import networkwatch
from tuunel.address import HostPort
from tuunel.cli.nextsteps import after_invite, after_link, after_pairing, after_ready
from tuunel.events import Ready
from tuunel.identity import IdentityKey
from tuunel.links import PLACEHOLDER_HOST, Invite, RelayLink, parse_invite, parse_link

LINK = RelayLink(HostPort("relay.example.net", 7443), bytes(range(32)), bytes(16))
INVITE = Invite(LINK, IdentityKey.from_private_value(7).device_id, bytes(range(16)))


def command(line: str) -> list[str]:
    return shlex.split(line[line.index("tuunel ") :])


def test_the_relays_step_is_the_agents_command() -> None:
    (step,) = after_ready(Ready("relay", listen="[::]:7443", link=str(LINK)))
    words = command(step)
    assert words[:2] == ["tuunel", "agent"]
    assert parse_link(words[2]) == LINK


def test_where_the_metrics_are_is_told_whatever_the_role() -> None:
    for role in ("relay", "agent", "proxy"):
        told = after_ready(Ready(role, listen="localhost:1080", metrics="localhost:9464"))
        assert told[-1] == "metrics on http://localhost:9464/metrics"


def test_the_agents_step_is_the_laptops_command() -> None:
    (step,) = after_ready(Ready("agent", invite=str(INVITE)))
    words = command(step)
    assert words[:2] == ["tuunel", "pair"]
    assert parse_invite(words[2]) == INVITE
    assert words[3] == "--name"
    assert command(after_invite(str(INVITE))[0])[2] == words[2]


def test_a_second_start_has_no_step() -> None:
    assert after_ready(Ready("relay", listen="[::]:7443")) == []
    assert after_ready(Ready("agent", device_id="mrupz")) == []


def test_who_decides_is_told_when_every_enrolled_device_may_come_in() -> None:
    (line,) = after_ready(Ready("agent", admits_enrolled=True))
    assert "operator decides" in line


def test_a_relay_without_a_public_name_says_how_to_give_it_one() -> None:
    link = str(RelayLink(HostPort(PLACEHOLDER_HOST, 7443), bytes(32), bytes(16)))
    assert PLACEHOLDER_HOST in after_link(link)[0]
    assert "--advertise" in after_link(link)[1]
    assert not any("--advertise" in line for line in after_link(str(LINK)))


def test_a_forward_says_what_leads_where_and_what_others_can_use() -> None:
    places = (
        {"listen": "127.0.0.1:8080", "target": "home.tuunel:80"},
        {"listen": "[::]:5353", "target": "home.tuunel:53/udp"},
        {"listen": "localhost:2222", "target": "home.tuunel:22"},
        {"listen": "/run/x.sock", "target": "home.tuunel:unix:/run/docker.sock"},
    )
    lines = after_ready(Ready("forward", listen="127.0.0.1:8080", forwards=places))
    assert [line.partition("   ")[0] for line in lines] == [f"{place['listen']} leads to {place['target']}" for place in places]
    assert ["everyone" in line for line in lines] == [False, True, False, False]


def test_the_proxys_and_the_pairings_steps_name_where_to_go() -> None:
    assert any("localhost:1080" in line for line in after_ready(Ready("proxy", listen="localhost:1080")))
    assert any("home.tuunel" in line for line in after_pairing("home"))


def curl_of(ready: Ready) -> list[str]:
    line = after_ready(ready)[1]
    return shlex.split(line[line.index("curl ") :].partition("   ")[0])


@pytest.mark.parametrize("listen", ["0.0.0.0:1080", "[::]:1080"])
def test_the_proxys_step_names_an_address_that_can_be_connected_to(listen: str) -> None:
    proxy = HostPort.parse(curl_of(Ready("proxy", listen=listen))[2].removeprefix("socks5h://"))
    assert proxy.port == 1080
    with socket.create_server(("0.0.0.0", 0)) as server, socket.create_connection((proxy.host, server.getsockname()[1]), 10):
        pass


def test_the_proxys_step_on_a_machine_without_a_network_is_its_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networkwatch, "local_address", lambda place: None)
    assert curl_of(Ready("proxy", listen="0.0.0.0:1080"))[2] == "socks5h://127.0.0.1:1080"


def test_the_proxys_step_says_who_must_log_in() -> None:
    assert curl_of(Ready("proxy", listen="localhost:1080", user="me & you"))[3:5] == ["--proxy-user", "me & you"]
    assert "--proxy-user" not in curl_of(Ready("proxy", listen="localhost:1080"))

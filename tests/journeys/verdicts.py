"""Ask every interface for one destination, and read each answer back into the words of the failure table."""

import concurrent.futures
import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.journeys import doors
from tests.journeys.world import Machine, Proxy, Trio
from tuunel.errors import ANSWERS, Reason, Speaker
from tuunel.proxystatus import parse_proxy_status


@dataclass(frozen=True)
class Verdict:
    """What one interface said, in the words of the failure table; `said` is all the text it gave to a person."""

    reason: Reason
    speaker: Speaker
    said: str


def http_verdict(opened: doors.Opened) -> Verdict:
    """What the front door for HTTP has answered to a request that failed."""
    with opened:
        parsed = parse_proxy_status(opened.answer.headers.get("proxy-status", ""))
        assert parsed, f"HTTP {opened.answer.code} without a Proxy-Status that names the reason: {opened.answer.headers}"
        speaker, reason, detail = parsed
        assert opened.answer.code == ANSWERS[reason].http
        page = opened.answer.body.decode()
        assert ANSWERS[reason].advice.split("'")[0] in page, page
        return Verdict(reason, speaker, f"{detail} {page}")


def ask_http_connect(proxy: Proxy, host: str, port: int) -> Verdict:
    return http_verdict(doors.http_connect(proxy.address, host, port))


def ask_http(proxy: Proxy, host: str, port: int) -> Verdict:
    return http_verdict(doors.http_get(proxy.address, host, port))


def ask_nc(machine: Machine, host: str, port: int) -> Verdict:
    done = machine.nc(host, port, deadline=60)
    said = done.stderr.decode()
    assert done.stdout == b""
    told = re.match(r"tuunel: (?:the (relay|agent) says )?([A-Z_]+): ", said)
    assert told, f"nothing that names the reason: {said}"
    speaker, reason = Speaker(told[1] or "local"), Reason(told[2])
    assert done.returncode == ANSWERS[reason].exit
    return Verdict(reason, speaker, said)


def socks5_code(proxy: Proxy, host: str, port: int) -> int:
    """The reply byte of RFC 1928."""
    with doors.socks5(proxy.address, host, port) as opened:
        assert opened.answer.code == 0 or opened.sock.recv(1) == b"", "a refused connection is closed"
    return opened.answer.code


def socks4_code(proxy: Proxy, host: str, port: int) -> int:
    """The code of SOCKS4: granted or refused, no more."""
    with doors.socks4a(proxy.address, host, port) as opened:
        assert opened.answer.code == 0x5A or opened.sock.recv(1) == b"", "a refused connection is closed"
    return opened.answer.code


def socks_codes(proxy: Proxy, host: str, port: int) -> tuple[int, int]:
    """The SOCKS5 reply byte and the SOCKS4 code."""
    return socks5_code(proxy, host, port), socks4_code(proxy, host, port)


@dataclass(frozen=True)
class Situation:
    """Where to ask so that things go wrong: a proxy and the machine it runs on, a machine without proxy, a destination."""

    proxy: Proxy
    laptop: Machine
    walker: Machine
    host: str
    port: int


def assert_everywhere(situation: Situation, reason: Reason, speaker: Speaker, *, saying: str = "") -> None:
    """Ask on every interface at once; each must tell `reason`, and who said so."""
    host, port = situation.host, situation.port
    asks: dict[str, Callable[[], Verdict]] = {
        "http-connect": lambda: ask_http_connect(situation.proxy, host, port),
        "http": lambda: ask_http(situation.proxy, host, port),
        "nc through the proxy": lambda: ask_nc(situation.laptop, host, port),
        "nc by itself": lambda: ask_nc(situation.walker, host, port),
    }
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        codes = [pool.submit(code, situation.proxy, host, port) for code in (socks5_code, socks4_code)]
        futures = {name: pool.submit(ask) for name, ask in asks.items()}
        verdicts = {name: future.result() for name, future in futures.items()}
        assert [code.result() for code in codes] == [ANSWERS[reason].socks, 0x5B]
    assert {name: (verdict.reason, verdict.speaker) for name, verdict in verdicts.items()} == dict.fromkeys(asks, (reason, speaker))
    for name, verdict in verdicts.items():
        assert saying in verdict.said, (name, verdict.said)


def on(trio: Trio, host: str, port: int) -> Situation:
    return Situation(trio.proxy, trio.laptop, trio.walker, host, port)

"""A guest reaches what its grant opens and nothing else, however the target is spelled and whatever its name resolves to.

Everything here goes through the real proxy, relay and agent: docs/spec/policy.md section 4. The resolver is the test's own; names that
are numbers in disguise are left to the system's, because what it makes of them is the point.
"""

import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

import anyio
import pytest

from tests.world import PATIENCE, Running, World, connect, connect_through, echo, world
from tuunel import dial as dialling
from tuunel.address import HostPort
from tuunel.events import ConnectionOpened, Ready
from tuunel.proxy import Proxy
from tuunel.rawstream import RawStream

pytestmark = pytest.mark.anyio

METADATA = IPv4Address("169.254.169.254")
LOOPBACK = IPv4Address("127.0.0.1")
SOCKS5_OK, SOCKS5_NOT_ALLOWED, SOCKS4_REJECTED = 0x00, 0x02, 0x5B

#: Everything that is no guarded address by its own name: a pattern only ever adds, so what these refuse together each refuses alone.
GENERAL = ("*", "internet", "*.example", "name.example:80", "0.0.0.0/0", "::/0", "169.254.0.0/16", "127.0.0.0/8", "127.0.0.1:1-65535")

#: What an IPv4 address can be called, for the system's resolver or inside IPv6.
NUMBERS: tuple[Callable[[IPv4Address], str], ...] = (
    str,
    lambda address: str(int(address)),
    lambda address: hex(int(address)),
    lambda address: hex(int(address)).upper().replace("X", "x"),
    lambda address: f"0{int(address):o}",
    lambda address: ".".join(f"0{byte:o}" for byte in address.packed),
    lambda address: ".".join(f"000{byte:o}" for byte in address.packed),
    lambda address: ".".join(f"0x{byte:x}" for byte in address.packed),
    lambda address: f"{address.packed[0]}.{int(address) & 0xFFFFFF}",
    lambda address: f"0x{address.packed[0]:x}.{int(address) & 0xFFFFFF}",
    lambda address: f"{address.packed[0]}.{address.packed[1]}.{int(address) & 0xFFFF}",
    lambda address: f"{address}.",
)
CLOTHES: tuple[Callable[[IPv4Address], str], ...] = (
    lambda address: f"::ffff:{address}",
    lambda address: f"0:0:0:0:0:FFFF:{int(address) >> 16:X}:{int(address) & 0xFFFF:X}",
    lambda address: f"64:ff9b::{address}",
    lambda address: f"2002:{int(address) >> 16:x}:{int(address) & 0xFFFF:x}::1",
    lambda address: f"::{address}",
)


def spellings(address: IPv4Address) -> list[str]:
    return [spell(address) for spell in NUMBERS] + [f"[{spell(address)}]" for spell in CLOTHES]


GUARDED = (
    "169.254.169.254", "169.254.170.2", "169.254.1.1", "100.100.100.200", "168.63.129.16", "0.0.0.0", "0.0.0.1", "224.0.0.1",
    "255.255.255.255", "fe80::1", "fe80::a9fe:a9fe", "fd00:ec2::254", "fd20:ce::254", "ff02::1", "::", "64:ff9b:1::a9fe:a9fe",
    "::ffff:169.254.169.254", "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::", "::169.254.169.254", "::ffff:0.0.0.0",
)  # fmt: skip


@dataclass
class Resolver:
    """Answers for names under `.example`; `asked` is every lookup, `dialled` every address that a connection was tried to."""

    answers: dict[str, list[list[str]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    dialled: list[tuple[str, int]] = field(default_factory=list)

    def names(self, name: str, *answers: Sequence[str]) -> str:
        """`name` resolves to each of the answers in turn, and to the last one from then on."""
        self.answers[name] = [list(answer) for answer in answers]
        return name

    def look_up(self, host: str) -> list[str]:
        self.asked.append(host)
        answers = self.answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def dialled_at(self, port: int) -> list[str]:
        return [address for address, dialled in self.dialled if dialled == port]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    made = Resolver()
    system, connect_to = socket.getaddrinfo, dialling._connect

    def getaddrinfo(host: str, port: object, *rest: int, **options: int) -> list[tuple[object, ...]]:
        plain = host.lower().rstrip(".")
        if plain in made.answers:
            family = {4: socket.AF_INET, 6: socket.AF_INET6}
            found = [(family[ip_address(text).version], text) for text in made.look_up(plain)]
            return [(kind, socket.SOCK_STREAM, 6, "", (text, 0)) for kind, text in found]
        return list(system(host, port, *rest, **{**options, "flags": socket.AI_NUMERICHOST}))  # no test asks a name server

    async def connect_and_note(address: IPv4Address | IPv6Address, port: int) -> socket.socket:
        made.dialled.append((str(address), port))
        return await connect_to(address, port)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(dialling, "_connect", connect_and_note)
    return made


@dataclass
class Guest:
    """A paired machine's proxy, through which everything that is no .tuunel name goes to the agent too; `port` is of a target there."""

    world: World
    relay_port: int
    proxy: Running[Proxy]
    port: int
    beside: Running[Proxy] | None

    async def socks5(self, address: bytes, port: int) -> int:
        """What SOCKS5 replies to CONNECT with this address, its type first."""
        stream = await connect(self.proxy.role._addresses[0].port)
        await stream.send_all(b"\x05\x01\x00" + b"\x05\x01\x00" + address + struct.pack(">H", port))
        with anyio.fail_after(PATIENCE):
            reply = (await stream.receive_exactly(4))[3]
        stream.close()
        return reply

    async def answer(self, host: str, port: int | None = None) -> str:
        """What CONNECT is answered: "200", or the code of the failure."""
        try:
            stream = await connect_through(self.proxy, host, self.port if port is None else port)
        except ConnectionRefusedError as refused:
            return _code(str(refused))
        stream.close()
        return "200"


def _code(head: str) -> str:
    """The failure's code out of Proxy-Status."""
    words = head.replace('"', " ").replace(";", " ").replace(":", " ").split()
    return next((word for word in words if word.isupper() and "_" in word), head)


@asynccontextmanager
async def guest(*targets: str, beside: str = "") -> AsyncIterator[Guest]:
    """A guest with these targets; with `beside`, the agent's machine runs a proxy of its own that listens there."""
    async with world() as made:
        ready = await (await made.relay()).until(Ready)
        agent = await made.agent(ready.link)
        own = await made.proxy(agent.home, listen=HostPort(beside, 0)) if beside else None
        home, _ = await made.paired(agent, targets=list(targets))
        proxy = await made.proxy(home, other="via:home")
        port = await made.target(echo)
        assert ready.listen
        yield Guest(made, HostPort.parse(ready.listen).port, proxy, port, own)


async def carries(asked: Guest, host: str) -> None:
    """The control: this way in is open, so what is refused beside it is refused by the policy."""
    stream = await connect_through(asked.proxy, host, asked.port)
    await stream.send_all(b"hello")
    with anyio.fail_after(PATIENCE):
        assert await stream.receive_exactly(5) == b"hello"
    stream.close()


# metadata and link-local


async def test_no_spelling_of_the_metadata_service_is_dialled(resolver: Resolver) -> None:
    async with guest(*GENERAL) as asked:
        answers = {host: await asked.answer(host, 80) for host in spellings(METADATA)}
        assert set(answers.values()) == {"POLICY_DENIED"}, answers
        assert not resolver.dialled_at(80)


async def test_spelled_under_tuunel_it_is_no_name_or_denied(resolver: Resolver) -> None:
    async with guest("*", "internet") as asked:
        for spell in NUMBERS:
            host = spell(METADATA).rstrip(".")
            assert await asked.answer(f"{host}.home.tuunel", 80) == ("POLICY_DENIED" if host == str(METADATA) else "UNKNOWN_NAME")
        for text in ("0--ffff-a9fe-a9fe", "0064-ff9b--a9fe-a9fe", "2002-a9fe-a9fe--0", "0--a9fe-a9fe", "fe80--1", "fd00-ec2--254"):
            assert await asked.answer(f"{text}.ip6.home.tuunel", 80) == "POLICY_DENIED"
        assert not resolver.dialled_at(80)


async def test_a_name_that_resolves_to_a_guarded_address_opens_nothing(resolver: Resolver) -> None:
    async with guest(*(target for target in GENERAL if target != "169.254.0.0/16")) as asked:
        for address in GUARDED:
            resolver.names("name.example", [address])
            assert await asked.answer("name.example", 80) == "POLICY_DENIED", address
        for host in ("NAME.Example", "name.example.", "Name.Example.home.tuunel", "name.example.HOME.tuunel."):
            assert await asked.answer(host, 80) == "POLICY_DENIED", host
        assert set(resolver.asked) == {"name.example"}  # the agent's own resolver, and nobody else's, was asked
        assert not resolver.dialled_at(80)


async def test_a_zone_makes_no_address_another_one(resolver: Resolver) -> None:
    """HTTP's grammar has no zones; SOCKS takes any text for a name."""
    async with guest(*GENERAL, "*.lab") as asked:
        loopback = socket.if_nameindex()[0][1]
        for host in (f"fe80::1%{loopback}", "fe80::1%1", "fe80::a9fe:a9fe%lab", "fe80::1%25.lab", "::%1", "::ffff:169.254.169.254%1"):
            assert await asked.answer(f"[{host}]", 80) == "BAD_REQUEST"
            reply = await asked.socks5(b"\x03" + bytes([len(host)]) + host.encode(), 80)
            assert reply != SOCKS5_OK, host
        assert not resolver.dialled_at(80)


async def test_every_front_door_says_that_it_is_not_allowed(resolver: Resolver) -> None:
    async with guest("*", "internet") as asked:
        resolver.names("name.example", [str(METADATA)])
        mapped = IPv6Address(f"::ffff:{METADATA}")
        for address in (b"\x03\x0cname.example", b"\x03\x0a2852039166", b"\x01" + METADATA.packed, b"\x04" + mapped.packed):
            assert await asked.socks5(address, 80) == SOCKS5_NOT_ALLOWED, address
        socks4a = struct.pack(">BBH", 4, 1, 80) + b"\0\0\0\x01\0name.example\0"
        absolute = b"GET http://2852039166/latest/meta-data/ HTTP/1.1\r\nHost: 2852039166\r\n\r\n"
        for request, answer in ((socks4a, bytes([0, SOCKS4_REJECTED])), (absolute, b"HTTP/1.1 403 ")):
            stream = await connect(asked.proxy.role._addresses[0].port)
            await stream.send_all(request)
            with anyio.fail_after(PATIENCE):
                assert await stream.receive_exactly(len(answer)) == answer
            stream.close()
        assert not resolver.dialled_at(80)


# the same spellings, where they are allowed and where the grant is for something else


async def test_the_spellings_do_name_what_they_spell(resolver: Resolver) -> None:
    """The control for all above: without the guard these would have been dialled."""
    async with guest("127.0.0.0/8") as asked:
        for host in (*(spell(LOOPBACK) for spell in NUMBERS), "127.1", "0177.0.0.1", "[::ffff:7f00:1]", "[::ffff:127.0.0.1]"):
            await carries(asked, host)
        resolver.names("name.example", ["::ffff:127.0.0.1"])
        await carries(asked, "Name.EXAMPLE.")


async def test_no_spelling_of_this_machine_is_opened_by_a_grant_for_something_else(resolver: Resolver) -> None:
    async with guest("internet", "192.168.77.0/24", "*.example", "localhost.example", "*:1", "127.0.0.2") as asked:
        for host in ["127.1", "localhost", "LOCALHOST", *spellings(LOOPBACK), "[::1]", "[0:0::1]"]:
            resolver.names("localhost", ["127.0.0.1", "::1"])
            assert await asked.answer(host) == "POLICY_DENIED", host
        assert not resolver.dialled_at(asked.port)


async def test_an_address_in_the_clothes_of_another_is_none_that_a_narrow_grant_opens(resolver: Resolver) -> None:
    async with guest("198.51.100.0/24", "2001:db8::/32", "nas.lab", "*.lab") as asked:
        for spell in CLOTHES:
            for address in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "8.8.8.8"):
                assert await asked.answer(f"[{spell(IPv4Address(address))}]", 80) == "POLICY_DENIED"
        assert not resolver.dialled_at(80)


# rebinding


async def test_a_name_is_looked_up_once_and_what_was_checked_is_what_is_dialled(resolver: Resolver) -> None:
    async with guest("*") as asked:
        resolver.names("name.example", ["127.0.0.1"], [str(METADATA)])
        await carries(asked, "name.example")
        assert resolver.asked == ["name.example"]
        assert resolver.dialled_at(asked.port) == ["127.0.0.1"]


async def test_the_next_connection_is_checked_anew_also_on_a_tunnel_that_waits(resolver: Resolver) -> None:
    async with guest("*") as asked:
        for answers in (["127.0.0.1"], [str(METADATA)], ["127.0.0.1"], ["::ffff:169.254.169.254"], ["169.254.169.254", "fe80::1"]):
            resolver.names("name.example", answers)
            if answers == ["127.0.0.1"]:
                await carries(asked, "name.example")
            else:
                assert await asked.answer("name.example") == "POLICY_DENIED"
        assert resolver.dialled_at(asked.port) == ["127.0.0.1"] * 2


async def test_of_several_addresses_only_the_allowed_ones_are_dialled(resolver: Resolver) -> None:
    async with guest("*") as asked:
        resolver.names("name.example", [str(METADATA), "fe80::1", "::ffff:169.254.169.254", "8.8.8.8", "127.0.0.1", "0.0.0.0"])
        await carries(asked, "name.example")
        assert resolver.dialled_at(asked.port) == ["127.0.0.1"]


async def test_a_name_pattern_trusts_its_name_and_not_one_that_only_looks_like_it(resolver: Resolver) -> None:
    names = ("nas.example", "xnas.example", "nas.example.evil.example", "evil.example", "nas", "nas-example")
    async with guest("nas.example") as asked:
        for name in names:
            resolver.names(name, ["127.0.0.1"])
        for name in names[1:]:
            assert await asked.answer(name) == "POLICY_DENIED", name
        await carries(asked, "NAS.example.")


# tuunel itself

#: 127.0.0.1, and what the kernel takes for this machine.
THIS_MACHINE = ("2130706433", "0x7f.1", "0177.0.0.1", "127.1", *(f"[{spell(LOOPBACK)}]" for spell in CLOTHES), "0.0.0.0", "0", "[::]")


@pytest.mark.parametrize("listen", ["127.0.0.1", "localhost", "0.0.0.0", "::"])
async def test_no_spelling_lets_a_guest_into_the_proxy_of_its_host(listen: str, resolver: Resolver) -> None:
    async with guest(*GENERAL, beside=listen) as asked:
        assert asked.beside is not None
        port = asked.beside.role._addresses[0].port
        for name, addresses in (("localhost", ["127.0.0.1", "::1"]), ("me.example", ["127.0.0.1"]), ("six.example", ["::ffff:127.0.0.1"])):
            resolver.names(name, addresses)
        hosts = ["localhost", "LocalHost.", "me.example", "six.example", "home.tuunel", "127.0.0.1.home.tuunel", *THIS_MACHINE]
        if listen in {"0.0.0.0", "::"}:
            hosts += ["127.0.0.2", "127.9.9.9"]
        if listen in {"localhost", "::"}:
            hosts += ["[::1]", "0--1.ip6.home.tuunel"]
        answers = {host: await asked.answer(host, port) for host in hosts}
        if listen == "127.0.0.1":  # ::1 is then somebody else's, and free
            for host in ("localhost", "LocalHost.", "home.tuunel"):
                assert answers.pop(host) == "CONNECTION_REFUSED"
        assert set(answers.values()) == {"POLICY_DENIED"}, answers
        assert set(resolver.dialled_at(port)) <= ({"::1"} if listen == "127.0.0.1" else set())
        assert not asked.beside.seen(ConnectionOpened)


async def test_no_spelling_lets_a_guest_reach_the_relay(resolver: Resolver) -> None:
    async with guest(*GENERAL) as asked:
        resolver.names("me.example", ["127.0.0.1"])
        hosts = ["me.example", "127.0.0.1.home.tuunel", *THIS_MACHINE]
        answers = {host: await asked.answer(host, asked.relay_port) for host in hosts}
        assert set(answers.values()) == {"POLICY_DENIED"}, answers


async def test_only_a_grant_that_names_address_and_port_opens_them(resolver: Resolver) -> None:
    async with world() as made:
        ready = await (await made.relay()).until(Ready)
        agent = await made.agent(ready.link)
        own = await made.proxy(agent.home)
        port = own.role._addresses[0].port
        home, _ = await made.paired(agent, targets=[f"127.0.0.1:{port}"])
        proxy = await made.proxy(home, other="via:home")
        stream = await connect_through(proxy, "127.1", port)
        await ask_for_pac(stream)
        stream.close()


async def ask_for_pac(stream: RawStream) -> None:
    await stream.send_all(b"GET /proxy.pac HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with anyio.fail_after(PATIENCE):
        assert (await stream.receive_exactly(12)).startswith(b"HTTP/1.1 ")

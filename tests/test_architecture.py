"""The shape of the code, enforced: six ranks, imports that flow one way, and cores that touch neither network nor clock.

Source: docs/explanation/architecture.md.
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tuunel"
MAX_LINES = 400  # a file that is longer holds more than one thing

# A module imports only from ranks before its own, or from modules listed before it in its own rank.
RANKS: dict[str, tuple[str, ...]] = {
    "words": ("errors", "address", "events"),
    "decisions": (
        "hkdf",
        "statefile",
        "mlkem",
        "identity",
        "verification",
        "links",
        "settings",
        "policy",
        "grants",
        "devices",
        "routing",
        "forwarding",
        "backoff",
    ),
    "protocols": (
        "proxystatus",
        "frontdoor",
        "earlybytes",
        "socks.wire",
        "socks.protocol",
        "socks.udp",
        "pac",
        "httpheaders",
        "httpproxy",
        "hostguard",
        "relay.gate",
        "relay.bucket",
        "relay.limits",
        "relay.limiter",
        "relay.waiting",
        "relay.fields",
        "relay.framing",
        "relay.wire",
        "relay.protocol",
        "relay.handshake_wire",
        "relay.keyschedule",
        "relay.certificates",
        "relay.handshake",
        "relay.registry",
        "e2e.params",
        "e2e.wire",
        "e2e.service",
        "e2e.outbox",
        "e2e.flows",
        "e2e.keyschedule",
        "e2e.records",
        "e2e.offer",
        "e2e.handshake",
    ),
    "plumbing": (
        "buffers",
        "delays",
        "companions",
        "rawsocket",
        "rawstream",
        "ackwatch",
        "peeruser",
        "userguard",
        "descriptors",
        "memory",
        "firstwords",
        "interfaces",
        "networkwatch",
        "listen",
        "datagrams",
        "dial",
        "targetflow",
        "pump",
        "control",
        "ledger",
        "oversight",
        "listeners",
        "supervisor",
        "exposition",
        "direct",
        "shelf",
        "refill",
        "relay.pace",
        "relay.splice",
        "relay.store",
        "relay.client",
        "relay.dialpool",
        "relay.readypool",
        "relay.presence",
        "relay.credentials",
        "relay.connection",
        "relay.switchboard",
        "relay.attendance",
        "relay.tunnels",
        "relay.admin",
        "relay.reception",
        "recordwriter",
        "recordstream",
        "tunnel",
        "establish",
        "liveness",
        "pool",
        "flowwriter",
        "deviceflows",
        "inflow",
        "services",
        "reverseflows",
        "reverse",
        "outbound",
        "udpdoor",
        "association",
        "reach",
        "httpexchange",
        "guardedstream",
        "udpforward",
        "probe.way",
    ),
    "roles": (
        "doors",
        "relay.server",
        "agent",
        "proxy",
        "forward",
        "pairing",
        "netcat",
        "netcat_udp",
        "netcat_alone",
        "probe.ping",
        "probe.why",
        "probe.bench",
        "probe.verify",
    ),
    "edge": (
        "keys",
        "rows",
        "view",
        "painter",
        "journal",
        "display",
        "follow",
        "metrics",
        "unitfile",
        "config",
        "configfile",
        "finding",
        "checkmachine",
        "checkstate",
        "checkroles",
        "checkrelay",
        "demo",
        "cli.*",
        "__main__",
    ),
}

NETWORK_AND_CLOCK = (
    "anyio",
    "asyncio",
    "trio",
    "socket",
    "ssl",
    "select",
    "selectors",
    "time",
    "threading",
    "subprocess",
    "multiprocessing",
)
CHANCE = ("os", "random", "secrets")

# (modules, what they may not import, why)
FORBIDDEN: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (
        (*RANKS["protocols"], "hkdf", "policy", "links", "routing", "backoff"),
        (*NETWORK_AND_CLOCK, *CHANCE),
        "a core takes bytes and gives events; its clock and its randomness are parameters, so that a test can own them",
    ),
    (
        (*RANKS["words"], *RANKS["decisions"]),
        NETWORK_AND_CLOCK,
        "a decision depends on what it is told, not on when or where it is made",
    ),
    (
        ("relay.*",),
        ("tuunel.e2e", "tuunel.tunnel", "tuunel.establish", "tuunel.pool"),
        "the relay is blind by construction: offers and end-to-end records are opaque bytes to it",
    ),
)

# (what, the only modules that may import it, why)
RESERVED: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("typer", ("cli.*",), "the roles must run without a command line"),
    ("rich", ("display",), "only one module draws; all others emit events"),
    ("h11", ("httpproxy", "httpheaders", "httpexchange", "hostguard", "exposition"), "five modules know HTTP's grammar"),
    ("prometheus_client", ("metrics",), "one module makes metrics of facts; all others emit events and count"),
    ("sqlite3", ("relay.store",), "one module knows how the relay keeps its devices"),
)

ROLES_MAY_USE = {
    "proxy": {"doors"},
    "netcat_alone": {"netcat", "netcat_udp"},
    "netcat_udp": {"netcat"},
    "netcat": {"netcat_alone"},  # imported when needed: one command in three files, because the first must start fast
}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module under tuunel/ by its dotted name without the package's; packages' __init__ under the package's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports(name: str) -> Iterator[tuple[str, int]]:
    """The full dotted name and line of everything that the module imports, wherever in the file the import stands."""
    known = modules()
    for node in ast.walk(known[name]):
        if isinstance(node, ast.Import):
            yield from ((each.name, node.lineno) for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module
            for each in node.names:
                inner = f"{node.module}.{each.name}"
                yield (inner if inner.removeprefix("tuunel.") in known else node.module), node.lineno


def own_imports(name: str) -> Iterator[tuple[str, int]]:
    """The modules of tuunel that the module imports, without the package's name."""
    for imported, line in imports(name):
        if imported.startswith("tuunel."):
            yield imported.removeprefix("tuunel."), line


def covers(pattern: str, name: str) -> bool:
    """Whether `pattern`, a module or `package.*`, means the module `name`."""
    return name == pattern or (pattern.endswith(".*") and name.startswith(pattern[:-1]))


def place(name: str) -> tuple[int, int] | None:
    """Rank and place in the rank of a module; None if the ranks do not hold it."""
    for number, members in enumerate(RANKS.values()):
        for position, member in enumerate(members):
            if covers(member, name):
                return number, position
    return None


NAMES = [name for name in modules() if name and name not in {"cli", "relay", "socks", "e2e", "probe"}]


def test_the_packages_themselves_hold_no_code() -> None:
    for name in ("", "cli", "relay", "socks", "e2e", "probe"):
        code = [node for node in modules()[name].body if not isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign)]
        assert not code, f"tuunel/{name}/__init__.py: a package's own file imports and defines nothing, so that importing a part is cheap"


@pytest.mark.parametrize("name", NAMES)
def test_every_module_has_a_rank(name: str) -> None:
    assert place(name), f"give {name} its place in RANKS"


def test_the_ranks_name_no_module_that_is_gone() -> None:
    gone = [member for members in RANKS.values() for member in members if not any(covers(member, name) for name in NAMES)]
    assert not gone


@pytest.mark.parametrize("name", NAMES)
def test_imports_flow_one_way(name: str) -> None:
    own = place(name)
    assert own
    for imported, line in own_imports(name):
        theirs = place(imported)
        if theirs is None or (covers("cli.*", name) and covers("cli.*", imported)):
            continue  # a package's own file; commands of one command line, among which only cycles are wrong
        if imported in ROLES_MAY_USE.get(name, set()):
            continue
        assert theirs < own, f"tuunel/{name.replace('.', '/')}.py:{line} imports {imported}, which is not before it"


@pytest.mark.parametrize("name", [name for name in NAMES if name in RANKS["roles"]])
def test_roles_do_not_import_each_other(name: str) -> None:
    others = {imported for imported, _ in own_imports(name)} & set(RANKS["roles"])
    assert others <= ROLES_MAY_USE.get(name, set())


def top_level_imports(name: str) -> set[str]:
    """The modules of tuunel that are imported as soon as `name` is: those that stand in no function and no TYPE_CHECKING block."""
    lines = {node.lineno for node in modules()[name].body if isinstance(node, ast.Import | ast.ImportFrom)}
    return {imported for imported, line in own_imports(name) if line in lines}


def test_there_is_no_cycle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join((*path[path.index(name) :], name))}"
        if name in done or name not in modules():
            return
        for imported in sorted(top_level_imports(name)):
            visit(imported, (*path, name))
        done.add(name)

    for name in NAMES:
        visit(name, ())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_forbidden_is_imported(name: str) -> None:
    for members, forbidden, reason in FORBIDDEN:
        if not any(covers(member, name) for member in members):
            continue
        for imported, line in imports(name):
            wrong = [each for each in forbidden if imported == each or imported.startswith(f"{each}.")]
            assert not wrong, f"tuunel/{name.replace('.', '/')}.py:{line} imports {imported}: {reason}"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_reserved_is_imported_by_its_owner_only(name: str) -> None:
    for what, owners, reason in RESERVED:
        if any(covers(owner, name) for owner in owners):
            continue
        wrong = [line for imported, line in imports(name) if imported == what or imported.startswith(f"{what}.")]
        assert not wrong, f"tuunel/{name.replace('.', '/')}.py:{wrong} imports {what}: {reason}"


@pytest.mark.parametrize("name", modules())
def test_imports_are_absolute(name: str) -> None:
    relative = [node.lineno for node in ast.walk(modules()[name]) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative, f"{name}: relative imports in lines {relative}"


@pytest.mark.parametrize("name", NAMES)
def test_no_module_has_a_name_of_the_standard_library(name: str) -> None:
    last = name.rpartition(".")[2]
    assert last == "__main__" or last not in sys.stdlib_module_names


SOURCES = [path for top in ("tuunel", "tests", "bench") for path in sorted((ROOT / top).rglob("*.py"))]
UNFINISHED = ("TO" + "DO", "FIX" + "ME", "X" * 3)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_finished(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [number for number, line in enumerate(lines, 1) if any(word in line for word in UNFINISHED)]


@pytest.mark.parametrize("name", NAMES)
def test_files_are_short(name: str) -> None:
    path = PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_LINES


def _public(node: ast.AST) -> bool:
    named = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    return named and not node.name.startswith("_")


@pytest.mark.parametrize("name", modules())
def test_public_names_have_docstrings(name: str) -> None:
    tree = modules()[name]
    assert ast.get_docstring(tree), f"{name} does not say what it is"
    for node in tree.body:
        if _public(node):
            assert ast.get_docstring(node), f"{name}.{node.name}"  # type: ignore[attr-defined,arg-type]

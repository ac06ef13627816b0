"""A secret is compared in a time that tells nothing of it: through hmac.compare_digest, and never by == or by a search."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tuunel

PACKAGE = Path(tuunel.__file__).parent
#: Last words of names that hold what only its owner may know, or what proves that somebody knows it.
SECRET_WORDS = frozenset({"mac", "proof", "proofs", "password", "secret", "token", "psk", "digest"})
PLACES = {
    "relay/handshake.py": 2,  # macS at the device, macP at the relay
    "grants.py": 1,  # the proof that an invite is known
    "frontdoor.py": 1,  # the proxy's password, and the user's name with it
}


def _name(node: ast.expr) -> str:
    match node:
        case ast.Call(func=function):
            return _name(function)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def _is_secret(node: ast.expr) -> bool:
    return _name(node).rpartition("_")[2] in SECRET_WORDS  # in capitals it is a length, or the number of a message


def secret_comparisons(source: str) -> Iterator[int]:
    """Lines in which something that is named as a secret is compared by its value."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and any(isinstance(each, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for each in node.ops):
            sides = [node.left, *node.comparators]
            if any(_is_secret(side) for side in sides) and not any(isinstance(side, ast.Constant) for side in sides):
                yield node.lineno


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_secret_is_compared_by_its_value(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    assert [f"{line}: {lines[line - 1].strip()}" for line in secret_comparisons(source)] == []


@pytest.mark.parametrize(("file", "times"), PLACES.items(), ids=list(PLACES))
def test_where_a_secret_is_checked_it_takes_the_same_time(file: str, times: int) -> None:
    assert (PACKAGE / file).read_text(encoding="utf-8").count("hmac.compare_digest(") == times


@pytest.mark.parametrize(
    "source", ["self._mac == proofs.mac", "schedule.mac('c fin') != given", "password in known", "hmac.digest(k, t, 's') == proof"]
)
def test_the_search_would_notice(source: str) -> None:
    assert list(secret_comparisons(source)) == [1]

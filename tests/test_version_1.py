"""Version 1 of the protocol is what its vectors say, for ever: builds of different age meet in it.

Other tests show that the product makes and reads the bytes in `tests/vectors/`, and what is said where no version fits. `version1/` there
is a copy that is never changed: vectors may be added beside those, and none may become another.
"""

import json
from pathlib import Path

import pytest

VECTORS = Path(__file__).parent / "vectors"


def differences(frozen: object, found: object, where: str = "") -> list[str]:
    """Where what was frozen is not found as it was."""
    if isinstance(frozen, dict) and isinstance(found, dict):
        return [each for key, value in frozen.items() for each in differences(value, found.get(key), f"{where}/{key}")]
    if isinstance(frozen, list) and isinstance(found, list) and frozen and isinstance(frozen[0], dict):
        return [each for number, value in enumerate(frozen) for each in differences(value, found[number], f"{where}/{number}")]
    return [] if frozen == found else [where]


@pytest.mark.parametrize("name", ["identity.json", "hop.json", "e2e.json"])
def test_no_frozen_vector_has_become_another(name: str) -> None:
    frozen, found = (json.loads(path.read_text(encoding="utf-8")) for path in (VECTORS / "version1" / name, VECTORS / name))
    assert not differences(frozen, found), "an older build would not understand this one: a change of the protocol needs a new version"

"""The verification digits: the same for two keys whoever asks, others for any other two, as docs/spec/names.md section 7 derives them."""

import json
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from tuunel.identity import DeviceID, IdentityKey
from tuunel.verification import verification

VECTORS = json.loads((Path(__file__).parent / "vectors" / "identity.json").read_text())["verification"]
ONE, OTHER, THIRD = (IdentityKey.from_private_value(value).device_id for value in (1, 2, 3))


def derived(a: bytes, b: bytes) -> str:
    """A second reading of the specification, over another implementation of scrypt."""
    key = Scrypt(salt=b"tuunel/1 verification\0", length=32, n=32768, r=8, p=1).derive(min(a, b) + max(a, b))
    return f"{int.from_bytes(key, 'big') % 10**40:040d}"


@pytest.mark.parametrize("case", VECTORS)
def test_the_frozen_digits(case: dict[str, str]) -> None:
    a, b = DeviceID.parse(case["a"]), DeviceID.parse(case["b"])
    assert verification(a, b) == case["digits"]
    assert verification(b, a) == case["digits"]
    assert derived(a.raw, b.raw) == case["digits"].replace(" ", "")


def test_any_other_key_gives_other_digits() -> None:
    digits = {verification(a, b) for a, b in ((ONE, OTHER), (OTHER, THIRD), (THIRD, ONE), (ONE, ONE))}
    assert len(digits) == 4
    assert all(re.fullmatch(r"[0-9]{5}( [0-9]{5}){7}", each) for each in digits)


def test_the_specification_quotes_the_vectors() -> None:
    page = (Path(__file__).parents[1] / "docs" / "spec" / "names.md").read_text()
    assert all(VECTORS[0][key] in page for key in ("a", "b", "digits"))

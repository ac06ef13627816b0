"""The digits that two people compare: the same on both machines exactly when both know the same two identity keys.

Source: docs/spec/names.md section 7.
"""

import hashlib
from typing import Final

from tuunel.identity import DeviceID

DIGITS: Final = 40
GROUP: Final = 5
LABEL: Final = b"tuunel/1 verification\x00"
WORK: Final = 1 << 15  #: scrypt's N; with its r = 8 a guess costs 32 MiB, and about a tenth of a second
BLOCK: Final = 8
BYTES: Final = 32


def verification(one: DeviceID, other: DeviceID) -> str:
    """Return the digits of two devices, in eight groups of five; the order of the two does not matter. Takes about 0.1 s."""
    first, second = sorted((one.raw, other.raw))
    derived = hashlib.scrypt(first + second, salt=LABEL, n=WORK, r=BLOCK, p=1, maxmem=2 * 128 * WORK * BLOCK, dklen=BYTES)
    digits = f"{int.from_bytes(derived) % 10**DIGITS:0{DIGITS}}"
    return " ".join(digits[at : at + GROUP] for at in range(0, DIGITS, GROUP))

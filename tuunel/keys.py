"""The keys of a terminal: bytes in, names of keys out, however the bytes are cut. No I/O.

A key is the character that it types, or one of the names in NAMED. Source: ECMA-48 section 5.4 (control sequences), xterm's key codes.
"""

import codecs
import re
from typing import Final

ESCAPE: Final = "\x1b"
NAMED: Final = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace"}
SEQUENCES: Final = {
    "A": "up", "B": "down", "H": "home", "F": "end",
    "1~": "home", "7~": "home", "4~": "end", "8~": "end", "5~": "pageup", "6~": "pagedown",
}  # fmt: skip
MAX_SEQUENCE: Final = 32  #: characters of a control sequence; no key has more, and what is longer is thrown away
_SEQUENCE: Final = re.compile(r"\x1b(?:\[([0-?]*)[ -/]*([@-~])|O([ -~]))")
_BEGUN: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|O)?")


class KeyDecoder:
    """Turns what a terminal sends into keys. Sequences that are no key of ours, and other control characters, are passed over."""

    def __init__(self) -> None:
        self._text = codecs.getincrementaldecoder("utf-8")("ignore")
        self._waiting = ""

    def receive_data(self, data: bytes) -> None:
        """Take what was read."""
        self._waiting += self._text.decode(data)

    def next_event(self) -> str | None:
        """The next key; None when more bytes are needed, or a pause: see `pause`."""
        while self._waiting:
            key, taken = self._read()
            if not taken:
                return None
            self._waiting = self._waiting[taken:]
            if key:
                return key
        return None

    @property
    def waits(self) -> bool:
        """Whether what was read may be the beginning of a key."""
        return bool(self._waiting)

    def pause(self) -> None:
        """Say that nothing has followed for a moment: an escape that still waits was the key itself, and a sequence will not be ended."""
        self._waiting = ESCAPE * 2 if self._waiting == ESCAPE else ""

    def _read(self) -> tuple[str, int]:
        """A key and the characters that it takes; "" for what is none; nothing taken when it may go on."""
        first = self._waiting[0]
        if first != ESCAPE:
            return NAMED.get(first) or (first if first.isprintable() else ""), 1
        if self._waiting.startswith(ESCAPE * 2):
            return "escape", 2
        sequence = _SEQUENCE.match(self._waiting)
        if sequence is not None:
            parameters, final, shifted = sequence.groups()
            code = shifted or (f"{parameters.partition(';')[0]}~" if final == "~" else final)
            return SEQUENCES.get(code, ""), sequence.end()
        begun = _BEGUN.fullmatch(self._waiting)
        if begun is None or len(self._waiting) > MAX_SEQUENCE:
            return "", 2  # a key with Alt, or no key at all
        return "", 0

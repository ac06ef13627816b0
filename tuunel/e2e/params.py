"""The parameters that INIT and ACCEPT carry: what one end says of itself. docs/spec/end-to-end.md section 7."""

from dataclasses import dataclass
from typing import Final

from tuunel.errors import RemoteProtocolError
from tuunel.relay.fields import Prefixed, Reader, Text

LABEL_CEILING: Final = 64  #: bytes; enough to recognise a machine by
PARAMS_CEILING: Final = 512  #: bytes; many times what version 1 sends
_VALUE_CEILING: Final = 255  # what one length byte can say


@dataclass(frozen=True, slots=True)
class Parameters:
    """What one end says of itself. `label` is untrusted text; `commands` are codes of CONNECT that an agent takes besides 1 to 3."""

    label: str = ""
    commands: frozenset[int] = frozenset()


class ParamsField:
    """A two-byte length, then parameters: type u8 || length u8 || value. Unknown types are skipped."""

    LABEL: Final = 1
    COMMANDS: Final = 2

    def encode(self, value: Parameters) -> bytes:
        """See `tuunel.relay.fields.Field`."""
        entries = bytes([self.LABEL]) + Text(LABEL_CEILING).encode(value.label)
        if value.commands:
            entries += bytes([self.COMMANDS]) + Prefixed(1, _VALUE_CEILING).encode(bytes(sorted(value.commands)))
        return Prefixed(2, PARAMS_CEILING).encode(entries)

    def read(self, reader: Reader) -> Parameters:
        """See `tuunel.relay.fields.Field`."""
        data = Prefixed(2, PARAMS_CEILING).read(reader)
        params, seen, label, commands = Reader(data), set[int](), "", b""
        while params.position < len(data):
            kind = params.integer(1)
            if kind in seen:
                raise RemoteProtocolError("a parameter is given twice")
            seen.add(kind)
            if kind == self.LABEL:
                label = Text(LABEL_CEILING).read(params)
            else:
                value = Prefixed(1, _VALUE_CEILING).read(params)
                commands = value if kind == self.COMMANDS else commands
        return Parameters(label, frozenset(commands))

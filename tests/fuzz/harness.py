"""What a harness is, and how an input is read as decisions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CORPUS: Final = Path(__file__).parent / "corpus"
MOST_PIECES: Final = 16  #: more of one input find nothing that these do not: another size, or length, cuts elsewhere

Run = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Harness:
    """A parser under attack. `run` returns for every input on which the invariant holds, and raises for any other."""

    name: str
    run: Run
    max_length: int  #: of an input; longer ones reach nothing new
    seeds: tuple[bytes, ...]  #: good and nearly good inputs, from which a fuzzer finds the way in
    words: tuple[bytes, ...]  #: that a fuzzer would be slow to guess
    memory: int  #: bytes that any input may make the parser hold at once, its answers and its events with it

    @property
    def invariant(self) -> str:
        """What must hold for any input."""
        return (self.run.__doc__ or "").partition("\n")[0]

    def kept(self) -> list[Path]:
        """The committed corpus: what earlier runs found worth keeping."""
        return sorted((CORPUS / self.name).glob("*"))


HARNESSES: Final[dict[str, Harness]] = {}


def harness(*, max_length: int, seeds: Sequence[bytes], words: Sequence[bytes] = (), memory: int = 4 * 1024 * 1024) -> Callable[[Run], Run]:
    """Enter a function of bytes into `HARNESSES` under its own name."""

    def enter(run: Run) -> Run:
        HARNESSES[run.__name__] = Harness(run.__name__, run, max_length, tuple(seeds), tuple(words), memory)
        return run

    return enter


class Choices:
    """Takes decisions off the front of an input. One that has ended decides 0, and gives no more bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, length: int) -> bytes:
        """At most `length` bytes."""
        taken = self._data[self._at : self._at + length]
        self._at += length
        return taken

    def byte(self) -> int:
        """A number below 256."""
        return self.number(1)

    def number(self, width: int) -> int:
        """A number of `width` bytes."""
        return int.from_bytes(self.take(width), "big")

    def rest(self) -> bytes:
        """What is left."""
        return self.take(len(self._data))


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """`data` in pieces of `size` bytes, or of more where there would be over `MOST_PIECES`; 0: in one piece."""
    size = max(size, -(-len(data) // MOST_PIECES)) if size else max(1, len(data))
    for start in range(0, len(data), size):
        yield data[start : start + size]


def record(plaintext: bytes) -> bytes:
    """A step of a harness that takes messages behind a length of two bytes."""
    return len(plaintext).to_bytes(2, "big") + plaintext

"""A few lines of ours in a file of somebody else's: between two marks, put in and taken out without touching a byte around them."""

import codecs
import os
import re
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tuunel.errors import StateError

PRIVATE_DIRECTORY: Final = 0o700
BEGIN: Final = "tuunel: begin"
END: Final = "tuunel: end"


@dataclass(frozen=True, slots=True)
class Block:
    """Our lines in the file at `path`: `comment` begins a comment there, `text` gives the lines (LF, each ended).

    They go to the top of the file, or `at_end`, whichever makes them count whatever else the file says.
    """

    path: Path
    comment: str
    text: Callable[[], str]
    at_end: bool = False

    def lines(self) -> str:
        """The text between its marks."""
        note = "written by 'tuunel setup --write'; 'tuunel setup --undo' takes it out"
        return f"{self.comment} {BEGIN} ({note})\n{self.text()}{self.comment} {END}\n"

    def put(self) -> bool:
        """Put the lines in, in place of those of an earlier time; False when they stand there already. StateError changes nothing."""
        before = read(self.path) or b""
        after = with_block(before, self)
        if after == before:
            return False
        replace(self.path, after)
        return True

    def take(self) -> bool:
        """Take the lines out; False when there are none. A file that then holds nothing is removed. StateError changes nothing."""
        before = read(self.path) or b""
        after = without_block(before, self)
        if after == before:
            return False
        if after or self.path.is_symlink():
            replace(self.path, after)
        else:
            remove(self.path)
        return True

    def found(self) -> list[str]:
        """The lines of ours that the file holds now, without their marks and ends; none when there are none."""
        content = read(self.path) or b""
        start, end = span(content, self)
        return content[start:end].decode(errors="replace").splitlines()[1:-1]


def with_block(before: bytes, block: Block) -> bytes:
    """The file's content with the block in it. Line ends are those of the file; nothing else of it changes."""
    rest = without_block(before, block)
    lines = block.lines().encode()
    if rest.partition(b"\n")[0].endswith(b"\r"):
        lines = lines.replace(b"\n", b"\r\n")
    if block.at_end:
        return rest + lines  # a last line without end stays so: our first mark is a comment behind it
    start = len(codecs.BOM_UTF8) if rest.startswith(codecs.BOM_UTF8) else 0
    return rest[:start] + lines + rest[start:]


def without_block(before: bytes, block: Block) -> bytes:
    """The file's content without the block. StateError when its marks are not one beginning and one end behind it."""
    start, end = span(before, block)
    return before[:start] + before[end:]


def span(content: bytes, block: Block) -> tuple[int, int]:
    """Where the block begins and ends in the content; (0, 0) when there is none. StateError as `without_block`."""
    comment = re.escape(block.comment.encode())
    begins, ends = (
        [found.span() for found in re.finditer(comment + b" " + mark.encode() + rb"\b[^\n]*(?:\n|\Z)", content)] for mark in (BEGIN, END)
    )
    if not begins and not ends:
        return 0, 0
    if len(begins) != 1 or len(ends) != 1 or ends[0][0] < begins[0][1]:
        raise StateError(
            f"the marks '{block.comment} {BEGIN}' and '{block.comment} {END}' in {block.path} are damaged, so nothing was changed",
            "mend the file by hand: take both marks and what tuunel wrote between them out, then try again",
        )
    return begins[0][0], ends[0][1]


def read(path: Path) -> bytes | None:
    """The file's bytes, None when there is none. StateError when it cannot be read or is no file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise StateError(f"{path} is not a regular file", "move it away")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}", "check its owner and modes") from error


def replace(path: Path, content: bytes) -> None:
    """Replace the file in one step, on disk when this returns: mode, owner and links to it stay; a new one is 0600.

    StateError, with everything as it was, when that cannot be done or the file may not be written.
    """
    real = path.resolve()  # a link to a file elsewhere stays a link
    fresh = ""
    try:
        real.parent.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        descriptor, fresh = tempfile.mkstemp(prefix=f".{real.name}.", dir=real.parent)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - opens a descriptor
            if real.exists():
                _take_after(real, descriptor)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        Path(fresh).replace(real)
        fresh = ""
    except OSError as error:
        raise StateError(f"{path} cannot be written: {error.strerror}", "check its owner and modes, and those of its directory") from error
    finally:
        if fresh:
            with suppress(OSError):
                Path(fresh).unlink()


def _take_after(old: Path, descriptor: int) -> None:
    if not os.access(old, os.W_OK):
        raise PermissionError(0, "it is read-only")  # replacing it would need a right on the directory only
    status = old.stat()
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))


def remove(path: Path) -> None:
    """Remove the file. StateError when that cannot be done."""
    try:
        path.unlink()
    except OSError as error:
        raise StateError(f"{path} cannot be removed: {error.strerror}", "check the owner and modes of its directory") from error

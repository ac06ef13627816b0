"""Lines of ours in files of others: in once, out without a trace, and never a byte of theirs changed."""

import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuunel.cli.ownblock import BEGIN, END, Block, with_block, without_block
from tuunel.errors import StateError

LINES = "first\nsecond\n"
AROUND = [
    b"",
    b"Host other\n    User me\n",
    b"no end of its last line",
    b"Host other\r\n    User me\r\n",
    b"\r\nends\r\nwithout",
    b"\xef\xbb\xbf[user]\n",
    b"\xff\xfe not UTF-8 \x00\n",
    b"\n\n\n",
]


def block(path: Path, *, at_end: bool = False, text: str = LINES, comment: str = "#") -> Block:
    return Block(path, comment, lambda: text, at_end)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config"


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("around", AROUND)
def test_what_is_put_in_is_taken_out_without_a_trace(path: Path, around: bytes, at_end: bool) -> None:
    path.write_bytes(around)
    ours = block(path, at_end=at_end)
    assert ours.put()
    once = path.read_bytes()
    assert b"second" in once
    assert not ours.put()
    assert path.read_bytes() == once
    assert ours.take()
    assert (path.read_bytes() if path.exists() else b"") == around
    assert not ours.take()


@given(around=st.binary(max_size=60), at_end=st.booleans())
def test_bytes_around_it_stay(around: bytes, at_end: bool) -> None:
    ours = block(Path("config"), at_end=at_end)
    assert without_block(with_block(around, ours), ours) == around


def test_the_marks_are_comments_and_the_ends_those_of_the_file(path: Path) -> None:
    path.write_bytes(b"a\r\nb\r\n")
    block(path, comment="//").put()
    lines = path.read_bytes().split(b"\r\n")
    assert lines[0].startswith(b"// " + BEGIN.encode())
    assert lines[1:3] == [b"first", b"second"]
    assert lines[3] == b"// " + END.encode()
    assert b"\n" not in b"".join(lines)


def test_it_stands_where_it_counts(path: Path) -> None:
    path.write_bytes(b"theirs\n")
    block(path).put()
    assert path.read_bytes().endswith(b"theirs\n")
    block(path).take()
    block(path, at_end=True).put()
    assert path.read_bytes().startswith(b"theirs\n")


def test_new_lines_replace_the_old_ones_also_where_somebody_wrote_above_them(path: Path) -> None:
    block(path, text="old\n").put()
    path.write_bytes(b"above\n" + path.read_bytes() + b"below\n")
    assert block(path).found() == ["old"]
    assert block(path).put()
    assert block(path).found() == ["first", "second"]
    assert path.read_bytes().startswith(b"# " + BEGIN.encode())
    block(path).take()
    assert path.read_bytes() == b"above\nbelow\n"


def test_lines_that_an_editor_has_rewritten_are_still_ours(path: Path) -> None:
    block(path, at_end=True).put()
    path.write_bytes(path.read_bytes().rstrip(b"\n").replace(b"\n", b"\r\n"))
    assert block(path).take()
    assert not path.exists()


@pytest.mark.parametrize(
    "damaged",
    [
        f"# {BEGIN}\nold\n",
        f"old\n# {END}\n",
        f"# {END}\nold\n# {BEGIN}\n",
        f"# {BEGIN}\n# {BEGIN}\n# {END}\n",
        f"# {BEGIN}\n# {END}\n# {BEGIN}\n# {END}\n",
        f"# {BEGIN}\n# {END}\n# {END}\n",
    ],
)
def test_damaged_marks_are_refused_and_nothing_is_lost(path: Path, damaged: str) -> None:
    path.write_text(damaged)
    for step in (block(path).put, block(path).take):
        with pytest.raises(StateError, match="damaged"):
            step()
    assert path.read_text() == damaged


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640])
def test_the_mode_stays(path: Path, mode: int) -> None:
    path.write_text("theirs\n")
    path.chmod(mode)
    block(path).put()
    assert stat.S_IMODE(path.stat().st_mode) == mode
    block(path).take()
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_is_private_and_goes_away_again(tmp_path: Path) -> None:
    ours = block(tmp_path / "fresh" / "config")
    ours.put()
    assert stat.S_IMODE(ours.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(ours.path.parent.stat().st_mode) == 0o700
    assert list(ours.path.parent.iterdir()) == [ours.path]
    ours.take()
    assert not ours.path.exists()


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles"
    real.write_text("")
    path.symlink_to(real)
    block(path).put()
    assert path.is_symlink()
    assert b"second" in real.read_bytes()
    block(path).take()
    assert path.is_symlink()
    assert real.read_bytes() == b""


def test_what_cannot_be_written_or_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "no-directory"  # not even root can write below a file
    file.write_text("")
    with pytest.raises(StateError):
        block(file / "config").put()
    with pytest.raises(StateError, match="not a regular file"):
        block(tmp_path).put()


def test_a_full_disk_leaves_the_file_as_it_was(path: Path) -> None:
    """Tried with a limit on the size of files, which stops a write in its middle as a full disk does."""
    path.write_text("theirs\n")
    done = subprocess.run([sys.executable, "-c", WITH_A_LIMIT, str(path)], capture_output=True, text=True, check=True, timeout=60)
    assert "cannot be written: File too large" in done.stdout
    assert path.read_text() == "theirs\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_read_only_file_is_left_alone() -> None:
    """Tried as a user for whom modes count: for root every file can be written."""
    with tempfile.TemporaryDirectory(prefix="tuublock", dir="/tmp") as name:
        path = Path(name) / "config"
        path.write_text("theirs\n")
        path.chmod(0o444)
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, str(path)], capture_output=True, text=True, check=True, timeout=60)
        assert "read-only" in done.stdout
        assert path.read_text() == "theirs\n"
        assert list(path.parent.iterdir()) == [path]


AS_NOBODY = """
import os, sys
from pathlib import Path
from tuunel.cli.ownblock import Block
from tuunel.errors import StateError
path = Path(sys.argv[1])
if os.geteuid() == 0:
    os.chown(path.parent, 65534, 65534)
    os.chown(path, 65534, 65534)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    Block(path, "#", lambda: "ours\\n").put()
except StateError as error:
    print(error)
"""

WITH_A_LIMIT = """
import resource, signal, sys
from pathlib import Path
from tuunel.cli.ownblock import Block
from tuunel.errors import StateError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    Block(Path(sys.argv[1]), "#", lambda: "ours\\n" * 2000).put()
except StateError as error:
    print(error)
"""

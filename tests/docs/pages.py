"""What the pages show: every command line, the machine that it is typed on, and the output that follows it.

A block is indented by four spaces. `vps$ `, `home$ `, `laptop$ ` and `alice$ ` are prompts; a bare `$ ` is the laptop's. A block without
a prompt holds command lines only. What stands in fences is a file or a layout, and holds none.
"""

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial" / "first-tunnel.md"
HOWTO = sorted((ROOT / "docs" / "howto").glob("*.md"))
PAGES = [README, TUTORIAL, *HOWTO]

_FENCED = re.compile(r"^(```+|~~~+).*?^\1", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"(?:^ {4}.*\n(?:[ \t]*\n(?= {4}))*)+", re.MULTILINE)
_PROMPT = re.compile(r"(?P<machine>vps|home|laptop|alice|)\$ +(?P<command>.*)")


@dataclass(frozen=True)
class Shown:
    """A command line as a page shows it, without comment; `output` is what the page says that it prints."""

    page: str
    machine: str
    command: str
    output: tuple[str, ...] = ()


def fenced(page: Path) -> list[str]:
    """The lines that stand in fences."""
    return [line for fence in _FENCED.finditer(page.read_text(encoding="utf-8")) for line in fence[0].splitlines()]


def shown(page: Path) -> list[Shown]:
    """The command lines of a page, in its order."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    name = str(page.relative_to(ROOT))
    return [each for block in _BLOCK.findall(text) for each in _commands(name, [line[4:] for line in block.splitlines() if line.strip()])]


def _commands(page: str, lines: list[str]) -> Iterator[Shown]:
    prompts = [_PROMPT.fullmatch(line) for line in lines]
    if not any(prompts):
        yield from (Shown(page, "laptop", without_comment(line)) for line in lines)
        return
    starts = [number for number, prompt in enumerate(prompts) if prompt]
    assert starts[0] == 0, f"{page}: output before any command: {lines[0]}"
    for start, end in itertools.pairwise([*starts, len(lines)]):
        prompt = prompts[start]
        assert prompt
        yield Shown(page, prompt["machine"] or "laptop", without_comment(prompt["command"]), tuple(lines[start + 1 : end]))


def without_comment(line: str) -> str:
    """A shell's line without the comment at its end, which stands behind two spaces."""
    return re.sub(r"\s{2,}#\s.*$", "", line).strip()


def words_of(line: str) -> list[str]:
    """The words of the first command of a shell's line."""
    shell = shlex.shlex(line, posix=True, punctuation_chars=True)
    shell.whitespace_split = True
    return list(itertools.takewhile(lambda word: not set(word) <= set("|&;<>"), shell))

"""What the Containerfile copies is there, and what it runs is what tuunel takes. The image itself is not built here."""

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.test_shown_commands import parsed

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "Containerfile").read_text().replace("\\\n", " ").splitlines()


def instructions(name: str) -> list[str]:
    return [line.removeprefix(f"{name} ") for line in LINES if line.startswith(f"{name} ")]


def test_what_is_copied_from_the_sources_is_there() -> None:
    copied = [path for line in instructions("COPY") if not line.startswith("--from") for path in line.split()[:-1]]
    assert copied
    assert not [path for path in copied if not (ROOT / path).exists()]


def test_all_that_the_build_reads_is_copied() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    read = {"pyproject.toml", *re.findall(r'^(?:readme|license-files) = \[?"([^"]+)"', project, re.MULTILINE)}
    read |= set(re.findall(r'^"([^"]+)" = "share/', project, re.MULTILINE)) | {"tuunel"}
    copied = {path for line in instructions("COPY") for path in line.split()[:-1]}
    assert read <= copied


def test_it_runs_as_a_user_without_rights_with_its_state_in_a_volume() -> None:
    (user,) = instructions("USER")
    assert int(user.partition(":")[0]) >= 1000
    assert instructions("VOLUME") == ["/data"]
    assert any("TUUNEL_HOME=/data" in line for line in instructions("ENV"))


@pytest.mark.parametrize("what", ["CMD", "HEALTHCHECK"])
def test_its_commands_are_such_that_tuunel_takes(what: str) -> None:
    if what == "CMD":
        words = re.findall(r'"([^"]+)"', instructions("CMD")[0])
    else:
        words = shlex.split(instructions("HEALTHCHECK")[0].partition("CMD tuunel ")[2].partition(" >")[0])
    assert words
    parsed(["tuunel", *words])

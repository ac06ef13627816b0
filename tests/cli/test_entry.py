"""`python -m tuunel`: nothing slow before it is needed, and a clear refusal without ML-KEM."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from cryptography.exceptions import UnsupportedAlgorithm

from tuunel import __main__ as entry
from tuunel.errors import StateError, UsageError

MLKEM = "cryptography.hazmat.primitives.asymmetric.mlkem"


def imported_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout.split())


def test_the_entry_imports_nothing_slow() -> None:
    loaded = imported_by("import tuunel.__main__")
    assert not loaded & {"typer", "rich", "anyio", "asyncio", "cryptography"}


def test_the_command_line_imports_no_role_and_no_screen() -> None:
    loaded = imported_by("import tuunel.cli.app")
    slow = {"rich", "anyio", "asyncio", "cryptography", "h11", "sqlite3"}
    assert not loaded & {*slow, "tuunel.agent", "tuunel.proxy", "tuunel.relay.server", "tuunel.netcat", "tuunel.demo"}


def test_nc_through_a_running_proxy_needs_the_standard_library_only() -> None:
    loaded = imported_by("import tuunel.netcat, tuunel.settings")
    assert not loaded & {"typer", "rich", "anyio", "asyncio", "cryptography", "h11"}


def test_nc_leaves_before_the_command_line_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def nc(arguments: list[str]) -> int:
        given.append(arguments)
        return 30

    fake = SimpleNamespace(main=nc, needs_tunnel=lambda _: False)
    monkeypatch.setitem(sys.modules, "tuunel.netcat", fake)
    monkeypatch.setattr("tuunel.netcat", fake, raising=False)
    monkeypatch.setattr("tuunel.cli.app.main", lambda _: pytest.fail("nc must not need the command line"))
    monkeypatch.setattr(sys, "argv", ["tuunel", "nc", "home.tuunel", "22"])
    assert entry.main() == 30
    assert given == [["home.tuunel", "22"]]


@pytest.mark.parametrize(("words", "checked"), [(["home", "22"], False), (["-u", "home", "53"], True), (["home", "unix:/x"], True)])
def test_ml_kem_is_looked_for_where_nc_opens_a_tunnel_although_a_proxy_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], checked: bool
) -> None:
    asked: list[bool] = []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "proxy.sock").touch()
    monkeypatch.setenv("TUUNEL_HOME", str(tmp_path))
    monkeypatch.setattr(entry, "require_ml_kem", lambda: asked.append(True))
    monkeypatch.setattr("tuunel.netcat.main", lambda _: 0)
    assert entry.run(["nc", *words]) == 0
    assert bool(asked) == checked


@pytest.mark.parametrize(("error", "code"), [(UsageError("no", "do"), 2), (KeyboardInterrupt(), 130)])
def test_errors_become_exit_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(entry, "run", fail)
    assert entry.main() == code


def test_a_cryptography_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MLKEM, None)
    with pytest.raises(StateError, match="ML-KEM") as raised:
        entry.run(["proxy"])
    assert "cryptography>=48" in raised.value.advice


def test_a_cryptography_that_is_built_without_ml_kem_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        @staticmethod
        def generate() -> None:
            raise UnsupportedAlgorithm("no ML-KEM")

    module = ModuleType(MLKEM)
    module.MLKEM768PrivateKey = Missing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MLKEM, module)
    with pytest.raises(StateError, match="built without"):
        entry.run(["agent"])


def test_a_cryptography_with_ml_kem_passes() -> None:
    entry.require_ml_kem()

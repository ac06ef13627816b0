"""How the programs of the peers are found, and what they print is read."""

from pathlib import Path

import pytest

from bench.peers import PeerMissing, find
from bench.systems.rathole import keys_in, version_in


def program(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "a-peer"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_peer_is_looked_for_in_its_own_folder_first_then_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, usual = program(tmp_path / "own"), program(tmp_path / "usual")
    monkeypatch.setenv("PATH", str(usual.parent))
    monkeypatch.setenv("BENCH_PEERS", str(own.parent))
    assert find("a-peer") == str(own)
    monkeypatch.delenv("BENCH_PEERS")
    assert find("a-peer") == str(usual)


def test_a_missing_peer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("BENCH_PEERS", raising=False)
    with pytest.raises(PeerMissing, match="a-peer"):
        find("a-peer")


def test_the_version_of_rathole_stands_among_other_lines() -> None:
    assert version_in("rathole \nBuild Timestamp:     2025-01-01T00:00:00Z\nBuild Version:       0.5.0\n") == "0.5.0"
    assert version_in("something else") == "unknown"


def test_the_keys_of_rathole_stand_below_their_titles() -> None:
    assert keys_in("Private Key:\nAAA=\n\nPublic Key:\nBBB=\n") == ("AAA=", "BBB=")

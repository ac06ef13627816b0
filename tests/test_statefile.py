"""State files are private, replaced whole or not at all, and changed by one process at a time."""

import json
import os
import stat
import threading

import pytest

from tuunel import statefile
from tuunel.errors import StateError, UsageError
from tuunel.statefile import StateFile, locked, read_json, read_private, write_json, write_private


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.json"


def test_what_was_written_is_read_and_is_private(path):
    write_private(path, b"one")
    write_private(path, b"two")
    assert read_private(path) == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_wide_umask_changes_nothing(path):
    old = os.umask(0)
    try:
        write_private(path, b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_missing_file_is_none(path):
    assert read_private(path) is None
    assert read_json(path, 1) is None


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(path, monkeypatch, step):
    write_private(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if step == "fsync" else type(path), step, full)
    with pytest.raises(StateError, match="No space left"):
        write_private(path, b"new")
    monkeypatch.undo()
    assert read_private(path) == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_data_and_directory_are_on_disk_before_it_returns(path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(stat.S_IFMT(os.fstat(descriptor).st_mode)), real(descriptor)))
    write_private(path, b"x")
    assert synced == [stat.S_IFREG, stat.S_IFDIR]


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602, 0o777])
def test_a_file_that_others_can_open_is_refused_with_the_remedy(path, mode):
    write_private(path, b"x")
    path.chmod(mode)
    with pytest.raises(StateError) as caught:
        read_private(path)
    assert caught.value.advice == f"chmod 600 '{path}'"


def test_a_file_of_somebody_else_is_refused(path, monkeypatch):
    write_private(path, b"x")
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    monkeypatch.setattr(statefile, "ROOT", -1)
    with pytest.raises(StateError, match="another user"):
        read_private(path)


def test_what_is_no_regular_file_is_refused_without_waiting(path):
    os.mkfifo(path, 0o600)
    with pytest.raises(StateError, match="not a regular file"):
        read_private(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StateError):
        read_private(path)


def test_the_ceiling_holds_for_reading_and_writing(path, monkeypatch):
    monkeypatch.setattr(statefile, "MAX_SIZE", 10)
    write_private(path, b"x" * 10)
    assert read_private(path) == b"x" * 10
    with pytest.raises(StateError):
        write_private(path, b"x" * 11)
    assert read_private(path) == b"x" * 10
    path.write_bytes(b"x" * 11)
    with pytest.raises(StateError, match="larger"):
        read_private(path)


# JSON


def test_json_keeps_its_version(path):
    write_json(path, 3, {"a": [1, None, "ä"]})
    assert read_json(path, 3) == {"a": [1, None, "ä"]}
    assert json.loads(path.read_text())["version"] == 3


@pytest.mark.parametrize("version", [2, 4, "3", None])
def test_another_version_is_told_and_kept(path, version):
    write_private(path, json.dumps({"version": version}).encode())
    with pytest.raises(StateError, match="format"):
        read_json(path, 3)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b"\0" * 100])
def test_a_damaged_file_is_told_with_its_name_and_the_remedy(path, content):
    write_private(path, content)
    with pytest.raises(StateError, match="damaged") as caught:
        read_json(path, 1)
    assert str(path) in str(caught.value)
    assert caught.value.advice
    assert path.read_bytes() == content


# one at a time


def test_a_lock_keeps_others_out_until_it_is_given_back(path):
    order = []

    def other() -> None:
        with locked(path):
            order.append("other")

    thread = threading.Thread(target=other)
    with locked(path):
        thread.start()
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "other"]


def test_a_lock_is_given_back_by_an_error(path):
    with pytest.raises(ZeroDivisionError), locked(path):
        raise ZeroDivisionError
    with locked(path):
        pass


def test_the_lock_file_is_private(path):
    with locked(path):
        assert [stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()] == [0o600]


# a file as a value


def counter(path) -> StateFile[int]:
    def decode(content: dict[str, object]) -> int:
        return int(str(content.get("count", 0)))

    return StateFile(path, 1, decode, lambda count: {"count": count})


def increment(count: int) -> tuple[int, int]:
    return count + 1, count


def test_a_change_is_seen_by_everybody(path):
    one, two = counter(path), counter(path)
    assert one.read() == 0
    for _ in range(20):  # the file may keep its size and come in the same tick of the clock
        before = two.change(increment)
        assert one.read() == two.read() == before + 1
    assert counter(path).read() == 20


def test_threads_lose_no_change(path):
    files = [counter(path) for _ in range(2)]
    threads = [threading.Thread(target=lambda file=file: [file.change(increment) for _ in range(20)]) for file in files for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert counter(path).read() == 80


def test_an_unchanged_file_is_read_once(path, monkeypatch):
    file = counter(path)
    file.change(increment)
    file.read()
    monkeypatch.setattr(statefile, "read_private", lambda _: pytest.fail("read again"))
    assert file.read() == 1


def test_an_unchanged_value_is_not_written(path):
    file = counter(path)
    assert file.change(lambda count: (count, "seen")) == "seen"
    assert not path.exists()


def test_a_step_that_fails_writes_nothing(path):
    file = counter(path)
    file.change(increment)

    def step(_: int) -> tuple[int, int]:
        raise UsageError("no", "do")

    with pytest.raises(UsageError):
        file.change(step)
    assert file.read() == 1


def test_a_file_that_was_removed_or_became_unsafe_is_noticed(path):
    file = counter(path)
    file.change(increment)
    assert file.read() == 1
    path.chmod(0o644)
    with pytest.raises(StateError):
        file.read()
    path.unlink()
    assert file.read() == 0


def test_content_that_cannot_be_meant_is_damage(path):
    write_json(path, 1, {"count": "many"})
    with pytest.raises(StateError, match="damaged"):
        counter(path).read()
    with pytest.raises(StateError, match="damaged"):
        counter(path).change(increment)


def test_the_directory_is_made_private_when_it_is_missing(tmp_path):
    file = counter(tmp_path / "new" / "state.json")
    file.change(increment)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700

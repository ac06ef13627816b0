"""Whom a front door on loopback lets in: its own user and root, and nobody who cannot be told."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.streams import tcp_pair
from tuunel import userguard as module
from tuunel.events import Event, Notice
from tuunel.rawstream import RawStream
from tuunel.userguard import UserGuard


@contextmanager
def client() -> Iterator[RawStream]:
    near, far = tcp_pair()
    with near:
        stream = RawStream(far)
        yield stream
        stream.close()


@pytest.mark.parametrize(("user", "admitted"), [(os.geteuid(), True), (0, True), (os.geteuid() + 1, False), (65534, False), (None, False)])
def test_only_this_user_and_root_are_let_in(monkeypatch: pytest.MonkeyPatch, user: int | None, admitted: bool) -> None:
    guard = UserGuard(lambda _: None)
    guard.works = True
    monkeypatch.setattr(module, "peer_user", lambda _: user)
    with client() as stream:
        assert guard.admits(stream) is admitted


def test_a_client_of_this_very_user_is_let_in_for_real() -> None:
    with client() as stream:
        assert UserGuard(lambda _: None).admits(stream)


def test_a_refusal_is_told_with_the_user_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    guard = UserGuard(events.append)
    guard.works = True
    monkeypatch.setattr(module, "peer_user", lambda _: 65534)
    with client() as stream:
        for _ in range(100):
            guard.admits(stream)
    (notice,) = events
    assert isinstance(notice, Notice)
    assert "user 65534" in notice.text
    monkeypatch.setattr(module, "NOTICE_INTERVAL", 0.0)
    with client() as stream:
        guard.admits(stream)
    assert len(events) == 2


def test_where_the_system_cannot_tell_everybody_is_let_in_and_the_guard_says_that_it_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "peer_user", lambda _: None)
    guard = UserGuard(lambda _: None)
    assert not guard.works
    with client() as stream:
        assert guard.admits(stream)

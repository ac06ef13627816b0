"""Calls after a while: in the order in which they were asked for, never early, and each once or not at all."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuunel.delays import Delay, delay_of

SECONDS = 0.5


class Clock:
    """What a delay needs of a loop, at a time that the test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.looks = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        self.timers.append((when, callback))

    def pass_by(self, seconds: float) -> None:
        """Let time pass, and what is due happen at its time."""
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            timer = min(due, key=lambda each: each[0])
            self.timers.remove(timer)
            self.now = max(self.now, timer[0])
            self.looks += 1
            timer[1]()
        self.now = end


def made() -> tuple[Clock, Delay]:
    clock = Clock()
    return clock, Delay(cast("asyncio.AbstractEventLoop", clock), SECONDS)


class Call:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.asked = clock.now
        self.came: list[float] = []

    def __call__(self) -> None:
        self.came.append(self._clock.now)


def test_a_call_comes_in_time_and_once() -> None:
    clock, delay = made()
    call = Call(clock)
    delay.call(call)
    clock.pass_by(SECONDS - 0.01)
    assert not call.came
    clock.pass_by(10)
    assert call.came == [100.0 + SECONDS]
    assert not clock.timers


def test_one_that_is_cancelled_never_comes() -> None:
    clock, delay = made()
    first, second = Call(clock), Call(clock)
    delay.call(first)
    delay.call(second)
    delay.cancel(first)
    delay.cancel(first)
    clock.pass_by(10)
    assert (first.came, len(second.came)) == ([], 1)


def test_a_thousand_that_come_and_go_cost_a_look_now_and_then() -> None:
    clock, delay = made()
    for _ in range(1000):
        call = Call(clock)
        delay.call(call)
        clock.pass_by(SECONDS / 100)
        delay.cancel(call)
        assert len(clock.timers) <= 1
    assert 0 < clock.looks <= 21


def test_a_call_may_ask_for_the_next() -> None:
    clock, delay = made()
    times: list[float] = []

    def again() -> None:
        times.append(clock.now)
        delay.call(again)

    delay.call(again)
    clock.pass_by(SECONDS * 3)
    assert times == [100.0 + SECONDS * number for number in (1, 2, 3)]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=30))
def test_whatever_comes_and_goes_each_comes_in_time_or_not_at_all(steps: list[tuple[float, bool]]) -> None:
    clock, delay = made()
    calls: list[Call] = []
    cancelled: list[Call] = []
    for seconds, cancels in steps:
        calls.append(Call(clock))
        delay.call(calls[-1])
        clock.pass_by(seconds)
        if cancels and not calls[-1].came:
            delay.cancel(calls[-1])
            cancelled.append(calls[-1])
    clock.pass_by(10)
    for call in calls:
        assert call.came == ([] if call in cancelled else [pytest.approx(call.asked + SECONDS)])
        assert all(came >= call.asked + SECONDS for came in call.came)


async def ask_twice() -> tuple[Any, Any]:
    loop = asyncio.get_running_loop()
    return delay_of(loop, SECONDS), delay_of(loop, SECONDS)


def test_each_loop_has_its_own() -> None:
    (first, again), (other, _) = asyncio.run(ask_twice()), asyncio.run(ask_twice())
    assert first is again
    assert first is not other

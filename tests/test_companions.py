"""Companions: tasks beside their owner, under one contract on every event loop, also where a task group stands behind it."""

from collections.abc import Callable
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest

from tests.world import until
from tuunel.companions import Companion, Companions, GroupedTasks, companions

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("make", [companions, GroupedTasks])]

Make = Callable[[], Companions]


class Worker:
    """Waits until it is cancelled, and notes how far it got."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    async def run(self) -> None:
        self.noted.append("begun")
        try:
            await anyio.sleep_forever()
        finally:
            self.noted.append("over")


async def test_all_are_waited_for(make: Make) -> None:
    noted: list[int] = []

    async def work(number: int) -> None:
        for _ in range(number):
            await anyio.lowlevel.checkpoint()
        noted.append(number)

    async with make() as beside:
        for number in (3, 1, 2):
            beside.start(work, number)
        assert not noted
    assert sorted(noted) == [1, 2, 3]


async def test_a_companion_may_start_another_while_all_are_waited_for(make: Make) -> None:
    noted: list[str] = []

    async def second() -> None:
        await anyio.lowlevel.checkpoint()
        noted.append("second")

    async def first(beside: Companions) -> None:
        await anyio.lowlevel.checkpoint()
        beside.start(second)

    async with make() as beside:
        beside.start(first, beside)
    assert noted == ["second"]


async def test_one_is_cancelled_and_the_others_go_on(make: Make) -> None:
    one, other = Worker(), Worker()
    async with make() as beside:
        member = beside.start(one.run)
        beside.start(other.run)
        await anyio.wait_all_tasks_blocked()
        member.cancel()
        await member.ended()
        assert one.noted == ["begun", "over"]
        assert other.noted == ["begun"]
        beside.cancel()
    assert other.noted == ["begun", "over"]


async def test_one_that_is_cancelled_before_it_began_begins_all_the_same(make: Make) -> None:
    """So that it looks after what it was given."""
    worker = Worker()
    async with make() as beside:
        member = beside.start(worker.run)
        member.cancel()
        await member.ended()
        assert worker.noted == ["begun", "over"]


async def test_the_end_of_one_that_has_ended_is_not_waited_for(make: Make) -> None:
    async with make() as beside:
        member = beside.start(anyio.lowlevel.checkpoint)
        await member.ended()
        await member.ended()
        member.cancel()


async def test_what_one_raises_interrupts_nobody_and_is_raised_at_the_end(make: Make) -> None:
    worker = Worker()
    reached = False

    async def fail() -> None:
        raise ConnectionResetError("first")

    with pytest.raises(ConnectionResetError, match="first"):
        async with make() as beside:
            beside.start(worker.run)
            await beside.start(fail).ended()
            await anyio.lowlevel.checkpoint()
            reached = True
            assert worker.noted == ["begun"]
            beside.cancel()
    assert reached


async def test_the_error_of_the_body_cancels_all_and_comes_out_alone(make: Make) -> None:
    worker = Worker()

    async def fail() -> None:
        raise ConnectionResetError

    with pytest.raises(ValueError, match="mine"):
        async with make() as beside:
            beside.start(worker.run)
            await beside.start(fail).ended()
            raise ValueError("mine")
    assert worker.noted == ["begun", "over"]


@pytest.mark.parametrize("where", ["in the body", "while all are waited for"])
async def test_a_cancelled_owner_cancels_all_and_waits_for_them(make: Make, where: str) -> None:
    worker = Worker()

    async def wind_up() -> None:
        try:
            await worker.run()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            worker.noted.append("wound up")

    async def own(scope: anyio.CancelScope) -> None:
        with scope:
            async with make() as beside:
                beside.start(wind_up)
                if where == "in the body":
                    await anyio.sleep_forever()

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(own, scope)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
    assert scope.cancelled_caught
    assert worker.noted == ["begun", "over", "wound up"]


async def test_one_that_is_to_start_later_does(make: Make) -> None:
    worker = Worker()
    async with make() as beside:
        member = beside.start_later(0.01, worker.run)
        await anyio.wait_all_tasks_blocked()
        assert not worker.noted
        await until(lambda: worker.noted)
        member.cancel()
        await member.ended()
    assert worker.noted == ["begun", "over"]


async def test_one_that_is_cancelled_before_its_time_never_begins(make: Make) -> None:
    worker, passed = Worker(), anyio.Event()

    async def pass_by() -> None:
        passed.set()

    async with make() as beside:
        member = beside.start_later(0.01, worker.run)
        member.cancel()
        member.cancel()
        await member.ended()
        beside.start_later(0.02, pass_by)
        await passed.wait()
    assert not worker.noted


@pytest.mark.parametrize("how", ["the end", "a cancel of all", "an error"])
async def test_one_that_is_left_alone_before_its_time_never_begins(make: Make, how: str) -> None:
    worker = Worker()
    with anyio.fail_after(5), suppress(ValueError):
        async with make() as beside:
            beside.start_later(60, worker.run)
            beside.start(anyio.lowlevel.checkpoint)
            await anyio.wait_all_tasks_blocked()
            if how == "a cancel of all":
                beside.cancel()
            elif how == "an error":
                raise ValueError
    assert not worker.noted


async def test_one_begins_while_others_are_waited_for_and_is_waited_for_too(make: Make) -> None:
    noted: list[str] = []
    begun = anyio.Event()

    async def later() -> None:
        begun.set()
        await anyio.wait_all_tasks_blocked()
        noted.append("later")

    async with make() as beside:
        beside.start(begun.wait)
        beside.start_later(0.01, later)
    assert noted == ["later"]


async def test_what_one_raises_that_was_started_later_is_raised_at_the_end(make: Make) -> None:
    begun = anyio.Event()

    async def fail() -> None:
        begun.set()
        raise ConnectionResetError("late")

    with pytest.raises(ConnectionResetError, match="late"):
        async with make() as beside:
            beside.start_later(0.01, fail)
            beside.start(begun.wait)


async def test_the_end_of_one_whose_owner_is_cancelled_before_its_time_is_told(make: Make) -> None:
    worker = Worker()
    member: Companion | None = None

    async def own(scope: anyio.CancelScope) -> None:
        nonlocal member
        with scope:
            async with make() as beside:
                member = beside.start_later(60, worker.run)
                await anyio.sleep_forever()

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(own, scope)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
    assert member is not None
    with anyio.fail_after(5):
        await member.ended()
    assert not worker.noted

"""What a connection has used goes when the connection ends: nothing of it waits for Python to look for garbage.

Only on asyncio: on trio tasks are those of a task group, whose own garbage is not ours.
"""

import asyncio
import gc
from collections.abc import Iterator
from functools import partial

import anyio
import pytest

from tests.streams import Ends, receive_all
from tuunel.buffers import BufferPool
from tuunel.companions import companions
from tuunel.events import Traffic
from tuunel.pump import Direction, PumpEnd, copy_both_ways
from tuunel.relay.splice import PipePool, splice_both_ways

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left(kind: type) -> int:
    return sum(type(each) is kind for each in gc.get_objects())


async def test_a_cancelled_companion_leaves_nothing() -> None:
    before = left(asyncio.CancelledError)
    for _ in range(5):
        async with companions() as beside:
            companion = beside.start(anyio.sleep_forever)
            await asyncio.sleep(0)
            companion.cancel()
            await companion.ended()
    assert left(asyncio.CancelledError) == before


@pytest.mark.parametrize("spliced", [False, True])
async def test_a_pump_leaves_nothing(*, spliced: bool) -> None:
    pipes = PipePool()
    pump = (
        partial(splice_both_ways, traffic=Traffic(), pipes=pipes)
        if spliced
        else partial(copy_both_ways, traffic=Traffic(), buffers=BufferPool())
    )
    before = left(Direction)
    async with Ends(pump) as ends:
        await ends.app.send_all(b"question")
        await ends.app.write_eof()
        assert await receive_all(ends.target) == b"question"
        await ends.target.write_eof()
        assert await receive_all(ends.app) == b""
    assert ends.ended is PumpEnd.DONE
    pipes.close()
    assert left(Direction) == before

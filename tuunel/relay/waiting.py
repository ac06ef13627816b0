"""The opens that wait for one agent: devices take turns, and none takes more places than it leaves to the others.

Pure bookkeeping over opaque handles, as in the registry. Source: docs/spec/relay.md, "Opening".
"""

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

C = TypeVar("C", bound=Hashable)

MAX_WAITING: Final = 1024  #: opens that may wait for one agent to bring another connection


class WaitingOpens(Generic[C]):
    """Openers, each with the device that it belongs to."""

    def __init__(self) -> None:
        self._source_of: dict[C, Hashable] = {}
        self._queues: dict[Hashable, deque[C]] = {}  # by device, in the order of their turns

    def add(self, opener: C, source: Hashable) -> bool:
        """Let an opener of `source` wait. False when as many of that device wait already as there are places left: nothing has changed."""
        queue = self._queues.get(source, deque())
        if len(queue) >= MAX_WAITING - len(self._source_of):
            return False
        queue.append(opener)
        self._queues[source] = queue
        self._source_of[opener] = source
        return True

    def next(self) -> C:
        """Take out the first opener of the device whose turn it is; what else that device waits for comes after all others' turns."""
        source = next(iter(self._queues))
        queue = self._queues.pop(source)
        opener = queue.popleft()
        if queue:
            self._queues[source] = queue
        del self._source_of[opener]
        return opener

    def remove(self, opener: C) -> None:
        """Take out an opener that waits: it gave up or was lost."""
        source = self._source_of.pop(opener)
        queue = self._queues[source]
        queue.remove(opener)
        if not queue:
            del self._queues[source]

    def __len__(self) -> int:
        return len(self._source_of)

    def __iter__(self) -> Iterator[C]:
        return iter(self._source_of)

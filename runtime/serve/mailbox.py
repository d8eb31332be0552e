"""From the engine's thread to the event loop: neither waits for the other."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """Made on the event loop, filled by any thread, emptied on the loop by one reader."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()
        self._lock = threading.Lock()
        self._items: deque[Item] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> None:
        with self._lock:
            self._items.append(item)
            first = len(self._items) == 1
        if first:
            try:
                self._loop.call_soon_threadsafe(self._filled.set)
            except RuntimeError:  # the loop has ended, and nobody reads any more
                return

    async def take(self) -> Sequence[Item]:
        """Everything that is there; waits for the first."""
        while True:
            with self._lock:
                items = list(self._items)
                self._items.clear()
                self._filled.clear()
            if items:
                return items
            await self._filled.wait()

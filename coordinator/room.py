"""How much may be under way at once: taken in turn, given back when it is through."""

from __future__ import annotations

import asyncio
from collections import deque


class Room:
    """Room for ``limit`` things, taken several at a time; first come, first served.

    What is larger than ``limit`` gets in once nothing else is.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, number: int) -> None:
        """Waits until there is room for ``number`` more."""
        if not self._queue and self._fits(number):
            self._taken += number
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append((number, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came at the same moment
                self._taken -= number
            self._call()
            raise

    def give(self, number: int) -> None:
        """Gives room back."""
        self._taken -= number
        self._call()

    def _fits(self, number: int) -> bool:
        return not self._taken or self._taken + number <= self._limit

    def _call(self) -> None:
        """Lets those in who are first and fit; skips who does not wait any more."""
        while self._queue and (self._queue[0][1].done() or self._fits(self._queue[0][0])):
            number, turn = self._queue.popleft()
            if not turn.done():
                self._taken += number
                turn.set_result(None)

"""Waiting that something else may end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")


class StopSignal(Protocol):
    """What is needed of an asyncio.Event."""

    def is_set(self) -> bool:
        """Whether it is time to stop."""

    async def wait(self) -> Any:
        """Until it is time to stop."""


async def unless_stopped(work: Coroutine[Any, Any, Result], stop: StopSignal) -> Result | None:
    """The result of ``work``, or None where ``stop`` came first; ``work`` is then cancelled."""
    async with background(stop.wait()) as stopped, background(work) as working:
        await asyncio.wait((stopped, working), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None


@contextlib.asynccontextmanager
async def background(work: Coroutine[Any, Any, Result]) -> AsyncIterator[asyncio.Task[Result]]:
    """Work as a task, which is over when the block is left."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

"""Waiting that something else may end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
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


async def in_thread(work: Callable[[], Result], limit: float) -> Result:
    """What ``work`` returns; TimeoutError past ``limit`` seconds.

    Not a thread of the loop's pool: the loop would wait at its end for one that hangs.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Sequence[Result], error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result[0])

    def run() -> None:
        result: list[Result] = []
        failure: Exception | None = None
        try:
            result.append(work())
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="nhop-blocking", daemon=True).start()
    done, _ = await asyncio.wait([future], timeout=limit)
    if not done:
        future.cancel()
        raise TimeoutError
    return future.result()

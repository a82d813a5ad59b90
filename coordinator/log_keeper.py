"""Copies the logs of failed tasks into the output directory before their agents forget them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from coordinator import events as ev
from coordinator.agent_link import AgentLink
from coordinator.domain import AttemptId, Objective
from coordinator.kept_logs import kept_log_name
from nhop_models.contract import TaskStatus


class LogKeeper:
    """The logs of one study, and who reads logs of it.

    ``hold`` keeps the end of an attempt on a host unacknowledged as long as a task runs.
    """

    def __init__(
        self,
        folder: Path,
        links: Mapping[str, AgentLink],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        hold: Callable[[AttemptId, str, asyncio.Task[None]], None],
    ) -> None:
        self._folder = folder
        self._links = links
        self._spawn = spawn
        self._hold = hold
        self._copies: dict[asyncio.Task[None], int] = {}
        self.readers: set[asyncio.Future[None]] = set()
        """One, which ends with the reading, for each reader of a log."""

    def keep(self, event: ev.TaskEnded) -> None:
        """Copies the log of a task that has failed, in the background."""
        copy = self._spawn(self._copy(event))
        self._hold(event.attempt, event.host, copy)
        self._copies[copy] = event.attempt.trial
        copy.add_done_callback(self._copies.pop)

    async def kept(self, trial: int | None = None, limit: float | None = None) -> None:
        """Returns once all copies so far, or those of a trial, are there, or after ``limit`` seconds."""
        copies = [task for task, number in self._copies.items() if trial in (None, number)]
        if copies:
            await asyncio.wait(copies, timeout=limit)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """For the time of the context somebody reads a log."""
        reader = asyncio.get_running_loop().create_future()
        self.readers.add(reader)
        try:
            yield
        finally:
            self.readers.discard(reader)
            reader.cancel()

    async def _copy(self, event: ev.TaskEnded) -> None:
        attempt, failure = event.attempt, event.result.failure
        data = await self._links[event.host].transfers.read_log(attempt, event.task)
        if data is None and failure is not None:
            data = f"{failure.message}\n{failure.detail}\n".encode()
        name = kept_log_name(attempt.trial, attempt.attempt, event.task)
        with suppress(OSError):  # a log is a help for people: its loss is no failure
            await asyncio.to_thread(write_log, self._folder / name, data or b"")


def has_failed(event: ev.TaskEnded, objective: Objective) -> bool:
    """Whether the user will want to see the log of a task: its trial has no loss, or it did not end well."""
    result = event.result
    if event.task.is_chief and result.status is TaskStatus.COMPLETED:
        loss = result.train_loss if objective is Objective.TRAIN_LOSS else result.val_loss
        return loss is None or not math.isfinite(loss)
    return result.status is TaskStatus.FAILED


def write_log(path: Path, data: bytes) -> None:
    """Writes it, and makes the folder; OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

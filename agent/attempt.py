"""An attempt as it lives in the agent: its machine, its files, its processes."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from agent.attempts import AttemptDirectory, Manifest
from agent.domain import AttemptId, AttemptState, TaskStarted
from agent.event_log import EventLog
from agent.events import Event
from agent.machine import AttemptMachine
from agent.spool import SpoolReader
from nhop_models.contract import TaskId


@dataclass(slots=True)
class Attempt:
    """An attempt and all that belongs to it in this process."""

    id: AttemptId
    machine: AttemptMachine
    directory: AttemptDirectory
    log: EventLog
    manifest: Manifest
    pids: dict[TaskId, int] = field(default_factory=dict)
    inbox: deque[Event] = field(default_factory=deque)
    busy: bool = False
    timer: asyncio.TimerHandle | None = None
    prepared_at: float = 0.0
    renewed_at: float = 0.0
    first_records: dict[TaskId, SpoolReader] = field(default_factory=dict)

    def renew_lease(self, seconds: float, now: float) -> None:
        """Lets the tasks run for ``seconds`` without a living agent; OSError where that cannot be written."""
        self.directory.renew_lease(seconds)
        self.renewed_at = now

    @property
    def active(self) -> bool:
        """Whether it holds slots, ports or processes."""
        return self.machine.state is not AttemptState.ENDED

    @property
    def started_pids(self) -> list[int]:
        """The pids of all its tasks so far, of those that are gone, too."""
        return [event.pid for _, event in self.log.events if isinstance(event, TaskStarted)]

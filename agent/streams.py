"""Events on their way to a coordinator: read from the files as fast as it takes them, in order.

Within an attempt a task's records come after its TaskStarted and before its TaskEnded, and
AttemptEnded comes last.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from agent.attempts import AttemptDirectory
from agent.domain import AttemptId, StreamEvent, TaskEnded, TaskStarted
from agent.event_log import SOURCE, EventLog
from agent.spool import SpoolReader
from nhop_models.contract import TaskId

logger = logging.getLogger(__name__)

BATCH_EVENTS = 500

BLOCKED_PAUSE = 0.5
"""Seconds until files are read again that could not be opened for now."""

_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
"""Lack of descriptors or memory; and a task may hold a lease (fcntl(2)) on what it writes."""

Positions = Mapping[tuple[AttemptId, str], int]
"""By attempt and source: number of the last event that the receiver has."""


class Streamed(Protocol):
    """What a subscription reads of an attempt."""

    @property
    def id(self) -> AttemptId:
        """The attempt."""

    @property
    def directory(self) -> AttemptDirectory:
        """Where its spools are."""

    @property
    def log(self) -> EventLog:
        """The agent's own events."""


@dataclass(slots=True)
class _Cursor:
    attempt: Streamed
    positions: Positions
    taken: int = 0  # own events that were passed, sent or skipped
    readers: dict[TaskId, SpoolReader] = field(default_factory=dict)
    blocked: bool = False

    def collect(self, limit: int) -> list[StreamEvent]:
        """What is there now, at most ``limit`` events; ``blocked`` afterwards: there may be more, later."""
        events: list[StreamEvent] = []
        progress = -1
        blocked, self.blocked = self.blocked, False
        try:
            while progress < len(events) < limit:
                progress = len(events)
                self._take_own(events, limit)
                for task in self.readers:
                    self._take_spool(task, events, limit)
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            if not blocked:
                logger.error("cannot read what tasks of %s say: %s", self.attempt.id, error.strerror)  # noqa: TRY400
            self.blocked = True
        return events

    def _take_own(self, events: list[StreamEvent], limit: int) -> None:
        skip = self.positions.get((self.attempt.id, SOURCE), 0)
        log = self.attempt.log
        while self.taken < len(log.events) and len(events) < limit:
            time, event = log.events[self.taken]
            number = log.numbers[self.taken]
            if isinstance(event, TaskStarted):
                known = self.positions.get((self.attempt.id, str(event.task)), 0)
                path = self.attempt.directory.spool_path(event.task)
                self.readers[event.task] = SpoolReader(path, known)
            elif isinstance(event, TaskEnded) and event.task in self.readers:
                if self._take_spool(event.task, events, limit):
                    continue  # first all that the task said itself
                self.readers.pop(event.task).check_end()
            self.taken += 1
            if number > skip:
                events.append(StreamEvent(self.attempt.id, SOURCE, number, time, event))

    def _take_spool(self, task: TaskId, events: list[StreamEvent], limit: int) -> bool:
        """Whether there was anything to take, or no room to take it."""
        if len(events) >= limit:
            return True
        records = self.readers[task].read(limit - len(events))
        for sequence, time, kind in records:
            events.append(StreamEvent(self.attempt.id, str(task), sequence, time, kind))
        return bool(records)


class Closed(enum.Enum):
    """Why the agent ended a stream."""

    REPLACED = "a newer subscription of this study has replaced this one"
    SHUTDOWN = "the agent shuts down"
    INVALID = "an acknowledgement was wrong"


class Subscription:
    """One coordinator's stream of one study's events."""

    def __init__(self, study_id: str, positions: Positions, attempts: Iterable[Streamed]) -> None:
        self.study_id = study_id
        self._positions = positions
        self._cursors: dict[AttemptId, _Cursor] = {}
        self._pending: dict[AttemptId, None] = {}  # attempts with something to read, in turn
        self._wake = asyncio.Event()
        self.emptied = asyncio.Event()  # set while all that there was has been taken
        self._closed: Closed | None = None
        for attempt in attempts:
            self.touch(attempt)

    @property
    def closed(self) -> Closed | None:
        """Why the agent ended the stream; None while it has not."""
        return self._closed

    def touch(self, attempt: Streamed) -> None:
        """There may be something new in an attempt."""
        if attempt.id not in self._cursors:
            self._cursors[attempt.id] = _Cursor(attempt, self._positions)
        self._pending[attempt.id] = None
        self.emptied.clear()
        self._wake.set()

    def _touch_again(self, attempt: Streamed) -> None:
        if attempt.id in self._cursors:
            self.touch(attempt)

    def forget(self, attempt: AttemptId) -> None:
        """The attempt is gone."""
        self._cursors.pop(attempt, None)
        self._pending.pop(attempt, None)

    def close(self, why: Closed) -> None:
        """Ends the stream; what was not handed out comes with the next subscription."""
        if self._closed is None:
            self._closed = why
        self._wake.set()

    async def next_batch(self) -> list[StreamEvent]:
        """Waits for events; an empty list ends the stream."""
        while self._closed is None:
            events: list[StreamEvent] = []
            while self._pending and len(events) < BATCH_EVENTS:
                attempt = next(iter(self._pending))
                del self._pending[attempt]
                cursor = self._cursors[attempt]
                events += cursor.collect(BATCH_EVENTS - len(events))
                if cursor.blocked:
                    asyncio.get_running_loop().call_later(BLOCKED_PAUSE, self._touch_again, cursor.attempt)
                if len(events) >= BATCH_EVENTS:
                    self._pending[attempt] = None  # there may be more, after the others
            if events:
                return events
            self._wake.clear()
            self.emptied.set()
            await self._wake.wait()
        return []

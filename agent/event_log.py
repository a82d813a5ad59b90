"""The agent's own events of an attempt, in a framed file of the attempt directory.

They are numbered from 1, and outlive the agent. A new agent goes on from the time of its start in
microseconds: where the power was lost the file may lack the last events, and a coordinator that has
them would take others with the same numbers for known. ``None`` losses, NaN and infinity are kept as
JSON writes them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from time import time_ns
from typing import Any

from agent.domain import AgentEvent, AttemptEnded, Failure, StopReason, TaskEnded, TaskResult, TaskStarted
from nhop_models.contract import FailureKind, SpoolError, TaskId, TaskStatus, frame, frames

logger = logging.getLogger(__name__)

SOURCE = "agent"
FILE_NAME = "agent.reports"


class EventLog:
    """Events in memory and, as soon as the disk takes them, in the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._events: list[tuple[float, AgentEvent]] = []
        self._numbers: list[int] = []
        self._next = 1
        self._unwritten: list[bytes] = []

    @classmethod
    def read(cls, path: Path) -> EventLog:
        """The log of an earlier agent; a damaged tail is cut off, and logged."""
        log = cls(path)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = b""
        end = 0
        try:
            for payload, behind in frames(data, path):
                number, time, event = _decode(payload)
                log._add(number, time, event)
                end = behind
        except (SpoolError, ValueError, TypeError, KeyError) as error:
            logger.warning("%s: %s; the %d events before it are used", path, error, len(log._events))
        if end < len(data):
            os.truncate(path, end)
        log._next = max(log._next, time_ns() // 1_000)
        return log

    @property
    def events(self) -> Sequence[tuple[float, AgentEvent]]:
        """Each with its time in seconds since the epoch."""
        return self._events

    @property
    def numbers(self) -> Sequence[int]:
        """The number of each event; they rise."""
        return self._numbers

    @property
    def ended(self) -> bool:
        """Whether the last event of the attempt is there."""
        return bool(self._events) and isinstance(self._events[-1][1], AttemptEnded)

    def append(self, time: float, event: AgentEvent) -> None:
        """Adds an event. Where the disk is full it is kept in memory, and written with the next one."""
        self._unwritten.append(frame(_encode(self._next, time, event)))
        self._add(self._next, time, event)
        data = b"".join(self._unwritten)
        descriptor = None
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, data) < len(data):
                os.ftruncate(descriptor, size)
                logger.error("%s: no room for an event; it is kept in memory", self._path)
            else:
                self._unwritten.clear()
        except OSError as error:
            logger.error("%s: %s; the event is kept in memory", self._path, error.strerror)  # noqa: TRY400
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _add(self, number: int, time: float, event: AgentEvent) -> None:
        self._events.append((time, event))
        self._numbers.append(number)
        self._next = number + 1


def _encode(number: int, time: float, event: AgentEvent) -> bytes:
    values: dict[str, Any]
    match event:
        case TaskStarted():
            values = {"task": str(event.task), "pid": event.pid, "start_ticks": event.start_ticks}
        case TaskEnded():
            result = dataclasses.asdict(event.result)
            result["status"] = event.result.status.value
            if event.result.failure is not None:
                result["failure"]["kind"] = event.result.failure.kind.value
            values = {"task": str(event.task), "result": result}
        case AttemptEnded():
            values = {"reason": event.reason.value}
    return json.dumps([type(event).__name__, number, time, values]).encode()


def _decode(payload: bytes) -> tuple[int, float, AgentEvent]:
    name, number, time, values = json.loads(payload)
    return int(number), float(time), _event(name, values)


def _event(name: str, values: dict[str, Any]) -> AgentEvent:
    if name == TaskStarted.__name__:
        return TaskStarted(TaskId.parse(values["task"]), values["pid"], values["start_ticks"])
    if name == AttemptEnded.__name__:
        return AttemptEnded(StopReason(values["reason"]))
    if name != TaskEnded.__name__:
        raise ValueError(f"unknown event {name!r}")
    result = values["result"]
    result["status"] = TaskStatus(result["status"])
    if result["failure"] is not None:
        kind = FailureKind(result["failure"].pop("kind"))
        result["failure"] = Failure(kind, **result["failure"])
    result["notes"] = tuple(result["notes"])
    return TaskEnded(TaskId.parse(values["task"]), TaskResult(**result))

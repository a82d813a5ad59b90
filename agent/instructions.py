"""What a machine wants done: its output. Named in the imperative."""

from __future__ import annotations

from dataclasses import dataclass

from agent.domain import AgentEvent, Rung
from nhop_models.contract import TaskId


@dataclass(frozen=True, slots=True)
class ForkTask:
    """Fork a task; answered by TaskForked, TaskForkFailed or TaskForkWithdrawn."""

    task: TaskId


@dataclass(frozen=True, slots=True)
class WithdrawFork:
    """Drop the request to fork a task, if that is still possible.

    ``force``: even where it has gone to the zygote, which does not answer and is ended for it.
    """

    task: TaskId
    force: bool = False


@dataclass(frozen=True, slots=True)
class SignalTask:
    """Send the signal of a rung of the ladder to a task."""

    task: TaskId
    rung: Rung


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    """Give slots and ports back."""


@dataclass(frozen=True, slots=True)
class RecordEvent:
    """Keep an event for the coordinator, and tell it."""

    event: AgentEvent


Instruction = ForkTask | WithdrawFork | SignalTask | ReleaseLease | RecordEvent

"""What can happen to an attempt: the input of its machine. Named in the past tense."""

from __future__ import annotations

from dataclasses import dataclass

from agent.domain import Exit, Failure, Limits, StopReason
from nhop_models.contract import Outcome, TaskId


@dataclass(frozen=True, slots=True)
class StartRequested:
    """The coordinator wants the prepared tasks to run."""

    limits: Limits


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The coordinator, or the agent itself, wants the attempt to end; ``at_once``: by SIGKILL."""

    reason: StopReason
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class CoordinatorSilent:
    """The coordinator has not been heard of for the attempt's limit, ``seconds``."""

    seconds: float


@dataclass(frozen=True, slots=True)
class TaskForked:
    """The zygote has forked a task."""

    task: TaskId
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class TaskForkFailed:
    """A task could not be forked."""

    task: TaskId
    failure: Failure


@dataclass(frozen=True, slots=True)
class TaskForkWithdrawn:
    """A task was not forked, because the attempt was stopped before its turn came."""

    task: TaskId


@dataclass(frozen=True, slots=True)
class TaskBecameReady:
    """A task has written its first record."""

    task: TaskId


@dataclass(frozen=True, slots=True)
class TaskExited:
    """A task and all that it left behind are gone and reaped.

    ``outcome`` is its own last word, if it wrote one; ``log_tail`` the last lines of its log.
    """

    task: TaskId
    exit: Exit
    outcome: Outcome | None
    log_tail: str


@dataclass(frozen=True, slots=True)
class AgentRestarted:
    """The attempt was found in the state directory by a new agent."""


@dataclass(frozen=True, slots=True)
class DeadlineReached:
    """The machine's deadline may have come."""


TaskEvent = TaskForked | TaskForkFailed | TaskForkWithdrawn | TaskBecameReady | TaskExited
Event = StartRequested | StopRequested | TaskEvent | AgentRestarted | CoordinatorSilent | DeadlineReached

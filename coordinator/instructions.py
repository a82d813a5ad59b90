"""What the machine wants done: its outputs, in the imperative."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.domain import AttemptId, Failure, Notice, Stage, StopReason, Study, TaskResult, Trial
from coordinator.events import Timer
from nhop_models.contract import TaskId


@dataclass(frozen=True, slots=True)
class PrepareAttempt:
    """Lease slots and, where ``ports``, a port for each of these tasks on this host.

    ``restores``: hosts of it are given files before it is started, which takes its time.
    """

    attempt: AttemptId
    host: str
    tasks: tuple[TaskId, ...]
    ports: bool
    restores: bool = False


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """Start the leased tasks; ``ps`` and ``workers`` are the addresses of the whole cluster.

    ``keep_model_below`` as for TrainingSpec. ``restore``: first give it the trial's checkpoint.
    """

    attempt: AttemptId
    host: str
    ps: tuple[str, ...]
    workers: tuple[str, ...]
    parameters: Mapping[str, Any]
    train_epoch: int
    seed: int
    keep_model_below: float | None = None
    restore: bool = False


@dataclass(frozen=True, slots=True)
class StopAttempt:
    """End what is left of the attempt on this host."""

    attempt: AttemptId
    host: str
    reason: StopReason


@dataclass(frozen=True, slots=True)
class CheckAttempt:
    """Find out whether the host's agent, restarted, still knows the attempt with this task."""

    attempt: AttemptId
    host: str
    task: TaskId


@dataclass(frozen=True, slots=True)
class FetchArtifacts:
    """Fetch these files of an attempt, with their bytes, before its agent may forget it."""

    attempt: AttemptId
    host: str
    artifacts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class FetchCheckpoint:
    """Fetch the newest checkpoint of an attempt, in the place of an older one; say CheckpointFetched."""

    attempt: AttemptId
    host: str
    step: int


@dataclass(frozen=True, slots=True)
class PublishModel:
    """Make the files that were fetched of this trial those of the best one; say ModelPublished."""

    trial: int


@dataclass(frozen=True, slots=True)
class DropArtifacts:
    """Remove what was fetched of this trial, and fetch no more of it."""

    trial: int


@dataclass(frozen=True, slots=True)
class ForgetHost:
    """Nothing of the study is left on this host, which has left."""

    host: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Say TimerFired at ``at`` on the machine's clock."""

    timer: Timer
    at: float


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """An attempt as the store keeps it; ``placement`` maps each host to its tasks."""

    attempt: AttemptId
    state: str
    placement: Mapping[str, tuple[TaskId, ...]]
    started_at: float
    ended_at: float | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """How a task ended, as the store keeps it."""

    attempt: AttemptId
    host: str
    task: TaskId
    result: TaskResult


@dataclass(frozen=True, slots=True)
class Save:
    """Make this durable before anything that follows from it is done, then show it."""

    item: Study | Stage | Trial | AttemptRecord | TaskRecord


@dataclass(frozen=True, slots=True)
class Tell:
    """Show this to the user."""

    notice: Notice


Command = PrepareAttempt | StartAttempt | StopAttempt | CheckAttempt
FileWork = FetchArtifacts | FetchCheckpoint | PublishModel | DropArtifacts
Instruction = Command | FileWork | ForgetHost | SetTimer | Save | Tell

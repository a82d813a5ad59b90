"""The words of a study as frozen values; the core knows nothing else.

Times are floats in seconds: ``now`` and deadlines on a monotonic clock that is passed in,
``*_at`` in seconds since the epoch.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coordinator.search.space import Space
from nhop_models.contract import FailureKind, TaskId, TaskStatus


class StudyState(enum.Enum):
    """Where a study stands."""

    RUNNING = "running"
    STOPPING = "stopping"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self in (StudyState.COMPLETED, StudyState.STOPPED, StudyState.FAILED)


class TrialState(enum.Enum):
    """Where a trial stands."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def ended(self) -> bool:
        """Whether the trial has reached its terminal state."""
        return self not in (TrialState.WAITING, TrialState.RUNNING)


class StopReason(enum.Enum):
    """Why an attempt is stopped; the names are those of the protocol."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    PRUNED = "PRUNED"
    STUDY_STOPPED = "STUDY_STOPPED"
    RELEASED = "RELEASED"
    SHUTDOWN = "SHUTDOWN"


class Objective(enum.Enum):
    """Which loss the search minimises."""

    VAL_LOSS = "val_loss"
    TRAIN_LOSS = "train_loss"


class PlacementRule(enum.Enum):
    """Over how many hosts the tasks of one trial go."""

    PACK = "pack"
    SPREAD = "spread"


@dataclass(frozen=True, slots=True, order=True)
class AttemptId:
    """One try at running one trial: ``trial`` and ``attempt`` count from 1.

    ``run_id`` stands for the study towards agents; empty: they know it as ``study_id``.
    """

    study_id: str
    trial: int
    attempt: int
    run_id: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.study_id}-t{self.trial}-a{self.attempt}"


@dataclass(frozen=True, slots=True, order=True)
class Checkpoint:
    """A checkpoint of a trial: of which attempt, at which global step; the newest is the largest."""

    attempt: int
    step: int


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong: the kind for programs, ``message`` and ``detail`` (log lines) for people.

    ``task`` is whose failure it was, None: no single task's; it is a hint, no part of the value.
    """

    kind: FailureKind
    message: str
    detail: str = ""
    task: TaskId | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Number of tasks of each trial; ``ps`` 0 means one process without a TensorFlow server.

    ``gpus_per_worker`` is a whole number, or a share of one GPU below 1.
    """

    ps: int
    workers: int
    gpus_per_worker: float = 0.0


@dataclass(frozen=True, slots=True)
class StageBudget:
    """``train_epoch`` global steps for each of ``opt_epoch`` trials."""

    train_epoch: int
    opt_epoch: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines of an attempt in seconds; ``run`` None: no limit."""

    start: float = 300.0
    stop_grace: float = 2.0
    terminate_grace: float = 2.0
    run: float | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """What of this machine goes along to the hosts: absolute paths, None: nothing.

    ``module`` is the top-level module that ``code`` must hold, ``runs`` are folders of results, which never
    go along.
    """

    code: Path | None = None
    data: Path | None = None
    module: str = ""
    runs: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Training:
    """What every trial of a study has in common; ``settings`` are the keys that a model reads.

    ``code`` and ``data`` are the digests of the bundles that its tasks use, empty: none.
    ``checkpoint_every`` is in global steps, None: never. ``keep_model``: the best trial's model is kept.
    """

    model: str
    settings: Mapping[str, Any]
    train_tolerance: float
    python_path: tuple[str, ...] = ()
    working_directory: str = ""
    sync_replicas: bool = False
    report_interval: float = 0.25
    sync_backup_workers: int = 0
    checkpoint_every: int | None = None
    keep_model: bool = False
    code: str = ""
    data: str = ""


@dataclass(frozen=True, slots=True)
class StudySpec:
    """A study as its configuration resolves to; ``time_budget`` in seconds.

    ``run_id`` is what agents call it, of one run alone; empty: as ``study_id``.
    """

    study_id: str
    seed: int
    stages: tuple[StageBudget, ...]
    space: Space
    cluster: Cluster
    training: Training
    objective: Objective = Objective.VAL_LOSS
    opt_tolerance: float = 0.0
    narrow_factor: float = 0.5
    placement: PlacementRule = PlacementRule.PACK
    parallel_trials: int | None = None
    max_attempts: int = 3
    time_budget: float | None = None
    limits: Limits = field(default_factory=Limits)
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How a task ended, as its agent says; ``artifacts`` are the files that it left, with their bytes."""

    status: TaskStatus
    failure: Failure | None = None
    step: int = 0
    train_loss: float | None = None
    val_loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    exit_code: int | None = None
    signal: int | None = None
    artifacts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """One streamed message of a task; ``step`` is global, ``at`` seconds since the epoch."""

    attempt: AttemptId
    task: TaskId
    sequence: int
    step: int
    train_loss: float
    val_loss: float | None
    metrics: Mapping[str, float]
    at: float


ReportRow = tuple[int, int, float, float | None, Mapping[str, float], float]
"""The fields of a Report from ``sequence`` on."""


@dataclass(frozen=True, slots=True)
class Reports:
    """Reports of one task, at least one, in the order of their numbers.

    Rows, since tens of thousands a second may come, of which few are looked at one by one.
    """

    attempt: AttemptId
    task: TaskId
    rows: Sequence[ReportRow]

    def __iter__(self) -> Iterator[Report]:
        return (Report(self.attempt, self.task, *row) for row in self.rows)

    @property
    def last(self) -> Report:
        """The newest one."""
        return Report(self.attempt, self.task, *self.rows[-1])


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial as others see it; ``seconds`` is its last attempt.

    Losses are None and ``metrics`` (the chief's, on held-out data) empty until it completed.
    """

    number: int
    stage: int
    state: TrialState
    parameters: Mapping[str, Any]
    loss: float | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    failure: Failure | None = None
    attempts: int = 0
    seconds: float | None = None
    hosts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage as others see it; ``number`` counts from 1, ``best`` is the best trial up to its end."""

    number: int
    budget: StageBudget
    space: Space
    best: Trial | None = None


@dataclass(frozen=True, slots=True)
class TrialCounts:
    """How many trials are in each state; ``total`` is what the stages ask for."""

    total: int = 0
    waiting: int = 0
    running: int = 0
    completed: int = 0
    pruned: int = 0
    failed: int = 0
    stopped: int = 0


@dataclass(frozen=True, slots=True)
class Study:
    """A study as others see it; ``stages`` holds those begun so far.

    ``model_trial`` is the trial whose model is in the output directory, None: there is none;
    ``model_problem`` says why files of the best trial, which left them, are not there.
    ``late_messages``: how many messages of attempts that were over or superseded were refused.
    """

    study_id: str
    state: StudyState
    stages: tuple[Stage, ...]
    number_of_stages: int
    counts: TrialCounts
    best: Trial | None = None
    reason: str = ""
    started_at: float = 0.0
    ended_at: float | None = None
    model_trial: int | None = None
    model_problem: str = ""
    late_messages: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the user should know at once; ``warning`` where something is amiss."""

    message: str
    warning: bool = False


Update = Study | Trial | Reports | Notice
"""What an observer of a study is told: the new state of the thing that changed."""

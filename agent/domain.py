"""The words of the agent as frozen values; the core knows nothing else.

Durations and deadlines are floats in seconds; deadlines are on a monotonic clock that is passed in.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from nhop_models.contract import FailureKind, TaskId, TaskStatus

STUDY_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_DIRECTORY_NAME = re.compile(rf"({STUDY_ID.pattern})-t([1-9][0-9]{{0,18}})-a([1-9][0-9]{{0,9}})")


@dataclass(frozen=True, slots=True, order=True)
class AttemptId:
    """One try at running one trial: ``trial`` and ``attempt`` count from 1."""

    study_id: str
    trial: int
    attempt: int

    @classmethod
    def parse(cls, text: str) -> AttemptId:
        """From the name of an attempt directory; ValueError for anything else."""
        match = _DIRECTORY_NAME.fullmatch(text)
        if match is None:
            raise ValueError(f"not an attempt: {text!r} (expected STUDY-tN-aN)")
        return cls(match[1], int(match[2]), int(match[3]))

    def same_trial(self, other: AttemptId) -> bool:
        """Whether both are tries at the same trial."""
        return (self.study_id, self.trial) == (other.study_id, other.trial)

    def __str__(self) -> str:
        return f"{self.study_id}-t{self.trial}-a{self.attempt}"


class StopReason(enum.Enum):
    """Why an attempt is stopped; the names are those of the protocol."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    PRUNED = "PRUNED"
    STUDY_STOPPED = "STUDY_STOPPED"
    RELEASED = "RELEASED"
    SHUTDOWN = "SHUTDOWN"


class AttemptState(enum.Enum):
    """Where an attempt stands on this host."""

    PREPARED = "prepared"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


class TaskState(enum.Enum):
    """Where a task stands."""

    LEASED = "leased"
    FORKING = "forking"
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"


class Rung(enum.IntEnum):
    """A step of the stop ladder, the last one taken."""

    NONE = 0
    STOP = 1
    TERMINATE = 2
    KILL = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines of an attempt in seconds; ``run`` and ``silence`` (of its coordinator) None: no limit."""

    start: float = 60.0
    stop_grace: float = 2.0
    terminate_grace: float = 2.0
    run: float | None = None
    silence: float | None = None

    def without_agent(self, orphan_limit: float) -> float:
        """Seconds that tasks run while no agent lives: then they are without their coordinator, too."""
        return orphan_limit if self.silence is None else min(orphan_limit, self.silence)


@dataclass(frozen=True, slots=True)
class TaskRequirement:
    """What a task needs: slots (1 for a worker, 0 for a parameter server), and perhaps a port.

    ``gpus`` is a whole number of GPUs, or a share of one below 1.
    """

    task: TaskId
    slots: int
    port: bool
    gpus: Fraction = Fraction(0)


@dataclass(frozen=True, slots=True)
class TaskLease:
    """What a task was given; ``port`` None where it needs none.

    ``gpus`` are UUIDs, ``share`` what it has of each of them.
    """

    task: TaskId
    slots: int
    port: int | None
    gpus: tuple[str, ...] = ()
    share: Fraction = Fraction(1)

    @property
    def requirement(self) -> TaskRequirement:
        """What this was given for."""
        return TaskRequirement(self.task, self.slots, self.port is not None, self.share * len(self.gpus))


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong: the kind for programs, ``message`` and ``detail`` (log lines) for people."""

    kind: FailureKind
    message: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended; both None where its parent died before it could say so."""

    exit_code: int | None = None
    signal: int | None = None

    @classmethod
    def from_wait_status(cls, status: int | None) -> Exit:
        """From waitpid's status; None: unknown."""
        if status is None:
            return cls()
        if status & 0x7F:
            return cls(signal=status & 0x7F)
        return cls(exit_code=(status >> 8) & 0xFF)


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How a task ended, fused from its own last word and its wait status; ``artifacts`` with their bytes."""

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
class TaskStarted:
    """For the coordinator: a task was forked. ``start_ticks`` and ``pid`` name the process for good."""

    task: TaskId
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """For the coordinator: a task is gone and reaped."""

    task: TaskId
    result: TaskResult


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """For the coordinator: nothing of the attempt is left on this host. The last event of an attempt."""

    reason: StopReason


AgentEvent = TaskStarted | TaskEnded | AttemptEnded
"""What the agent itself says in the event stream."""


@dataclass(frozen=True, slots=True)
class TaskReady:
    """For the coordinator, from a spool: a task is about to make its first step."""


@dataclass(frozen=True, slots=True)
class Report:
    """For the coordinator, from a spool: progress of a task at a global step."""

    step: int
    train_loss: float
    val_loss: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """For the coordinator, from a spool: CHECKPOINT_FILE is whole, as it was at a global step; in bytes."""

    step: int
    size: int


SpoolEvent = TaskReady | Report | CheckpointSaved
"""What tasks say in the event stream."""


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """A numbered event of a source ("agent" or a task's name); ``time`` in seconds since the epoch."""

    attempt: AttemptId
    source: str
    sequence: int
    time: float
    kind: AgentEvent | SpoolEvent

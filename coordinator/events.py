"""What can happen to a study: the inputs of the machine, in the past tense.

Every effect's outcome comes back as one of these, failures included. Reports are not
among them: they change no state and go from the agents to the store and the observers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.domain import AttemptId, Failure, StopReason, StudyState, TaskResult
from nhop_models.contract import TaskId


@dataclass(frozen=True, slots=True)
class StudyBegun:
    """The hosts are known, the study may place its first trials."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The user or a client wants the study to end; ``reason`` is shown."""

    reason: str


@dataclass(frozen=True, slots=True)
class StudyAborted:
    """The study ends now, in ``state``, whatever still runs: a defect, or a stop that took too long."""

    state: StudyState
    reason: str


@dataclass(frozen=True, slots=True)
class ShareChanged:
    """How many slots the study may use at once, of all hosts together; None: all that there are.

    ``crowded``: other studies wait for a slot, so that one given back is theirs first.
    """

    slots: int | None
    crowded: bool = False


@dataclass(frozen=True, slots=True)
class HostJoined:
    """A host may be used, with so many slots: a new one, one that left, or one whose slots have changed."""

    host: str
    slots: int


@dataclass(frozen=True, slots=True)
class HostLeft:
    """A host is not wanted any more: what runs there may end, nothing new is placed."""

    host: str


@dataclass(frozen=True, slots=True)
class HostLost:
    """A host has been out of reach for too long."""

    host: str
    reason: str


@dataclass(frozen=True, slots=True)
class HostFound:
    """A lost host answers again."""

    host: str


@dataclass(frozen=True, slots=True)
class HostAwaited:
    """A host is about to be given what the study needs; HostHeard or HostLost says when that is over."""

    host: str


@dataclass(frozen=True, slots=True)
class HostSilent:
    """A host does not answer, but not for long enough to count as lost."""

    host: str


@dataclass(frozen=True, slots=True)
class HostHeard:
    """A host that was silent answers again, before it was lost."""

    host: str


@dataclass(frozen=True, slots=True)
class HostRestarted:
    """The agent of a host was started again: with the attempts that it had, or without."""

    host: str


@dataclass(frozen=True, slots=True)
class SlotsReleased:
    """Another study has given back slots of this host."""

    host: str


@dataclass(frozen=True, slots=True)
class CheckpointFetched:
    """The checkpoint that an attempt saved at ``step`` is here; ``problem``: why it is not.

    Where newer ones were saved meanwhile only the newest is fetched, and told.
    """

    attempt: AttemptId
    step: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ModelPublished:
    """The model of the best trial is in its place; ``saved`` False: it has none, or ``problem``."""

    trial: int
    saved: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class AttemptEvent:
    """Something that happened to one attempt on one host."""

    attempt: AttemptId
    host: str


@dataclass(frozen=True, slots=True)
class PrepareSucceeded(AttemptEvent):
    """The host has leased; ``addresses`` holds ``host:port`` of the tasks that need a port."""

    addresses: Mapping[TaskId, str]


@dataclass(frozen=True, slots=True)
class PrepareRefused(AttemptEvent):
    """The host has no free slots or ports now: others use it too."""

    reason: str


@dataclass(frozen=True, slots=True)
class PrepareFailed(AttemptEvent):
    """The host could not lease for another reason."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class StartSucceeded(AttemptEvent):
    """The host starts its tasks."""


@dataclass(frozen=True, slots=True)
class StartFailed(AttemptEvent):
    """The host did not start its tasks, or it is not known whether it did."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class StopAnswered(AttemptEvent):
    """The host stops what is left; ``was_active``: something was left."""

    was_active: bool


@dataclass(frozen=True, slots=True)
class StopFailed(AttemptEvent):
    """The host could not be told to stop."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class AttemptChecked(AttemptEvent):
    """The host's agent was asked for the attempt; ``known`` False: it has no such attempt."""

    known: bool


@dataclass(frozen=True, slots=True)
class TaskStarted(AttemptEvent):
    """A task was forked."""

    task: TaskId


@dataclass(frozen=True, slots=True)
class TaskReady(AttemptEvent):
    """A task is about to make its first step."""

    task: TaskId


@dataclass(frozen=True, slots=True)
class CheckpointSaved(AttemptEvent):
    """The chief has saved a checkpoint, which its agent can give out now."""

    step: int


@dataclass(frozen=True, slots=True)
class TaskEnded(AttemptEvent):
    """A task is gone and reaped."""

    task: TaskId
    result: TaskResult


@dataclass(frozen=True, slots=True)
class AttemptEnded(AttemptEvent):
    """Nothing of the attempt is left on the host; its slots and ports are free."""

    reason: StopReason


# --- timers: what the machine asked to be told, and when --------------------------------------


@dataclass(frozen=True, slots=True)
class TimeBudgetTimer:
    """The study's time is used up."""


@dataclass(frozen=True, slots=True)
class BackOffTimer:
    """A host that refused may be asked again: its ``pause``-th time of being left alone is over."""

    host: str
    pause: int


@dataclass(frozen=True, slots=True)
class StopTimer:
    """An attempt should have ended on this host by now."""

    attempt: AttemptId
    host: str


@dataclass(frozen=True, slots=True)
class HostsGoneTimer:
    """No trial could have been placed for too long, the ``spell``-th time."""

    spell: int


@dataclass(frozen=True, slots=True)
class CrowdedOutTimer:
    """The hosts have had no room for the study for a while, the ``spell``-th time."""

    spell: int


Timer = TimeBudgetTimer | BackOffTimer | StopTimer | HostsGoneTimer | CrowdedOutTimer


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time of a timer has come."""

    timer: Timer


HostEvent = (
    HostJoined | HostLeft | HostLost | HostFound | HostAwaited | HostSilent | HostHeard | HostRestarted
)
FileEvent = CheckpointFetched | ModelPublished
StudyEvent = (
    StudyBegun
    | StopRequested
    | StudyAborted
    | ShareChanged
    | HostEvent
    | SlotsReleased
    | FileEvent
    | TimerFired
)
Event = StudyEvent | AttemptEvent

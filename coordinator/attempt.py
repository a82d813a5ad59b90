"""One try at running a trial, over all its hosts: its state, its group rules, its verdict."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from coordinator import events as ev
from coordinator.domain import AttemptId, Checkpoint, Failure, Limits, Objective, StopReason, TaskResult
from coordinator.instructions import (
    AttemptRecord,
    CheckAttempt,
    Instruction,
    Save,
    SetTimer,
    StopAttempt,
    TaskRecord,
)
from coordinator.placement import Placement
from coordinator.transitions import ATTEMPT, AttemptState, IllegalTransitionError, LateEventError
from nhop_models.contract import FailureKind, TaskId, TaskRole, TaskStatus

RETRIED = frozenset(
    {
        FailureKind.KILLED,
        FailureKind.CRASHED,
        FailureKind.START_TIMEOUT,
        FailureKind.PORT_TAKEN,
        FailureKind.PEER_LOST,
        FailureKind.HOST_LOST,
        FailureKind.RESOURCES,
        FailureKind.INTERNAL,
    }
)
"""Failures that a new attempt may not have; the others would only come again."""

SPARED = frozenset({FailureKind.KILLED, FailureKind.CRASHED, FailureKind.PEER_LOST})
"""Failures of a worker that is not the chief after which the rest goes on."""

STOP_SLACK = 10.0
"""Seconds beyond the stop ladder's own deadlines until a host that does not report the end counts as lost."""

CHIEF = TaskId(TaskRole.WORKER, 0)


class _Phase(enum.Enum):
    """Where an attempt stands on one host."""

    PREPARING = "preparing"
    PREPARED = "prepared"
    STARTED = "started"
    ENDED = "ended"
    LOST = "lost"


_OVER = (_Phase.ENDED, _Phase.LOST)


@dataclass(frozen=True, slots=True)
class Completed:
    """The chief trained to the end and has a finite objective."""

    loss: float
    train_loss: float | None
    val_loss: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed."""

    failure: Failure
    train_loss: float | None = None
    val_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """The attempt was ended with its study."""


@dataclass(frozen=True, slots=True)
class Refused:
    """No room, or no answer; nothing was started. ``leased``: a host may know the attempt."""

    leased: bool


Verdict = Completed | Failed | Stopped | Refused


class Attempt:
    """The live state of one attempt; ``handle`` is the only way in for events of hosts.

    ``restore`` is the checkpoint that its chief's host is given before it is started.
    """

    def __init__(self, identity: AttemptId, placement: Placement, limits: Limits, now: float) -> None:
        self.id = identity
        self.placement = placement
        self.state = AttemptState.PREPARING
        self.began = now
        self.addresses: dict[TaskId, str] = {}
        self.results: dict[TaskId, TaskResult] = {}
        self.notes: list[str] = []
        self.cause: Failure | None = None
        self.restore: Checkpoint | None = None
        self._limits = limits
        self._phases = dict.fromkeys(placement, _Phase.PREPARING)
        self._leased = False
        self._started: set[str] = set()
        self._refused = False
        self._stop_reason: StopReason | None = None

    @property
    def hosts(self) -> tuple[str, ...]:
        """All hosts of the attempt, the chief's first."""
        return tuple(self.placement)

    def host_of(self, task: TaskId) -> str | None:
        """Where a task is placed; None: the attempt has no such task."""
        return next((host for host, tasks in self.placement.items() if task in tasks), None)

    def is_over_on(self, host: str) -> bool:
        """Whether nothing more is expected of ``host``."""
        return self._phases[host] in _OVER

    @property
    def lost_hosts(self) -> tuple[str, ...]:
        """Hosts on which it is not known what is left of the attempt."""
        return tuple(host for host, phase in self._phases.items() if phase is _Phase.LOST)

    def record(self, started_at: float, ended_at: float | None = None) -> AttemptRecord:
        """The attempt as the store keeps it."""
        return AttemptRecord(self.id, self.state.value, self.placement, started_at, ended_at, self.cause)

    def check(self, event: ev.AttemptEvent) -> None:
        """Raises IllegalTransitionError where ``event`` must not happen now; changes nothing."""
        if self.state is AttemptState.ENDED:
            raise LateEventError(f"{event} came after the end of its attempt")
        if self._phases.get(event.host) in _OVER:  # an answer that the end has overtaken
            raise LateEventError(f"{event} came after the end of its attempt on {event.host}")
        if type(event) not in ATTEMPT[self.state]:
            raise IllegalTransitionError(
                f"{type(event).__name__} of {event.attempt} while {self.state.value}"
            )
        if event.host not in self._phases:
            raise IllegalTransitionError(f"{event.attempt} does not run on {event.host}")
        if isinstance(event, ev.TaskEnded) and event.task not in self.placement[event.host]:
            raise IllegalTransitionError(f"{event.task} of {event.attempt} does not run on {event.host}")

    def handle(self, event: ev.AttemptEvent, now: float) -> list[Instruction]:
        """Takes one event of a host; raises IllegalTransitionError, and then changes nothing."""
        self.check(event)
        allowed = ATTEMPT[self.state][type(event)]
        instructions = list(self._react(event, now))
        self._end_if_over()
        assert self.state in allowed, f"{event} led to {self.state}"
        return instructions

    def stop(self, reason: StopReason, now: float, cause: Failure | None = None) -> list[Instruction]:
        """Ends the attempt on all its hosts, and remembers the first reason and cause."""
        if self.state is AttemptState.ENDED:
            return []
        if cause is not None:
            self._blame(cause)
        instructions = list(self._stop(reason, now, self._phases))
        self._end_if_over()
        return instructions

    def lose(self, host: str, why: str, now: float) -> list[Instruction]:
        """Gives up waiting for ``host``: HOST_LOST, unless the verdict stands already."""
        if self.is_over_on(host) or self.state is AttemptState.ENDED:
            return []
        self._leased = self._leased or self._phases[host] is _Phase.PREPARING
        self._phases[host] = _Phase.LOST
        failure = Failure(FailureKind.HOST_LOST, f"host {host} is lost: {why}")
        return self.stop(StopReason.FAILED, now, failure)

    def check_on(self, host: str) -> list[Instruction]:
        """Asks a restarted agent whether it still knows the attempt, where it was to start it."""
        if self._phases[host] is not _Phase.STARTED:
            return []
        return [CheckAttempt(self.id, host, self.placement[host][0])]

    def verdict(self, objective: Objective) -> Verdict:
        """What the ended attempt means for its trial."""
        chief = self.results.get(CHIEF)
        train_loss = self._train_loss()
        if chief is not None and chief.status is TaskStatus.COMPLETED:
            loss = chief.val_loss if objective is Objective.VAL_LOSS else train_loss
            val_loss = chief.val_loss if _is_finite(chief.val_loss) else None
            if loss is None or not math.isfinite(loss):
                return Failed(_diverged(objective, loss), train_loss, val_loss)
            metrics = {name: value for name, value in chief.metrics.items() if math.isfinite(value)}
            return Completed(loss, train_loss, val_loss, metrics)
        if self._refused:
            return Refused(self._leased)
        if self.cause is not None:
            return Failed(self.cause, train_loss)
        if self._stop_reason is StopReason.STUDY_STOPPED:
            return Stopped()
        host = self.hosts[0]
        message = f"host {host} ended the attempt without a result of its chief: was the agent shut down?"
        return Failed(Failure(FailureKind.HOST_LOST, message))

    # --- reactions ----------------------------------------------------------------------------

    def _react(self, event: ev.AttemptEvent, now: float) -> Iterator[Instruction]:
        match event:
            case ev.PrepareSucceeded():
                self._leased = True
                self._phases[event.host] = _Phase.PREPARED
                self.addresses.update(event.addresses)
                if self.state is AttemptState.STOPPING:
                    yield from self._tell_to_stop(event.host, now)
                elif all(phase is _Phase.PREPARED for phase in self._phases.values()):
                    self.state = AttemptState.STARTING
                    self._phases = dict.fromkeys(self._phases, _Phase.STARTED)
            case ev.PrepareRefused():
                self._phases[event.host] = _Phase.ENDED
                self._refused = self._refused or self.cause is None
                yield from self._stop(StopReason.RELEASED, now, self._phases)
            case ev.PrepareFailed():
                self._phases[event.host] = _Phase.ENDED
                self._leased = True  # perhaps: the request may have arrived all the same
                if event.failure.kind in (FailureKind.HOST_LOST, FailureKind.RESOURCES):
                    self._refused = self._refused or self.cause is None  # nothing was tried
                else:
                    self._blame(event.failure)
                yield StopAttempt(self.id, event.host, StopReason.RELEASED)
                yield from self._stop(StopReason.RELEASED, now, self._phases)
            case ev.StartSucceeded():
                self._started.add(event.host)
                self._note_restore(event.host)
                if self.state is AttemptState.STARTING and self._started >= self._phases.keys():
                    self.state = AttemptState.RUNNING
            case ev.TaskStarted():
                self._note_restore(event.host)  # its host's answer may come after the end
            case ev.StartFailed():
                self._blame(event.failure)
                yield from self._stop(StopReason.FAILED, now, self._phases)
            case ev.TaskEnded():
                yield from self._task_ended(event, now)
            case ev.StopAnswered():
                # What was only leased is free again; what was started says so itself.
                if self._phases[event.host] is _Phase.PREPARED:
                    self._phases[event.host] = _Phase.ENDED
            case ev.AttemptEnded():
                if self.state is AttemptState.PREPARING:
                    self._leased = True
                    self._blame(Failure(FailureKind.HOST_LOST, f"host {event.host} took its lease back"))
                elif event.reason is StopReason.SHUTDOWN and self.cause is not None:
                    self._blame(Failure(FailureKind.HOST_LOST, f"the agent of host {event.host} was stopped"))
                self._phases[event.host] = _Phase.ENDED
                self._started.add(event.host)
                if self.state is AttemptState.PREPARING or event.host == self.hosts[0]:
                    yield from self._stop(StopReason.FAILED, now, self._phases)
            case ev.AttemptChecked(known=False):
                message = f"the agent of {event.host} was restarted and has lost the attempt"
                self._phases[event.host] = _Phase.ENDED
                self._blame(Failure(FailureKind.HOST_LOST, message))
                yield from self._stop(StopReason.FAILED, now, self._phases)
            case _:
                pass

    def _task_ended(self, event: ev.TaskEnded, now: float) -> Iterator[Instruction]:
        task, result = event.task, event.result
        self.results[task] = result
        for note in result.notes:
            self._note(note if task == CHIEF else f"{task}: {note}")
        yield Save(TaskRecord(self.id, event.host, task, result))
        if task == CHIEF and result.status is TaskStatus.COMPLETED:
            # The chief's own host has begun already.
            yield from self._stop(
                StopReason.FINISHED, now, (host for host in self._phases if host != event.host)
            )
            yield self._stop_timer(event.host, now)
            return
        asked = self.state is AttemptState.STOPPING
        failure = result.failure
        if task != CHIEF and task.role is TaskRole.WORKER:
            if failure is None:
                return
            if failure.kind in SPARED:
                if not asked:
                    self._note(f"{task} on {event.host} was lost ({failure.kind.value}: {failure.message})")
                return
        elif failure is None and not asked:
            # Nobody here asked it to: its agent did, for a reason that may still be on its way.
            failure = Failure(FailureKind.PEER_LOST, f"{task} on {event.host} was ended by someone else")
        if failure is not None:
            self._blame(replace(failure, task=task))
        if not asked:
            yield from self._stop(StopReason.FAILED, now, self._phases)

    def _note_restore(self, host: str) -> None:
        if self.restore is not None and host == self.hosts[0]:
            came_from = f"step {self.restore.step} of attempt {self.restore.attempt}"
            self._note(f"attempt {self.id.attempt} goes on from {came_from}")

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _blame(self, failure: Failure) -> None:
        """Keeps the earliest failure; that of a lost peer gives way to why the peer was lost."""
        if self._stop_reason in (StopReason.STUDY_STOPPED, StopReason.FINISHED):
            return
        if self.cause is None or (
            self.cause.kind is FailureKind.PEER_LOST and failure.kind is not FailureKind.PEER_LOST
        ):
            self.cause = failure

    def _stop(self, reason: StopReason, now: float, hosts: Iterable[str]) -> Iterator[Instruction]:
        if self._stop_reason is None:
            self._stop_reason = reason
        repeated = self.state is AttemptState.STOPPING
        self.state = AttemptState.STOPPING
        for host in hosts:
            if not repeated or reason is StopReason.STUDY_STOPPED:
                yield from self._tell_to_stop(host, now)

    def _tell_to_stop(self, host: str, now: float) -> Iterator[Instruction]:
        if self._phases[host] in (_Phase.PREPARED, _Phase.STARTED):
            assert self._stop_reason is not None
            yield StopAttempt(self.id, host, self._stop_reason)
            yield self._stop_timer(host, now)

    def _stop_timer(self, host: str, now: float) -> SetTimer:
        ladder = 2 * (self._limits.stop_grace + self._limits.terminate_grace)
        return SetTimer(ev.StopTimer(self.id, host), now + ladder + STOP_SLACK)

    def _end_if_over(self) -> None:
        if all(phase in _OVER for phase in self._phases.values()):
            self.state = AttemptState.ENDED

    def _train_loss(self) -> float | None:
        losses = [
            result.train_loss
            for task, result in self.results.items()
            if task.role is TaskRole.WORKER and _is_finite(result.train_loss)
        ]
        return min((loss for loss in losses if loss is not None), default=None)


def final_failure(failure: Failure, attempts: int) -> Failure:
    """The failure of a trial after its last attempt."""
    if attempts == 1:
        return failure
    return replace(failure, message=f"{failure.message} (attempt {attempts}, the last)")


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _diverged(objective: Objective, loss: float | None) -> Failure:
    what = "has no value" if loss is None else f"is {loss}"
    message = f"{objective.value} {what} at the end of the training"
    return Failure(FailureKind.DIVERGED, message, task=CHIEF)

"""Which state may follow which: the tables that the machine obeys."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from coordinator import events as ev
from coordinator.domain import StudyState, TrialState


class IllegalTransitionError(Exception):
    """An event that the state does not allow: a defect of whoever sent it. Nothing was changed."""


class LateEventError(IllegalTransitionError):
    """A message of an attempt that is over or superseded: refused, and harmless."""


class AttemptState(enum.Enum):
    """Where an attempt stands, over all its hosts."""

    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


_PREPARING, _STARTING, _RUNNING = AttemptState.PREPARING, AttemptState.STARTING, AttemptState.RUNNING
_STOPPING, _ENDED = AttemptState.STOPPING, AttemptState.ENDED

ATTEMPT: Mapping[AttemptState, Mapping[type[ev.AttemptEvent], frozenset[AttemptState]]] = {
    _PREPARING: {
        ev.PrepareSucceeded: frozenset({_PREPARING, _STARTING}),
        ev.PrepareRefused: frozenset({_STOPPING, _ENDED}),
        ev.PrepareFailed: frozenset({_STOPPING, _ENDED}),
        # An agent that shuts down takes its leases back.
        ev.AttemptEnded: frozenset({_STOPPING, _ENDED}),
    },
    # The event stream may overtake the answer of StartAttempt.
    _STARTING: {
        ev.StartSucceeded: frozenset({_STARTING, _RUNNING}),
        ev.StartFailed: frozenset({_STOPPING}),
        ev.TaskStarted: frozenset({_STARTING}),
        ev.TaskReady: frozenset({_STARTING}),
        ev.CheckpointSaved: frozenset({_STARTING}),
        ev.TaskEnded: frozenset({_STARTING, _STOPPING}),
        ev.AttemptChecked: frozenset({_STARTING, _STOPPING, _ENDED}),
        ev.AttemptEnded: frozenset({_STARTING, _STOPPING, _ENDED}),
    },
    _RUNNING: {
        ev.TaskStarted: frozenset({_RUNNING}),
        ev.TaskReady: frozenset({_RUNNING}),
        ev.CheckpointSaved: frozenset({_RUNNING}),
        ev.TaskEnded: frozenset({_RUNNING, _STOPPING}),
        ev.AttemptChecked: frozenset({_RUNNING, _STOPPING, _ENDED}),
        ev.AttemptEnded: frozenset({_RUNNING, _STOPPING, _ENDED}),
    },
    _STOPPING: {
        ev.PrepareSucceeded: frozenset({_STOPPING}),
        ev.PrepareRefused: frozenset({_STOPPING, _ENDED}),
        ev.PrepareFailed: frozenset({_STOPPING, _ENDED}),
        ev.StartSucceeded: frozenset({_STOPPING}),
        ev.StartFailed: frozenset({_STOPPING}),
        ev.TaskStarted: frozenset({_STOPPING}),
        ev.TaskReady: frozenset({_STOPPING}),
        ev.CheckpointSaved: frozenset({_STOPPING}),
        ev.TaskEnded: frozenset({_STOPPING}),
        ev.StopAnswered: frozenset({_STOPPING, _ENDED}),
        ev.StopFailed: frozenset({_STOPPING}),
        ev.AttemptChecked: frozenset({_STOPPING, _ENDED}),
        ev.AttemptEnded: frozenset({_STOPPING, _ENDED}),
    },
    _ENDED: {},
}

TRIAL: Mapping[TrialState, frozenset[TrialState]] = {
    TrialState.WAITING: frozenset({TrialState.RUNNING, TrialState.STOPPED}),
    TrialState.RUNNING: frozenset(
        {TrialState.WAITING, TrialState.COMPLETED, TrialState.FAILED, TrialState.STOPPED}
    ),
    TrialState.COMPLETED: frozenset(),
    TrialState.PRUNED: frozenset(),
    TrialState.FAILED: frozenset(),
    TrialState.STOPPED: frozenset(),
}

STUDY: Mapping[StudyState, frozenset[StudyState]] = {
    StudyState.RUNNING: frozenset(
        {StudyState.STOPPING, StudyState.COMPLETED, StudyState.STOPPED, StudyState.FAILED}
    ),
    StudyState.STOPPING: frozenset({StudyState.COMPLETED, StudyState.STOPPED, StudyState.FAILED}),
    StudyState.COMPLETED: frozenset(),
    StudyState.STOPPED: frozenset(),
    StudyState.FAILED: frozenset(),
}

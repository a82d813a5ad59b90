"""pb2 <-> domain for StudyService; used by the service and by ``nhop.Client``."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator import convert
from coordinator.domain import (
    Notice,
    Report,
    Study,
    StudyState,
    Trial,
    TrialCounts,
    TrialState,
)
from nhop.v1 import study_pb2, types_pb2

_STUDY_STATES = {study_pb2.StudyState.Value(f"STUDY_STATE_{state.name}"): state for state in StudyState}
_STUDY_STATES_OUT = {state: number for number, state in _STUDY_STATES.items()}
_TRIAL_STATES = {study_pb2.TrialState.Value(f"TRIAL_STATE_{state.name}"): state for state in TrialState}
_TRIAL_STATES_OUT = {state: number for number, state in _TRIAL_STATES.items()}
_COUNTS = ("total", "waiting", "running", "completed", "pruned", "failed", "stopped")


@dataclass(frozen=True, slots=True)
class StudyStatus:
    """A study as its clients see it; ``stage`` counts from 1, ``*_at`` in seconds since the epoch."""

    study_id: str
    state: StudyState
    reason: str
    stage: int
    number_of_stages: int
    counts: TrialCounts
    best: Trial | None
    started_at: float
    ended_at: float | None
    output_directory: str
    late_messages: int = 0


def study_to_pb(study: Study, output_directory: str) -> study_pb2.Study:
    """A study's state."""
    message = study_pb2.Study(
        study_id=study.study_id,
        state=_STUDY_STATES_OUT[study.state],
        reason=study.reason,
        stage=len(study.stages),
        stages=study.number_of_stages,
        counts=study_pb2.TrialCounts(**{name: getattr(study.counts, name) for name in _COUNTS}),
        start_time=convert.timestamp(study.started_at),
        output_directory=output_directory,
        late_messages=study.late_messages,
    )
    if study.best is not None:
        message.best.CopyFrom(trial_to_pb(study.best))
    if study.ended_at is not None:
        message.end_time.CopyFrom(convert.timestamp(study.ended_at))
    return message


def study_from_pb(message: study_pb2.Study) -> StudyStatus:
    """A study's state."""
    return StudyStatus(
        study_id=message.study_id,
        state=convert.lookup(_STUDY_STATES, message.state, "study state"),
        reason=message.reason,
        stage=message.stage,
        number_of_stages=message.stages,
        counts=TrialCounts(**{name: getattr(message.counts, name) for name in _COUNTS}),
        best=trial_from_pb(message.best) if message.HasField("best") else None,
        started_at=convert.seconds_of(message.start_time),
        ended_at=convert.seconds_of(message.end_time) if message.HasField("end_time") else None,
        output_directory=message.output_directory,
        late_messages=message.late_messages,
    )


def trial_to_pb(trial: Trial) -> study_pb2.Trial:
    """A trial."""
    message = study_pb2.Trial(
        number=trial.number,
        stage=trial.stage,
        state=_TRIAL_STATES_OUT[trial.state],
        parameters=types_pb2.Parameters(values=convert.values_to_struct(trial.parameters)),
        loss=trial.loss,
        train_loss=trial.train_loss,
        val_loss=trial.val_loss,
        attempts=trial.attempts,
        hosts=trial.hosts,
        metrics=trial.metrics,
        notes=trial.notes,
    )
    if trial.failure is not None:
        message.failure.CopyFrom(convert.failure_to_pb(trial.failure))
    if trial.seconds is not None:
        message.duration.CopyFrom(convert.duration(trial.seconds))
    return message


def trial_from_pb(message: study_pb2.Trial) -> Trial:
    """A trial."""
    return Trial(
        number=message.number,
        stage=message.stage,
        state=convert.lookup(_TRIAL_STATES, message.state, "trial state"),
        parameters=convert.values_from_struct(message.parameters.values),
        loss=message.loss if message.HasField("loss") else None,
        train_loss=message.train_loss if message.HasField("train_loss") else None,
        val_loss=message.val_loss if message.HasField("val_loss") else None,
        failure=convert.failure_from_pb(message.failure) if message.HasField("failure") else None,
        attempts=message.attempts,
        seconds=convert.seconds_of(message.duration) if message.HasField("duration") else None,
        hosts=tuple(message.hosts),
        notes=tuple(message.notes),
        metrics=dict(message.metrics),
    )


def update_to_pb(
    update: Study | Trial | Report | Notice, output_directory: str
) -> study_pb2.WatchStudyResponse:
    """One message of a watch."""
    match update:
        case Study():
            return study_pb2.WatchStudyResponse(study=study_to_pb(update, output_directory))
        case Trial():
            return study_pb2.WatchStudyResponse(trial=trial_to_pb(update))
        case Report():
            report = study_pb2.TrialReport(
                attempt=convert.attempt_to_pb(update.attempt),
                task=convert.task_to_pb(update.task),
                report=convert.report_to_pb(update),
            )
            return study_pb2.WatchStudyResponse(report=report)
        case Notice(message, warning):
            return study_pb2.WatchStudyResponse(notice=study_pb2.Notice(message=message, warning=warning))


def update_from_pb(message: study_pb2.WatchStudyResponse) -> StudyStatus | Trial | Report | Notice:
    """One message of a watch; a report's sequence number is not part of it and is 0."""
    match message.WhichOneof("kind"):
        case "study":
            return study_from_pb(message.study)
        case "trial":
            return trial_from_pb(message.trial)
        case "notice":
            return Notice(message.notice.message, message.notice.warning)
        case "report":
            report = message.report
            return convert.report_from_pb(
                convert.attempt_from_pb(report.attempt), convert.task_from_pb(report.task), 0, report.report
            )
        case _:
            raise convert.ProtocolError("an update is of an unknown kind")

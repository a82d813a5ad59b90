"""pb2 <-> domain for AgentService, and what both services share.

Raises ProtocolError where a message holds a value that this version does not know.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from coordinator import events as ev
from coordinator.domain import AttemptId, Failure, Limits, Report, StopReason, TaskResult, Training
from coordinator.instructions import PrepareAttempt, StartAttempt, StopAttempt
from nhop.v1 import agent_pb2, types_pb2
from nhop_models.contract import FailureKind, TaskId, TaskRole, TaskStatus


class ProtocolError(Exception):
    """The peer sent what this version of NHOP does not understand."""


_ROLES = {types_pb2.TASK_ROLE_PS: TaskRole.PS, types_pb2.TASK_ROLE_WORKER: TaskRole.WORKER}
_ROLES_OUT = {role: number for number, role in _ROLES.items()}
_STATUSES = {types_pb2.TaskStatus.Value(f"TASK_STATUS_{status.value}"): status for status in TaskStatus}
_KINDS = {types_pb2.FailureKind.Value(f"FAILURE_KIND_{kind.value}"): kind for kind in FailureKind}
_KINDS_OUT = {kind: number for number, kind in _KINDS.items()}
_REASONS = {agent_pb2.StopReason.Value(f"STOP_REASON_{reason.value}"): reason for reason in StopReason}
_REASONS_OUT = {reason: number for number, reason in _REASONS.items()}

LEASE_TIMEOUT = 30.0
"""Seconds after which an agent releases what was prepared and never started."""

RESTORE_TIMEOUT = 1800.0
"""Seconds more where a checkpoint goes there first."""


def lookup(table: Mapping[Any, Any], number: int, what: str) -> Any:
    """The domain's word for an enum number; raises ProtocolError for one that is not known."""
    try:
        return table[number]
    except KeyError:
        message = f"unknown {what} {number}: is the other side of another version of NHOP?"
        raise ProtocolError(message) from None


# --- shared words -----------------------------------------------------------------------------


def attempt_from_pb(message: types_pb2.AttemptId) -> AttemptId:
    """An attempt's name."""
    return AttemptId(message.study_id, message.trial, message.attempt)


def attempt_to_pb(attempt: AttemptId) -> types_pb2.AttemptId:
    """An attempt's name."""
    return types_pb2.AttemptId(study_id=attempt.study_id, trial=attempt.trial, attempt=attempt.attempt)


def task_from_pb(message: types_pb2.TaskId) -> TaskId:
    """A task's name."""
    return TaskId(lookup(_ROLES, message.role, "task role"), message.index)


def task_to_pb(task: TaskId) -> types_pb2.TaskId:
    """A task's name."""
    return types_pb2.TaskId(role=_ROLES_OUT[task.role], index=task.index)


def failure_from_pb(message: types_pb2.Failure) -> Failure:
    """What went wrong."""
    return Failure(lookup(_KINDS, message.kind, "failure kind"), message.message, message.detail)


def failure_to_pb(failure: Failure) -> types_pb2.Failure:
    """What went wrong."""
    return types_pb2.Failure(kind=_KINDS_OUT[failure.kind], message=failure.message, detail=failure.detail)


def values_to_struct(values: Mapping[str, Any]) -> Struct:
    """JSON-able values; raises ValueError for whole numbers that a double cannot carry."""
    struct = Struct()
    struct.update(_checked(values))
    return struct


def values_from_struct(struct: Struct) -> dict[str, Any]:
    """The values of a Struct, with whole numbers as int."""
    return {key: _value(value) for key, value in struct.fields.items()}


def _checked(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        raise ValueError(f"{value} is too large for the protocol (at most 2**53)")
    if isinstance(value, Mapping):
        return {str(key): _checked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(item) for item in value]
    return value


def _value(value: Any) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return values_from_struct(value.struct_value)
        case "list_value":
            return [_value(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            return int(number) if math.isfinite(number) and number == int(number) else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def duration(seconds: float) -> Duration:
    """Seconds as a Duration."""
    result = Duration()
    result.FromNanoseconds(round(seconds * 1e9))
    return result


def timestamp(at: float) -> Timestamp:
    """Seconds since the epoch as a Timestamp."""
    result = Timestamp()
    result.FromNanoseconds(round(at * 1e9))
    return result


def seconds_of(message: Timestamp | Duration) -> float:
    """A Timestamp or Duration in seconds."""
    return message.seconds + message.nanos / 1e9


def report_from_pb(attempt: AttemptId, task: TaskId, sequence: int, message: types_pb2.Report) -> Report:
    """One streamed message of a task."""
    return Report(
        attempt,
        task,
        sequence,
        message.step,
        message.train_loss,
        message.val_loss if message.HasField("val_loss") else None,
        dict(message.metrics),
        seconds_of(message.time),
    )


def report_to_pb(report: Report) -> types_pb2.Report:
    """One streamed message of a task."""
    return types_pb2.Report(
        step=report.step,
        train_loss=report.train_loss,
        val_loss=report.val_loss,
        metrics=report.metrics,
        time=timestamp(report.at),
    )


# --- AgentService -----------------------------------------------------------------------------


def attempt_to_agent(attempt: AttemptId) -> types_pb2.AttemptId:
    """An attempt's name towards agents."""
    study_id = attempt.run_id or attempt.study_id
    return types_pb2.AttemptId(study_id=study_id, trial=attempt.trial, attempt=attempt.attempt)


def attempt_from_agent(study_id: str, message: types_pb2.AttemptId) -> AttemptId:
    """What an agent calls an attempt of the study."""
    return AttemptId(study_id, message.trial, message.attempt, message.study_id)


def prepare_to_pb(
    instruction: PrepareAttempt, gpus_per_worker: float = 0.0
) -> agent_pb2.PrepareAttemptRequest:
    """The request for an instruction."""
    return agent_pb2.PrepareAttemptRequest(
        attempt=attempt_to_agent(instruction.attempt),
        tasks=[
            agent_pb2.TaskRequirement(
                task=task_to_pb(task),
                slots=1 if task.role is TaskRole.WORKER else 0,
                port=instruction.ports,
                gpus=gpus_per_worker if task.role is TaskRole.WORKER else 0.0,
            )
            for task in instruction.tasks
        ],
        lease_timeout=duration(LEASE_TIMEOUT + instruction.restores * RESTORE_TIMEOUT),
    )


def addresses_from_pb(message: agent_pb2.PrepareAttemptResponse) -> dict[TaskId, str]:
    """Addresses of the tasks that were given a port."""
    return {task_from_pb(lease.task): lease.address for lease in message.leases if lease.address}


def start_to_pb(
    instruction: StartAttempt, training: Training, limits: Limits, ps: int, workers: int
) -> agent_pb2.StartAttemptRequest:
    """The request for an instruction; ``ps`` and ``workers`` are the numbers of tasks."""
    return agent_pb2.StartAttemptRequest(
        attempt=attempt_to_agent(instruction.attempt),
        cluster=agent_pb2.ClusterSpec(ps=instruction.ps, workers=instruction.workers),
        training=agent_pb2.TrainingSpec(
            model=training.model,
            python_path=training.python_path,
            working_directory=training.working_directory,
            parameters=types_pb2.Parameters(values=values_to_struct(instruction.parameters)),
            train_epoch=instruction.train_epoch,
            train_tolerance=training.train_tolerance,
            seed=instruction.seed,
            workers=workers,
            parameter_servers=ps,
            sync_replicas=training.sync_replicas,
            report_interval=duration(training.report_interval),
            settings=types_pb2.Parameters(values=values_to_struct(training.settings)),
            sync_backup_workers=training.sync_backup_workers,
            checkpoint_every=training.checkpoint_every or 0,
            keep_model=training.keep_model,
            keep_model_below=instruction.keep_model_below,
        ),
        limits=agent_pb2.AttemptLimits(
            start=duration(limits.start),
            stop_grace=duration(limits.stop_grace),
            terminate_grace=duration(limits.terminate_grace),
            run=duration(limits.run or 0.0),
        ),
    )


def stop_to_pb(instruction: StopAttempt) -> agent_pb2.StopAttemptRequest:
    """The request for an instruction."""
    return agent_pb2.StopAttemptRequest(
        attempt=attempt_to_agent(instruction.attempt), reason=_REASONS_OUT[instruction.reason]
    )


def artifact_header_to_pb(attempt: AttemptId, name: str, size: int) -> agent_pb2.WriteArtifactRequest:
    """The first message of a file that is given to an attempt."""
    artifact = types_pb2.Artifact(name=name, size=size)
    header = agent_pb2.ArtifactHeader(attempt=attempt_to_agent(attempt), artifact=artifact)
    return agent_pb2.WriteArtifactRequest(header=header)


def result_from_pb(message: types_pb2.TaskOutcome) -> TaskResult:
    """How a task ended."""
    status = lookup(_STATUSES, message.status, "task status")
    failure = failure_from_pb(message.failure) if message.HasField("failure") else None
    if status is TaskStatus.FAILED and failure is None:
        raise ProtocolError("a task failed without saying how")
    return TaskResult(
        status=status,
        failure=failure,
        step=message.step,
        train_loss=message.train_loss if message.HasField("train_loss") else None,
        val_loss=message.val_loss if message.HasField("val_loss") else None,
        metrics=dict(message.metrics),
        phase_seconds=dict(message.phase_seconds),
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        signal=message.signal if message.HasField("signal") else None,
        artifacts={artifact.name: artifact.size for artifact in message.artifacts},
        notes=tuple(message.notes),
    )


def events_from_pb(
    host: str, study_id: str, messages: Iterable[agent_pb2.Event]
) -> tuple[list[Report], list[ev.AttemptEvent]]:
    """Reports, and the other events, each in the order of the study's stream."""
    reports: list[Report] = []
    events: list[ev.AttemptEvent] = []
    for message in messages:
        attempt = attempt_from_agent(study_id, message.attempt)
        match message.WhichOneof("kind"):
            case "report":
                task = task_from_source(message.source)
                reports.append(report_from_pb(attempt, task, message.sequence, message.report))
            case "task_started":
                events.append(ev.TaskStarted(attempt, host, task_from_pb(message.task_started.task)))
            case "task_ready":
                events.append(ev.TaskReady(attempt, host, task_from_source(message.source)))
            case "checkpoint_saved":
                if task_from_source(message.source).is_chief:
                    events.append(ev.CheckpointSaved(attempt, host, message.checkpoint_saved.step))
            case "task_ended":
                task = task_from_pb(message.task_ended.task)
                result = result_from_pb(message.task_ended.outcome)
                events.append(ev.TaskEnded(attempt, host, task, result))
            case "attempt_ended":
                reason = lookup(_REASONS, message.attempt_ended.reason, "stop reason")
                events.append(ev.AttemptEnded(attempt, host, reason))
            case _:
                raise ProtocolError(f"an event of {attempt} is of an unknown kind")
    return reports, events


_TASKS: dict[str, TaskId] = {}


def task_from_source(source: str) -> TaskId:
    """The task that is the source of an event; raises ProtocolError where it is none."""
    task = _TASKS.get(source)
    if task is None:
        try:
            task = _TASKS[source] = TaskId.parse(source)
        except ValueError as error:
            raise ProtocolError(f"an event of a task comes from {source!r}") from error
    return task

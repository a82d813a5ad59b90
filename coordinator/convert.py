"""pb2 <-> domain for AgentService, and what both services share.

Raises ProtocolError where a message holds a value that this version does not know.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from coordinator import events as ev
from coordinator.domain import (
    AttemptId,
    Failure,
    Limits,
    Report,
    ReportRow,
    Reports,
    StopReason,
    TaskResult,
    Training,
)
from coordinator.hosts import Inventory
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


def sign_of_life_to_pb(studies: Iterable[str], answer: Inventory | None) -> agent_pb2.GetInventoryRequest:
    """The heartbeat of studies, by their names towards agents; ``answer``: the newest that was received."""
    request = agent_pb2.GetInventoryRequest(study_ids=sorted(studies))
    if answer is not None:
        request.incarnation = answer.incarnation
        request.uptime.CopyFrom(duration(answer.uptime))
    return request


def inventory_from_pb(message: agent_pb2.GetInventoryResponse, asked_at: float) -> Inventory:
    """What a host has; ``asked_at`` is our clock, in seconds since the epoch, at about its ``time``."""
    return Inventory(
        slots=message.slots,
        gpus=len(message.gpus),
        incarnation=message.incarnation,
        quarantined=tuple(f"GPU {gpu.uuid}: {gpu.quarantined}" for gpu in message.gpus if gpu.quarantined),
        uptime=seconds_of(message.uptime),
        nhop_version=message.nhop_version,
        tensorflow_version=message.tensorflow_version,
        python_version=message.python_version,
        cpu_cores=message.cpu_cores,
        free_disk=message.free_disk_bytes,
        clock_offset=seconds_of(message.time) - asked_at,
        task_address=message.task_address,
        ports=(message.first_port, message.last_port),
        certificate_left=seconds_of(message.certificate_end_time) - seconds_of(message.time)
        if message.HasField("certificate_end_time")
        else None,
        certificate_ends_soon=message.certificate_ends_soon,
    )


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
    instruction: StartAttempt,
    training: Training,
    limits: Limits,
    ps: int,
    workers: int,
    silence: float | None = None,
) -> agent_pb2.StartAttemptRequest:
    """The request for an instruction; ``ps`` and ``workers`` are the numbers of tasks.

    ``silence``: seconds without us after which the agent ends the attempt; None: it does not.
    """
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
            code=training.code,
            data=training.data,
        ),
        limits=agent_pb2.AttemptLimits(
            start=duration(limits.start),
            stop_grace=duration(limits.stop_grace),
            terminate_grace=duration(limits.terminate_grace),
            run=duration(limits.run or 0.0),
            silence=duration(silence or 0.0),
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


def bundle_header_to_pb(digest: str, size: int) -> agent_pb2.PutBundleRequest:
    """The first message of a bundle."""
    return agent_pb2.PutBundleRequest(header=agent_pb2.BundleHeader(digest=digest, size=size))


def misses_bundle(error: grpc.aio.AioRpcError) -> bool:
    """Whether an agent refuses because it does not have a bundle (any more)."""
    if error.code() is not grpc.StatusCode.NOT_FOUND:
        return False
    status = rpc_status.from_call(cast("Any", error))
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and (info.domain, info.reason) == ("nhop", "BUNDLE"):
            return True
    return False


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


def by_source(
    study_id: str, messages: Iterable[agent_pb2.Event]
) -> Iterator[tuple[AttemptId, str, list[agent_pb2.Event]]]:
    """Events as they came, in runs of one attempt and source each."""
    for _, run in itertools.groupby(messages, _origin):
        events = list(run)
        yield attempt_from_agent(study_id, events[0].attempt), events[0].source, events


def _origin(message: agent_pb2.Event) -> tuple[int, int, str]:
    attempt = message.attempt
    return attempt.trial, attempt.attempt, message.source


def events_from_pb(
    host: str, attempt: AttemptId, source: str, messages: Iterable[agent_pb2.Event]
) -> tuple[Reports | None, list[ev.AttemptEvent]]:
    """Reports, and the other events, of one attempt and source, each in their order."""
    rows: list[ReportRow] = []
    events: list[ev.AttemptEvent] = []
    for message in messages:
        match message.WhichOneof("kind"):
            case "report":
                rows.append(_report_row(message))
            case "task_started":
                events.append(ev.TaskStarted(attempt, host, task_from_pb(message.task_started.task)))
            case "task_ready":
                events.append(ev.TaskReady(attempt, host, task_from_source(source)))
            case "checkpoint_saved":
                if task_from_source(source).is_chief:
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
    return Reports(attempt, task_from_source(source), rows) if rows else None, events


_NO_METRICS: Mapping[str, float] = {}


def _report_row(message: agent_pb2.Event) -> ReportRow:
    report = message.report
    metrics, time = report.metrics, report.time
    return (
        message.sequence,
        report.step,
        report.train_loss,
        report.val_loss if report.HasField("val_loss") else None,
        # Half of the time of a report would go into an empty map.
        {name: metrics[name] for name in metrics} if len(metrics) else _NO_METRICS,
        time.seconds + time.nanos / 1e9,
    )


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

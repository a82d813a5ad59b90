"""Between the protocol's messages and the agent's own values; refuses what is not allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import PurePosixPath

from google.protobuf import duration_pb2, timestamp_pb2

from agent.checks import MAX_TASKS, Checker
from agent.config import join_port
from agent.domain import (
    AttemptEnded,
    AttemptId,
    CheckpointSaved,
    Limits,
    Report,
    StopReason,
    StreamEvent,
    TaskEnded,
    TaskLease,
    TaskReady,
    TaskRequirement,
    TaskResult,
    TaskStarted,
)
from agent.event_log import SOURCE
from agent.gpu_pool import FINEST, Gpu, amount_of
from nhop.v1 import agent_pb2, types_pb2
from nhop_models.contract import CHECKPOINT_FILE, TaskId, TaskRole, TaskSpec

MAX_PATHS = 100
MAX_GPUS = 1_000
MAX_STUDIES = 10_000
MAX_PROBES = 1_000
_ROLES = {TaskRole.PS: types_pb2.TASK_ROLE_PS, TaskRole.WORKER: types_pb2.TASK_ROLE_WORKER}


# --- requests -------------------------------------------------------------------------------


def prepare_request(
    request: agent_pb2.PrepareAttemptRequest,
) -> tuple[AttemptId, list[TaskRequirement], float | None]:
    """The attempt, what its tasks need, the lease timeout in seconds (None: the agent's own)."""
    check = Checker()
    attempt = check.attempt(request.attempt)
    check.require(len(request.tasks) > 0, "tasks", "must name at least one task")
    check.require(len(request.tasks) <= MAX_TASKS, "tasks", f"must be at most {MAX_TASKS}")
    requirements = []
    seen: set[TaskId] = set()
    for number, value in enumerate(request.tasks[:MAX_TASKS]):
        task = check.task(value.task, f"tasks[{number}].task")
        check.require(value.slots >= 0, f"tasks[{number}].slots", "must not be negative")
        check.require(task not in seen, f"tasks[{number}].task", f"{task} is named twice")
        seen.add(task)
        gpus = _gpus(value.gpus, task, f"tasks[{number}].gpus", check)
        requirements.append(TaskRequirement(task, value.slots, value.port, gpus))
    timeout = check.seconds(request.lease_timeout, "lease_timeout")
    check.finish()
    return attempt, requirements, timeout or None


def _gpus(value: float, task: TaskId, field: str, check: Checker) -> Fraction:
    """A whole number of GPUs, or a share of one."""
    valid = value == 0 or 1 / FINEST <= value < 1 or (1 <= value <= MAX_GPUS and value.is_integer())
    text = f"must be 0, a share from {1 / FINEST:g} to 1, or a whole number up to {MAX_GPUS}"
    if not check.require(valid, field, text):
        return Fraction(0)
    check.require(value == 0 or task.role is TaskRole.WORKER, field, "a parameter server takes no GPU")
    return amount_of(value)


def start_request(request: agent_pb2.StartAttemptRequest) -> tuple[AttemptId, TaskSpec, Limits]:
    """The attempt, what its tasks are to train, its deadlines."""
    check = Checker()
    attempt = check.attempt(request.attempt)
    limits = _limits(request, check)
    training = request.training
    check.require(bool(training.model), "training.model", "must be set")
    check.require(training.train_epoch >= 1, "training.train_epoch", "must be at least 1")
    tolerance = training.train_tolerance
    check.require(
        math.isfinite(tolerance) and tolerance >= 0,
        "training.train_tolerance",
        "must be finite, not negative",
    )
    check.require(1 <= training.workers <= MAX_TASKS, "training.workers", f"must be 1 to {MAX_TASKS}")
    some = 0 <= training.parameter_servers <= MAX_TASKS
    check.require(some, "training.parameter_servers", f"must be 0 to {MAX_TASKS}")
    with_ps = training.parameter_servers > 0
    for field, addresses, count in (
        ("cluster.ps", request.cluster.ps, training.parameter_servers),
        ("cluster.workers", request.cluster.workers, training.workers if with_ps else 0),
    ):
        check.require(len(addresses) == count, field, f"must hold {count} addresses, not {len(addresses)}")
        for number, address in enumerate(addresses[:MAX_TASKS]):
            check.address(address, f"{field}[{number}]")
    few = len(training.python_path) <= MAX_PATHS
    check.require(few, "training.python_path", f"must be at most {MAX_PATHS}")
    for number, path in enumerate(training.python_path[:MAX_PATHS]):
        absolute = PurePosixPath(path).is_absolute() and "\0" not in path
        check.require(absolute, f"training.python_path[{number}]", "must be an absolute path")
    directory = training.working_directory
    absolute = not directory or (PurePosixPath(directory).is_absolute() and "\0" not in directory)
    check.require(absolute, "training.working_directory", "must be an absolute path, or empty")
    below = training.keep_model_below if training.HasField("keep_model_below") else None
    check.require(below is None or math.isfinite(below), "training.keep_model_below", "must be finite")
    spec = TaskSpec(
        study_id=attempt.study_id,
        trial=attempt.trial,
        attempt=attempt.attempt,
        model=training.model,
        parameters=check.values(training.parameters.values, "training.parameters"),
        settings=check.values(training.settings.values, "training.settings"),
        train_epoch=training.train_epoch,
        train_tolerance=tolerance,
        seed=training.seed,
        ps=tuple(request.cluster.ps),
        workers=tuple(request.cluster.workers),
        python_path=tuple(training.python_path),
        working_directory=directory,
        sync_replicas=training.sync_replicas,
        report_interval=check.seconds(training.report_interval, "training.report_interval"),
        start_limit=limits.start,
        stop_grace=limits.stop_grace,
        sync_backup_workers=check.not_negative(training, "sync_backup_workers"),
        checkpoint_every=check.not_negative(training, "checkpoint_every"),
        keep_model=training.keep_model,
        keep_model_below=below,
    )
    check.finish()
    return attempt, spec, limits


def _limits(request: agent_pb2.StartAttemptRequest, check: Checker) -> Limits:
    limits = request.limits
    start = check.seconds(limits.start, "limits.start")
    check.require(start > 0, "limits.start", "must be set, and longer than zero")
    return Limits(
        start=start,
        stop_grace=check.seconds(limits.stop_grace, "limits.stop_grace"),
        terminate_grace=check.seconds(limits.terminate_grace, "limits.terminate_grace"),
        run=check.seconds(limits.run, "limits.run") or None,
        silence=check.seconds(limits.silence, "limits.silence") or None,
    )


def check_cluster(spec: TaskSpec, leases: Iterable[TaskLease], task_address: str) -> None:
    """Raises InvalidRequestError where the cluster is not the one that was leased for."""
    check = Checker()
    for lease in leases:
        ps = lease.task.role is TaskRole.PS
        field, addresses = ("cluster.ps", spec.ps) if ps else ("cluster.workers", spec.workers)
        expected = address_of(lease, task_address)
        if lease.task.index < len(addresses):
            found = addresses[lease.task.index]
            text = f"{lease.task} was leased {expected or 'no port'}, not {found}"
            check.require(found == expected, f"{field}[{lease.task.index}]", text)
        elif ps or spec.ps:
            check.require(holds=False, field=field, description=f"has no place for {lease.task}")
    check.finish()


def sign_of_life(request: agent_pb2.GetInventoryRequest) -> tuple[tuple[str, ...], str, float | None]:
    """Studies of the caller, and of which incarnation and uptime the answer is that it has received."""
    check = Checker()
    many = len(request.study_ids) <= MAX_STUDIES
    check.require(many, "study_ids", f"must be at most {MAX_STUDIES:,}")
    named = enumerate(request.study_ids[:MAX_STUDIES])
    studies = tuple(check.study_id(study, f"study_ids[{i}]") for i, study in named)
    uptime = check.seconds(request.uptime, "uptime") if request.HasField("uptime") else None
    check.finish()
    return studies, request.incarnation, uptime


def probes_request(request: agent_pb2.CheckReachRequest) -> list[tuple[str, int, str]]:
    """Host, port and token of each probe."""
    check = Checker()
    check.require(len(request.probes) <= MAX_PROBES, "probes", f"must be at most {MAX_PROBES:,}")
    targets = []
    for number, probe in enumerate(request.probes[:MAX_PROBES]):
        host, port = check.address(probe.address, f"probes[{number}].address")
        targets.append((host.removeprefix("[").removesuffix("]"), port, probe.token))
    check.finish()
    return targets


def stop_request(request: agent_pb2.StopAttemptRequest) -> tuple[AttemptId, StopReason]:
    """The attempt, and why it is stopped."""
    check = Checker()
    attempt = check.attempt(request.attempt)
    known = request.reason in agent_pb2.StopReason.values() and request.reason != 0
    check.require(known, "reason", "must be a known reason")
    check.finish()
    return attempt, StopReason[agent_pb2.StopReason.Name(request.reason).removeprefix("STOP_REASON_")]


def subscribe_request(request: agent_pb2.Subscribe) -> tuple[str, dict[tuple[AttemptId, str], int]]:
    """The study, and what the receiver already has."""
    check = Checker()
    study = check.study_id(request.study_id, "subscribe.study_id")
    positions = _positions(request.positions, "subscribe.positions", study, check)
    check.finish()
    return study, positions


def acknowledge_request(request: agent_pb2.Acknowledge, study: str) -> dict[tuple[AttemptId, str], int]:
    """Up to where the receiver has events of its study."""
    check = Checker()
    positions = _positions(request.positions, "acknowledge.positions", study, check)
    check.finish()
    return positions


def _positions(
    values: Iterable[agent_pb2.Position], field: str, study: str, check: Checker
) -> dict[tuple[AttemptId, str], int]:
    positions = {}
    for number, value in enumerate(values):
        place = f"{field}[{number}]"
        attempt = check.attempt(value.attempt, f"{place}.attempt")
        check.require(attempt.study_id == study, f"{place}.attempt.study_id", f"must be {study!r}")
        check.require(value.sequence >= 0, f"{place}.sequence", "must not be negative")
        check.require(_is_source(value.source), f"{place}.source", "must be agent, ps/N or worker/N")
        positions[attempt, value.source] = value.sequence
    return positions


def _is_source(text: str) -> bool:
    try:
        return text == SOURCE or str(TaskId.parse(text)) == text
    except ValueError:
        return False


def read_log_request(request: agent_pb2.ReadLogRequest) -> tuple[AttemptId, TaskId, int]:
    """The attempt, the task, the first byte."""
    check = Checker()
    attempt = check.attempt(request.attempt)
    task = check.task(request.task, "task")
    check.finish()
    return attempt, task, request.offset


# --- answers --------------------------------------------------------------------------------


def address_of(lease: TaskLease, task_address: str) -> str:
    """``host:port`` of a task; empty where it has no port."""
    return "" if lease.port is None else join_port(task_address, lease.port)


def task_to_pb(task: TaskId) -> types_pb2.TaskId:
    """The task's id as a message."""
    return types_pb2.TaskId(role=_ROLES[task.role], index=task.index)


def attempt_to_pb(attempt: AttemptId) -> types_pb2.AttemptId:
    """The attempt's id as a message."""
    return types_pb2.AttemptId(study_id=attempt.study_id, trial=attempt.trial, attempt=attempt.attempt)


def lease_to_pb(lease: TaskLease, task_address: str) -> agent_pb2.TaskLease:
    """A lease as a message."""
    address = address_of(lease, task_address)
    return agent_pb2.TaskLease(task=task_to_pb(lease.task), address=address, gpus=lease.gpus)


def gpu_to_pb(gpu: Gpu) -> agent_pb2.Gpu:
    """A GPU, and how much of it is free, as a message."""
    return agent_pb2.Gpu(
        uuid=gpu.device.uuid,
        name=gpu.device.name,
        memory_bytes=gpu.device.memory_bytes,
        quarantined=gpu.quarantined,
        free=max(float(gpu.free), 0.0),
    )


def event_to_pb(event: StreamEvent) -> agent_pb2.Event:
    """An event as a message."""
    message = agent_pb2.Event(
        attempt=attempt_to_pb(event.attempt),
        source=event.source,
        sequence=event.sequence,
        time=timestamp(event.time),
    )
    match event.kind:
        case TaskStarted():
            message.task_started.task.CopyFrom(task_to_pb(event.kind.task))
            message.task_started.pid = event.kind.pid
        case TaskReady():
            message.task_ready.SetInParent()
        case Report():
            message.report.CopyFrom(_report_to_pb(event.kind, event.time))
        case TaskEnded():
            message.task_ended.task.CopyFrom(task_to_pb(event.kind.task))
            message.task_ended.outcome.CopyFrom(_result_to_pb(event.kind.result))
        case CheckpointSaved():
            message.checkpoint_saved.step = event.kind.step
            message.checkpoint_saved.artifact.name = CHECKPOINT_FILE
            message.checkpoint_saved.artifact.size = event.kind.size
        case AttemptEnded():
            message.attempt_ended.reason = agent_pb2.StopReason.Value(
                f"STOP_REASON_{event.kind.reason.value}"
            )
    return message


def duration(seconds: float) -> duration_pb2.Duration:
    """Seconds as a message, to the microsecond."""
    message = duration_pb2.Duration()
    message.FromMicroseconds(round(seconds * 1e6))
    return message


def timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    """Seconds since the epoch as a message, to the microsecond."""
    message = timestamp_pb2.Timestamp()
    message.FromMicroseconds(round(seconds * 1e6))
    return message


def _report_to_pb(report: Report, time: float) -> types_pb2.Report:
    return types_pb2.Report(
        step=report.step,
        train_loss=report.train_loss,
        val_loss=report.val_loss,
        metrics=_numbers(report.metrics),
        time=timestamp(time),
    )


def _result_to_pb(result: TaskResult) -> types_pb2.TaskOutcome:
    message = types_pb2.TaskOutcome(
        status=types_pb2.TaskStatus.Value(f"TASK_STATUS_{result.status.value}"),
        step=result.step,
        train_loss=result.train_loss,
        val_loss=result.val_loss,
        metrics=_numbers(result.metrics),
        phase_seconds=_numbers(result.phase_seconds),
        exit_code=result.exit_code,
        signal=result.signal,
        artifacts=[types_pb2.Artifact(name=name, size=size) for name, size in result.artifacts.items()],
        notes=result.notes,
    )
    if result.failure is not None:
        kind = types_pb2.FailureKind.Value(f"FAILURE_KIND_{result.failure.kind.value}")
        failure = types_pb2.Failure(kind=kind, message=result.failure.message, detail=result.failure.detail)
        message.failure.CopyFrom(failure)
    return message


def _numbers(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}

"""What a task and its agent agree on: names, failure kinds, the spool and the outcome file.

Plain standard library, and imported from both sides: by task processes, which write
the files of the attempt directory, and by the agent, which reads them.

The attempt directory holds::

    spec.json                   what to train (TaskSpec); written by the agent before the first fork
    doorbell                    a FIFO: a task writes a byte after each record: the agent reads at once
    lease                       until when the tasks may run without a living agent (write_lease)
    restore.npz                 the checkpoint from which the chief goes on, where there is one
    tasks/                      all that tasks write, and nothing else:
    tasks/<task>.reports        the spool: framed, checksummed records, append-only (SpoolWriter)
    tasks/<task>.log            stdout and stderr
    tasks/<task>.outcome.json   the task's last word, written atomically (Outcome)
    tasks/artifacts/            files of the chief for the coordinator: model, predictions, checkpoint

where ``<task>`` is the task's name with a dash: ``ps-0``, ``worker-1``. The tasks may run as another
user than the agent: then they can write in ``tasks/`` alone, and the agent writes nothing there.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import json
import os
import re
import signal
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SPEC_FILE = "spec.json"
DOORBELL_FILE = "doorbell"
LEASE_FILE = "lease"
TASKS_FOLDER = "tasks"
ARTIFACTS_FOLDER = f"{TASKS_FOLDER}/artifacts"
MODEL_FILE = "model.keras"
PREDICTIONS_FILE = "predictions.npz"
CHECKPOINT_FILE = "checkpoint.npz"
RESTORE_FILE = "restore.npz"
ARTIFACT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
GPU_SHARE_VARIABLE = "NHOP_GPU_SHARE"
"""Environment of a task that may use only a share (0 to 1) of each GPU that it sees."""
CACHE_VARIABLE = "NHOP_CACHE"
"""Environment of a task: the folder of what was fetched from URLs, which all tasks of the host share."""

TASK_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
"""Ask a task to end: at its next step, and at once."""

EXIT_NO_TASK = 70
"""Exit status of a process that could not become a task (its attempt directory is not usable)."""
EXIT_NO_OUTCOME = 74
"""Exit status of a task that could not write its outcome (no room on the disk)."""


class FailureKind(enum.Enum):
    """How a task or an attempt went wrong; the names are those of the protocol."""

    USER_CODE = "USER_CODE"
    DATA = "DATA"
    DIVERGED = "DIVERGED"
    CRASHED = "CRASHED"
    KILLED = "KILLED"
    START_TIMEOUT = "START_TIMEOUT"
    PORT_TAKEN = "PORT_TAKEN"
    PEER_LOST = "PEER_LOST"
    HOST_LOST = "HOST_LOST"
    TIME_LIMIT = "TIME_LIMIT"
    RESOURCES = "RESOURCES"
    INTERNAL = "INTERNAL"


class TaskRole(enum.StrEnum):
    """What a task of an attempt is for."""

    PS = "ps"
    WORKER = "worker"


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class TaskId:
    """One process of an attempt; ``worker/0`` is the chief."""

    role: TaskRole
    index: int

    @classmethod
    def parse(cls, text: str) -> TaskId:
        """From ``"worker/0"`` or ``"worker-0"``; ValueError for anything else."""
        role, _, index = text.replace("-", "/").partition("/")
        if not index.isdecimal():
            raise ValueError(f"not a task: {text!r} (expected ps/N or worker/N)")
        return cls(TaskRole(role), int(index))

    @property
    def file_stem(self) -> str:
        """The task's name in file names, as in ``worker-0``."""
        return f"{self.role.value}-{self.index}"

    @property
    def is_chief(self) -> bool:
        """Whether this task initialises the parameters and ends the training."""
        return self.role is TaskRole.WORKER and self.index == 0

    def __str__(self) -> str:
        return f"{self.role.value}/{self.index}"


def spool_path(directory: Path, task: TaskId) -> Path:
    """Where a task of the attempt directory reports."""
    return directory / TASKS_FOLDER / f"{task.file_stem}.reports"


def log_path(directory: Path, task: TaskId) -> Path:
    """Where stdout and stderr of a task of the attempt directory go."""
    return directory / TASKS_FOLDER / f"{task.file_stem}.log"


def outcome_path(directory: Path, task: TaskId) -> Path:
    """Where the last word of a task of the attempt directory stands."""
    return directory / TASKS_FOLDER / f"{task.file_stem}.outcome.json"


MAX_MESSAGE = 1000
MAX_DETAIL = 8192
"""Characters of what is told of a failure: its message and its traceback or log."""


class TaskStatus(enum.Enum):
    """How a task ended."""

    COMPLETED = "COMPLETED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """A task's last word, as it stands in ``<task>.outcome.json``.

    Losses are None where the task saw none; ``phase_seconds`` holds wall seconds by phase,
    ``artifacts`` the bytes of each file that it left in ARTIFACTS_FOLDER, ``notes`` sentences for the user.
    """

    status: TaskStatus
    failure_kind: FailureKind | None = None
    message: str = ""
    detail: str = ""
    step: int = 0
    train_loss: float | None = None
    val_loss: float | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    phase_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    artifacts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Replaces the file at once, so that a reader never sees half of it."""
        data = dataclasses.asdict(self)
        data |= {"message": self.message[:MAX_MESSAGE], "detail": self.detail[-MAX_DETAIL:]}
        data["notes"] = [note[:MAX_MESSAGE] for note in self.notes]
        data["status"] = self.status.value
        data["failure_kind"] = self.failure_kind.value if self.failure_kind else None
        write_atomically(path, json.dumps(data))

    @classmethod
    def read(cls, path: Path) -> Outcome | None:
        """The outcome, or None where the task wrote none.

        Raises ValueError where the file is damaged.
        """
        try:
            return cls.from_json(path.read_text())
        except FileNotFoundError:
            return None

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """From what ``write`` wrote; ValueError, KeyError or TypeError where it is damaged."""
        data = json.loads(text)
        data["status"] = TaskStatus(data["status"])
        data["message"] = printable(data["message"])[:MAX_MESSAGE]
        data["detail"] = printable(data["detail"])[-MAX_DETAIL:]
        data["notes"] = tuple(printable(note)[:MAX_MESSAGE] for note in data["notes"])
        if data["failure_kind"] is not None:
            data["failure_kind"] = FailureKind(data["failure_kind"])
        return cls(**data)


@dataclasses.dataclass(frozen=True, slots=True)
class TaskSpec:
    """What all tasks of an attempt read from ``spec.json``.

    ``ps`` and ``workers`` are the ``host:port`` addresses of the cluster, empty where it has no
    parameter server; times are in seconds. ``parameters`` are the trial's hyper-parameters,
    ``settings`` the other keys of the configuration that a model reads. ``threads`` is the size of
    TensorFlow's pools, ``checkpoint_every`` in global steps (0: never), ``keep_model_below`` the loss on
    held-out data below which the model is kept (None: in any case). ``data_directory`` is where data that
    was sent lies on this host; empty: none was.
    """

    study_id: str
    trial: int
    attempt: int
    model: str
    parameters: Mapping[str, Any]
    settings: Mapping[str, Any]
    train_epoch: int
    train_tolerance: float
    seed: int
    ps: tuple[str, ...] = ()
    workers: tuple[str, ...] = ()
    python_path: tuple[str, ...] = ()
    working_directory: str = ""
    sync_replicas: bool = False
    report_interval: float = 0.25
    start_limit: float = 300.0
    stop_grace: float = 2.0
    threads: int = 1
    sync_backup_workers: int = 0
    checkpoint_every: int = 0
    keep_model: bool = False
    keep_model_below: float | None = None
    data_directory: str = ""

    def write(self, directory: Path) -> None:
        """Writes ``spec.json`` into the attempt directory."""
        write_atomically(directory / SPEC_FILE, json.dumps(dataclasses.asdict(self)))

    @classmethod
    def read(cls, directory: Path) -> TaskSpec:
        """Reads ``spec.json`` of the attempt directory."""
        data = json.loads((directory / SPEC_FILE).read_text())
        for key in ("ps", "workers", "python_path"):
            data[key] = tuple(data[key])
        return cls(**data)


# --- the spool -------------------------------------------------------------------------------

_HEADER = struct.Struct("<II")  # length of the payload, crc32 of the payload
MAX_RECORD_BYTES = 1 << 20


class RecordKind(enum.Enum):
    """What a record of the spool says."""

    READY = "ready"  # the task is about to make its first step (a parameter server: listens)
    REPORT = "report"  # keys of the payload: step, train_loss, val_loss (or None), metrics
    CHECKPOINT = "checkpoint"  # CHECKPOINT_FILE is whole and new; keys of the payload: step, size


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One record of a spool; its place in the file, counted from 1, is its sequence number."""

    kind: RecordKind
    time: float  # seconds since the epoch, UTC
    payload: Mapping[str, Any]


class SpoolError(ValueError):
    """A spool is damaged before its end; carries the byte offset of the damage."""

    def __init__(self, path: Path, offset: int) -> None:
        super().__init__(f"{path}: damaged at byte {offset}")
        self.offset = offset


def frame(payload: bytes) -> bytes:
    """The payload behind its length and checksum; ValueError where it is over MAX_RECORD_BYTES."""
    if len(payload) > MAX_RECORD_BYTES:
        raise ValueError(f"a record of {len(payload)} bytes is over {MAX_RECORD_BYTES}")
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def frames(data: bytes, path: Path, offset: int = 0) -> Iterator[tuple[bytes, int]]:
    """Payloads of ``data``, which begins at ``offset`` of the file, each with the offset behind it.

    A frame that is not yet whole ends the iteration. Raises SpoolError where a whole frame does
    not match its checksum.
    """
    place = 0
    while place + _HEADER.size <= len(data):
        length, checksum = _HEADER.unpack_from(data, place)
        if length > MAX_RECORD_BYTES:
            raise SpoolError(path, offset + place)
        end = place + _HEADER.size + length
        if end > len(data):
            return
        payload = data[place + _HEADER.size : end]
        if zlib.crc32(payload) != checksum:
            raise SpoolError(path, offset + place)
        yield payload, offset + end
        place = end


def encode_record(record: Record) -> bytes:
    """Frame and checksum of one record."""
    body = json.dumps([record.kind.value, record.time, record.payload], separators=(",", ":"))
    return frame(body.encode())


def decode_records(data: bytes, path: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Records of ``data``; offsets, ends and errors as for ``frames``."""
    for payload, end in frames(data, path, offset):
        kind, when, values = json.loads(payload)
        yield Record(RecordKind(kind), when, values), end


class SpoolWriter:
    """Appends records to a task's spool and rings the attempt's doorbell."""

    def __init__(self, directory: Path, task: TaskId) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(spool_path(directory, task), flags, 0o660)
        self._doorbell = directory / DOORBELL_FILE
        self._bell: int | None = None

    def append(self, kind: RecordKind, payload: Mapping[str, Any]) -> None:
        """Writes one record; it is safe from the death of this process when this returns.

        Raises OSError where there is no room for it.
        """
        data = encode_record(Record(kind, time.time(), payload))
        end = os.fstat(self._file).st_size
        if os.write(self._file, data) < len(data):
            os.ftruncate(self._file, end)  # a torn record would make all that follow it unreadable
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._ring()

    def _ring(self) -> None:
        # The agent may be away (no reader) or busy (full): the record is in the spool all the
        # same, and an agent that comes back reads the spool first.
        try:
            if self._bell is None:
                self._bell = os.open(self._doorbell, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.write(self._bell, b"\0")
        except BlockingIOError:
            pass
        except OSError:
            if self._bell is not None:
                os.close(self._bell)
                self._bell = None


# --- the lease -------------------------------------------------------------------------------


def write_lease(directory: Path, seconds: float) -> None:
    """Lets the tasks of an attempt run for ``seconds`` from now without a living agent.

    On the clock since boot, which nobody can set, and which stands still while the host is
    suspended: tasks and agent sleep and wake together.
    """
    write_atomically(directory / LEASE_FILE, repr(time.monotonic() + seconds))


def lease_expired(directory: Path) -> bool:
    """Whether no agent has renewed the lease in time; a lost lease file counts as expired."""
    try:
        return time.monotonic() > float((directory / LEASE_FILE).read_text())
    except (OSError, ValueError):
        return True


def printable(text: str) -> str:
    """The text without what a terminal obeys and what UTF-8 cannot hold (exceptions may say anything)."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def write_atomically(path: Path, text: str, mode: int = 0o666) -> None:
    """Replaces a file at once: readers see the old or the new text, never a part. ``mode`` is of ``open``."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise

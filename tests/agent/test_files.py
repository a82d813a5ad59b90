"""Spools, the agent's own events, and the attempt directory."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from pathlib import Path

import pytest

from agent.artifacts import GivenFile
from agent.attempts import LOG_TAIL_LINES, AttemptDirectory, Manifest
from agent.domain import (
    AttemptEnded,
    AttemptId,
    CheckpointSaved,
    Failure,
    Limits,
    Report,
    StopReason,
    TaskEnded,
    TaskLease,
    TaskReady,
    TaskResult,
    TaskStarted,
)
from agent.event_log import EventLog
from agent.leases import NotEnoughError
from agent.spool import CHUNK_BYTES, SpoolReader
from agent.streams import Subscription
from nhop_models.contract import TASKS_FOLDER, FailureKind, RecordKind, SpoolWriter, TaskId, TaskStatus

TASK = TaskId.parse("worker/0")
ATTEMPT = AttemptId("s", 1, 1)


def report(writer: SpoolWriter, step: int, **metrics: float) -> None:
    values = {"step": step, "train_loss": 0.5, "val_loss": None, "metrics": metrics}
    writer.append(RecordKind.REPORT, values)


@pytest.fixture(autouse=True)
def tasks_folder(tmp_path: Path) -> None:
    (tmp_path / TASKS_FOLDER).mkdir()


@pytest.fixture
def writer(tmp_path: Path) -> SpoolWriter:
    return SpoolWriter(tmp_path, TASK)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / TASKS_FOLDER / "worker-0.reports"


def steps(reader: SpoolReader, limit: int = 100) -> list[int]:
    return [kind.step for _, _, kind in reader.read(limit) if isinstance(kind, Report)]


# --- files for the attempt ------------------------------------------------------------------


def test_no_room_for_a_file_is_known_before_it_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = os.statvfs_result((512, 512, 10, 1, 1, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    with pytest.raises(NotEnoughError, match="513 bytes are wanted, 512 are free") as caught:
        GivenFile(tmp_path, "restore.npz", 513).__enter__()
    assert caught.value.resource == "DISK"


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(NotEnoughError),
        GivenFile(tmp_path, "restore.npz", 5) as file,
    ):
        file.write(b"12")
        monkeypatch.setattr(file, "_file", full)
        file.write(b"345")
    assert [path.name for path in tmp_path.iterdir()] == [TASKS_FOLDER]


# --- spools ---------------------------------------------------------------------------------


def test_a_spool_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    assert SpoolReader(tmp_path / "none").read(10) == []


def test_a_checkpoint_is_an_event_of_its_task(writer: SpoolWriter, path: Path) -> None:
    writer.append(RecordKind.CHECKPOINT, {"step": 500, "size": 12})
    ((number, _, kind),) = SpoolReader(path).read(10)
    assert (number, kind) == (1, CheckpointSaved(500, 12))


def test_records_are_numbered_from_one(writer: SpoolWriter, path: Path) -> None:
    writer.append(RecordKind.READY, {})
    report(writer, 5)
    records = SpoolReader(path).read(10)
    assert [(number, type(kind)) for number, _, kind in records] == [(1, TaskReady), (2, Report)]


def test_reading_goes_on_where_it_stopped(writer: SpoolWriter, path: Path) -> None:
    reader = SpoolReader(path)
    report(writer, 1)
    reader.read(10)
    report(writer, 2)
    assert steps(reader) == [2]


def test_no_more_is_read_than_asked_for(writer: SpoolWriter, path: Path) -> None:
    reader = SpoolReader(path)
    for step in range(5):
        report(writer, step)
    assert [steps(reader, 2), steps(reader, 2), steps(reader, 2)] == [[0, 1], [2, 3], [4]]


def test_what_the_receiver_has_is_skipped(writer: SpoolWriter, path: Path) -> None:
    for step in range(5):
        report(writer, step)
    assert [number for number, _, _ in SpoolReader(path, skip=3).read(10)] == [4, 5]


def test_skipping_reaches_over_many_chunks(writer: SpoolWriter, path: Path) -> None:
    metrics = {f"metric-{n}": 1.0 for n in range(1000)}
    count = 3 * CHUNK_BYTES // 15_000
    for step in range(count):
        report(writer, step, **metrics)
    assert steps(SpoolReader(path, skip=count - 1)) == [count - 1]


def test_a_record_larger_than_a_chunk_is_read(writer: SpoolWriter, path: Path) -> None:
    report(writer, 1, **{f"metric-{n}": 1.0 for n in range(20_000)})
    report(writer, 2)
    reader = SpoolReader(path)
    assert steps(reader) + steps(reader) == [1, 2]


def test_half_a_record_is_waited_for(writer: SpoolWriter, path: Path) -> None:
    report(writer, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    reader = SpoolReader(path)
    assert steps(reader) == []
    path.write_bytes(whole)
    assert steps(reader) == [1]


def test_records_before_a_damage_are_used_and_the_damage_is_logged(
    writer: SpoolWriter, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(3):
        report(writer, step)
    data = bytearray(path.read_bytes())
    data[-2] ^= 0xFF
    path.write_bytes(data)
    reader = SpoolReader(path)
    with caplog.at_level(logging.WARNING):
        assert steps(reader) == [0, 1]
        assert steps(reader) == []
    assert caplog.text.count("damaged after record 2") == 1


def test_a_record_without_its_values_counts_as_damage(writer: SpoolWriter, path: Path) -> None:
    report(writer, 1)
    writer.append(RecordKind.REPORT, {"step": "many"})
    assert steps(SpoolReader(path)) == [1]


# --- the agent's own events -----------------------------------------------------------------

EVENTS = (
    TaskStarted(TASK, 4711, 99),
    TaskEnded(
        TASK,
        TaskResult(
            TaskStatus.FAILED,
            Failure(FailureKind.DATA, "no rows", "trace"),
            step=3,
            train_loss=0.5,
            metrics={"m": 1.0},
            exit_code=0,
        ),
    ),
    AttemptEnded(StopReason.FAILED),
)


def test_events_outlive_the_agent(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "agent.reports")
    for number, event in enumerate(EVENTS):
        log.append(float(number), event)
    read = EventLog.read(tmp_path / "agent.reports")
    assert list(read.events) == [(float(number), event) for number, event in enumerate(EVENTS)]
    assert read.ended


def test_a_damaged_tail_of_events_is_cut_off_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "agent.reports"
    log = EventLog(path)
    log.append(1.0, EVENTS[0])
    with path.open("ab") as file:
        file.write(b"\x10\0\0\0half")
    EventLog.read(path).append(2.0, EVENTS[2])
    assert [event for _, event in EventLog.read(path).events] == [EVENTS[0], EVENTS[2]]


def test_a_new_agent_goes_on_with_numbers_that_no_earlier_one_gave(tmp_path: Path) -> None:
    path = tmp_path / "agent.reports"
    log = EventLog(path)
    log.append(1.0, EVENTS[0])
    kept = path.stat().st_size
    highest = 0
    for start in range(2):  # each time the power is lost before the disk has what follows
        for event in EVENTS[1:]:
            log.append(2.0, event)
        assert list(log.numbers) == sorted(set(log.numbers))
        assert log.numbers[1] > highest
        highest = log.numbers[-1]
        assert highest == len(EVENTS) or start
        os.truncate(path, kept)
        log = EventLog.read(path)
        assert list(log.numbers) == [1]
    path.unlink()
    log = EventLog.read(path)
    log.append(3.0, EVENTS[-1])
    assert log.numbers[0] > highest


def test_numbers_outlive_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "agent.reports"
    EventLog(path).append(1.0, EVENTS[0])
    log = EventLog.read(path)
    log.append(2.0, EVENTS[2])
    assert EventLog.read(path).numbers == log.numbers
    assert log.numbers[0] == 1


def test_an_event_that_cannot_be_written_is_kept_and_written_later(tmp_path: Path) -> None:
    path = tmp_path / "later" / "agent.reports"
    log = EventLog(path)
    log.append(1.0, EVENTS[0])
    path.parent.mkdir()
    log.append(2.0, EVENTS[2])
    assert [event for _, event in EventLog.read(path).events] == [EVENTS[0], EVENTS[2]]


# --- the attempt directory ------------------------------------------------------------------


def test_a_manifest_survives_the_file() -> None:
    manifest = Manifest((TaskLease(TASK, 1, 20_001),), Limits(run=5.0))
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_the_log_tail_is_bounded(tmp_path: Path) -> None:
    directory = AttemptDirectory(tmp_path)
    directory.log_path(TASK).write_text("".join(f"line {n}\n" for n in range(10_000)))
    lines = directory.log_tail(TASK).splitlines()
    assert (len(lines), lines[-1]) == (LOG_TAIL_LINES, "line 9999")


def test_an_attempts_name_is_its_directorys() -> None:
    attempt = AttemptId("a-t1-a1", 20, 3)
    assert AttemptId.parse(str(attempt)) == attempt


@pytest.mark.parametrize("name", ["..", "x", "x-t0-a1", "X-t1-a1", "x-t1-a1/..", "-t1-a1"])
def test_other_names_are_no_attempts(name: str) -> None:
    with pytest.raises(ValueError, match="not an attempt"):
        AttemptId.parse(name)


# --- subscriptions --------------------------------------------------------------------------


class _Attempt:
    def __init__(self, directory: Path) -> None:
        self.id = ATTEMPT
        self.directory = AttemptDirectory(directory)
        self.log = EventLog(directory / "agent.reports")


async def test_a_tasks_end_waits_for_its_reports(tmp_path: Path, writer: SpoolWriter) -> None:
    attempt = _Attempt(tmp_path)
    for event in EVENTS:
        attempt.log.append(1.0, event)
    for step in range(1200):
        report(writer, step)
    subscription = Subscription("s", {}, [attempt])
    batches = [await subscription.next_batch() for _ in range(3)]
    assert [len(batch) for batch in batches] == [500, 500, 203]
    assert [event.source for event in batches[2][-3:]] == ["worker/0", "agent", "agent"]


async def test_a_batch_reads_no_more_of_a_spool_than_it_sends(tmp_path: Path, writer: SpoolWriter) -> None:
    attempt = _Attempt(tmp_path)
    attempt.log.append(1.0, EVENTS[0])
    for step in range(600):
        report(writer, step)
    subscription = Subscription("s", {}, [attempt])
    await subscription.next_batch()
    assert not subscription.emptied.is_set()
    assert [event.sequence for event in await subscription.next_batch()] == list(range(500, 601))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EAGAIN])
async def test_without_descriptors_nothing_is_left_out(
    tmp_path: Path, writer: SpoolWriter, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("agent.streams.BLOCKED_PAUSE", 0.01)
    attempt = _Attempt(tmp_path)
    for event in EVENTS:
        attempt.log.append(1.0, event)
    report(writer, 1)
    refusals = iter([OSError(number, "none left")] * 3)
    read = SpoolReader.read

    def refused(reader: SpoolReader, limit: int) -> object:
        if error := next(refusals, None):
            raise error
        return read(reader, limit)

    monkeypatch.setattr(SpoolReader, "read", refused)
    subscription = Subscription("s", {}, [attempt])
    async with asyncio.timeout(10):
        events = await subscription.next_batch() + await subscription.next_batch()
    assert [event.source for event in events] == ["agent", "worker/0", "agent", "agent"]


async def test_a_spool_that_can_never_be_read_ends_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = _Attempt(tmp_path)
    attempt.log.append(1.0, EVENTS[0])

    def broken(reader: SpoolReader, limit: int) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(SpoolReader, "read", broken)
    with pytest.raises(OSError, match="Input/output error"):
        await Subscription("s", {}, [attempt]).next_batch()


# --- files that the system does not let be read ---------------------------------------------


def test_a_log_that_cannot_be_read_has_no_tail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / TASKS_FOLDER / "worker-0.log").mkdir()
    assert AttemptDirectory(tmp_path).log_tail(TASK) == ""
    assert "cannot read" in caplog.text


def test_an_outcome_that_cannot_be_read_is_no_fault_of_the_users(tmp_path: Path) -> None:
    (tmp_path / TASKS_FOLDER / "worker-0.outcome.json").mkdir()
    outcome = AttemptDirectory(tmp_path).read_outcome(TASK)
    assert outcome is not None
    assert (outcome.status, outcome.failure_kind) == (TaskStatus.FAILED, FailureKind.RESOURCES)


def test_a_lost_task_whose_files_cannot_be_removed_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / TASKS_FOLDER / "worker-0.log").mkdir()
    AttemptDirectory(tmp_path).forget_task(TASK)
    assert "cannot remove" in caplog.text


def test_an_attempt_that_cannot_be_renamed_is_deleted_all_the_same(tmp_path: Path) -> None:
    path, in_the_way = tmp_path / "s-t1-a1", tmp_path / ".s-t1-a1" / "file"
    path.mkdir()
    in_the_way.parent.mkdir()
    in_the_way.touch()
    directory = AttemptDirectory(path)
    directory.discard()
    directory.delete()
    assert not path.exists()

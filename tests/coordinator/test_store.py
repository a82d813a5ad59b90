from __future__ import annotations

import dataclasses
import math
import sqlite3

import pytest

from coordinator.domain import (
    AttemptId,
    Failure,
    Report,
    Reports,
    Stage,
    StageBudget,
    Study,
    StudyState,
    TaskResult,
    Trial,
    TrialCounts,
    TrialState,
)
from coordinator.errors import StudyFailedError, UsageError
from coordinator.instructions import AttemptRecord, TaskRecord
from coordinator.store import Store
from nhop_models.contract import FailureKind, TaskId, TaskStatus
from tests.coordinator.store_reader import read_reports, read_study, read_trials
from tests.coordinator.studies import SPACE, make_spec

CHIEF = TaskId.parse("worker/0")
ATTEMPT = AttemptId("s1", 1, 1)
FAILED = Trial(
    number=1,
    stage=1,
    state=TrialState.FAILED,
    parameters={"hidden_layers": [4, 5], "x": 0.5},
    failure=Failure(FailureKind.DATA, "no", "log"),
    attempts=2,
    seconds=1.5,
    hosts=("a", "b"),
    notes=("worker/1 was lost",),
)
COMPLETED = Trial(
    2, 1, TrialState.COMPLETED, {"x": 1}, loss=0.1, train_loss=0.2, val_loss=0.1, attempts=1,
    metrics={"mae": 0.25},
)  # fmt: skip
STUDY = Study(
    "s1", StudyState.COMPLETED, (Stage(1, StageBudget(10, 2), SPACE, COMPLETED),), 1,
    TrialCounts(total=2, completed=1, failed=1), COMPLETED, "", 1000.0, 1010.0, 2, "no predictions",
)  # fmt: skip


def report(sequence, **changes):
    values = {"step": 1, "train_loss": 0.5, "val_loss": None, "metrics": {}, "at": 1001.0, **changes}
    return Report(ATTEMPT, CHIEF, sequence, **values)


def said(*reports):
    return [Reports(ATTEMPT, CHIEF, [dataclasses.astuple(report)[2:] for report in reports])]


@pytest.fixture
async def store(tmp_path):
    store = Store(tmp_path / "study.db", make_spec())
    await store.open()
    yield store
    await store.close()


async def test_a_study_is_read_as_it_was_written(store, tmp_path):
    await store.commit([FAILED, COMPLETED, STUDY.stages[0], STUDY], [])
    assert read_study(tmp_path / "study.db") == STUDY
    assert read_trials(tmp_path / "study.db") == (FAILED, COMPLETED)


async def test_the_newest_state_replaces_the_older(store, tmp_path):
    await store.commit([Trial(2, 1, TrialState.RUNNING, {"x": 1})], [])
    await store.commit([COMPLETED], [])
    assert read_trials(tmp_path / "study.db") == (COMPLETED,)


async def test_reports_are_kept_once(store, tmp_path):
    await store.commit([STUDY], said(report(2), report(3, metrics={"mae": 1.0}, val_loss=0.25)))
    await store.commit([], said(report(3, step=99)))
    reports = read_reports(tmp_path / "study.db")
    assert reports == (report(2), report(3, metrics={"mae": 1.0}, val_loss=0.25))


async def test_of_many_reports_at_once_none_is_missing(store, tmp_path):
    """More than one statement can carry."""
    some = [report(number) for number in range(1, 2502)]
    await store.commit([], said(*some[:2000]))
    await store.commit([STUDY], said(*some))
    assert read_reports(tmp_path / "study.db") == tuple(some)


async def test_of_two_states_at_once_the_last_counts(store, tmp_path):
    running = Trial(2, 1, TrialState.RUNNING, {"x": 1})
    await store.commit([running, FAILED, COMPLETED], [])
    assert read_trials(tmp_path / "study.db") == (FAILED, COMPLETED)


async def test_a_loss_that_is_not_a_number_survives(store, tmp_path):
    await store.commit([STUDY], said(report(2, train_loss=math.nan), report(3, train_loss=math.inf)))
    losses = [r.train_loss for r in read_reports(tmp_path / "study.db")]
    assert math.isnan(losses[0])
    assert losses[1] == math.inf


async def test_attempts_and_task_outcomes_are_kept(store, tmp_path):
    result = TaskResult(
        TaskStatus.COMPLETED, step=10, train_loss=0.5, phase_seconds={"steps": 1.5}, exit_code=0,
        artifacts={"model.keras": 7}, notes=("slow",),
    )  # fmt: skip
    await store.commit(
        [AttemptRecord(ATTEMPT, "ended", {"a": (CHIEF,)}, 1.0, 2.0), TaskRecord(ATTEMPT, "a", CHIEF, result)],
        [],
    )
    with sqlite3.connect(tmp_path / "study.db") as connection:
        (row,) = connection.execute("SELECT state, placement, ended_at FROM attempts").fetchall()
        assert row == ("ended", '{"a": ["worker/0"]}', 2.0)
        (row,) = connection.execute("SELECT task, status, phase_seconds, exit_code FROM tasks").fetchall()
        assert row == ("worker/0", "COMPLETED", '{"steps": 1.5}', 0)
        (row,) = connection.execute("SELECT artifacts, notes FROM tasks").fetchall()
        assert row == ('{"model.keras": 7}', '["slow"]')
    connection.close()


async def test_a_transaction_is_all_or_nothing(store, tmp_path):
    broken = Trial(3, None, TrialState.RUNNING, {})  # type: ignore[arg-type]
    with pytest.raises(StudyFailedError, match=r"study\.db"):
        await store.commit([COMPLETED, broken], [])
    await store.commit([FAILED], [])
    assert read_trials(tmp_path / "study.db") == (FAILED,)


async def test_a_commit_survives_without_closing(store, tmp_path):
    await store.commit([COMPLETED], [])
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("study.db", "study.db-wal"):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    assert read_trials(copy / "study.db") == (COMPLETED,)


async def test_the_file_says_its_version(store, tmp_path):
    with sqlite3.connect(tmp_path / "study.db") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_another_version_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UsageError, match="version 99"):
        read_trials(tmp_path / "study.db")


def test_no_file_at_all(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_study(tmp_path / "study.db")

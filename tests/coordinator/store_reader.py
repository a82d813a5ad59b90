"""Reads study.db back for the tests, also while it is written."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from coordinator import schema
from coordinator.domain import (
    AttemptId,
    Failure,
    Report,
    Stage,
    StageBudget,
    Study,
    StudyState,
    Trial,
    TrialCounts,
    TrialState,
)
from coordinator.errors import UsageError
from coordinator.search.space import space_from_json
from nhop_models.contract import FailureKind, TaskId


def read_trials(path: Path) -> tuple[Trial, ...]:
    """All trials of a study.db, by number."""
    with _open(path) as connection:
        return tuple(_trial(row) for row in connection.execute("SELECT * FROM trials ORDER BY number"))


def read_study(path: Path) -> Study:
    """The study of a study.db; raises UsageError where there is none."""
    trials = {trial.number: trial for trial in read_trials(path)}
    with _open(path) as connection:
        row = connection.execute("SELECT * FROM study").fetchone()
        if row is None:
            raise UsageError(f"{path}: holds no study")
        stages = [
            Stage(
                number=stage["number"],
                budget=StageBudget(stage["train_epoch"], stage["opt_epoch"]),
                space=space_from_json(json.loads(stage["space"])),
                best=trials.get(stage["best_trial"]),
            )
            for stage in connection.execute("SELECT * FROM stages ORDER BY number")
        ]
    counts = {state.value: sum(trial.state is state for trial in trials.values()) for state in TrialState}
    return Study(
        study_id=row["study_id"],
        state=StudyState(row["state"]),
        stages=tuple(stages),
        number_of_stages=row["number_of_stages"],
        counts=TrialCounts(total=row["total_trials"], **counts),
        best=trials.get(row["best_trial"]),
        reason=row["reason"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        model_trial=row["model_trial"],
        model_problem=row["model_problem"],
    )


def read_reports(path: Path, trial: int | None = None) -> tuple[Report, ...]:
    """Reports of a study.db by trial, attempt, source and sequence; of one trial where it is given."""
    with _open(path) as connection:
        (study_id,) = connection.execute("SELECT study_id FROM study").fetchone()
        rows = connection.execute(
            "SELECT * FROM reports WHERE ? IS NULL OR trial = ? ORDER BY trial, attempt, source, sequence",
            (trial, trial),
        )
        return tuple(
            Report(
                AttemptId(study_id, row["trial"], row["attempt"]),
                TaskId.parse(row["source"]),
                row["sequence"],
                row["step"],
                math.nan if row["train_loss"] is None else row["train_loss"],
                row["val_loss"],
                json.loads(row["metrics"]) if row["metrics"] else {},
                row["at"],
            )
            for row in rows
        )


@contextlib.contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != schema.VERSION:
            raise UsageError(f"{path}: is of version {version}, this NHOP reads version {schema.VERSION}")
        yield connection


def _trial(row: sqlite3.Row) -> Trial:
    failure = None
    if row["failure_kind"] is not None:
        failure = Failure(FailureKind(row["failure_kind"]), row["failure_message"], row["failure_detail"])
    return Trial(
        number=row["number"],
        stage=row["stage"],
        state=TrialState(row["state"]),
        parameters=json.loads(row["parameters"]),
        loss=row["loss"],
        train_loss=row["train_loss"],
        val_loss=row["val_loss"],
        failure=failure,
        attempts=row["attempts"],
        seconds=row["seconds"],
        hosts=tuple(json.loads(row["hosts"])),
        notes=tuple(json.loads(row["notes"])),
        metrics=json.loads(row["metrics"]),
    )

"""The truth about a study: SQLite, one connection, one writer thread, many changes a commit."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from coordinator import schema
from coordinator.domain import Failure, Reports, Stage, Study, StudySpec, Trial
from coordinator.errors import StudyFailedError
from coordinator.instructions import AttemptRecord, TaskRecord
from coordinator.search.space import space_to_json

Item = Study | Stage | Trial | AttemptRecord | TaskRecord
Row = tuple[Any, ...]

ROWS_A_STATEMENT = 1000
"""Rows are inserted many at once: each statement gives the interpreter's lock away, and a busy loop
lets it come back after some milliseconds only. That would be the time of a row."""

CACHED_STATEMENTS = 32
"""Of as many rows each as there happened to be."""


class Store:
    """Writes study.db. What ``commit`` was given is durable when it returns.

    Raises StudyFailedError where the file cannot be written.
    """

    def __init__(self, path: Path, spec: StudySpec) -> None:
        self._path = path
        self._spec = spec
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._connection: sqlite3.Connection | None = None
        self._parameters = 0

    async def open(self) -> None:
        """Makes the file with its tables."""
        await self._run(self._open)

    async def commit(self, items: Sequence[Item], reports: Sequence[Reports]) -> None:
        """Writes everything in one transaction.

        Of several states of one thing the last is kept, of several reports of one number the first.
        """
        if items or reports:
            await self._run(self._commit, items, reports)

    async def close(self) -> None:
        """Closes the file; study.db is then whole by itself."""
        try:
            await self._run(self._close)
        finally:
            self._thread.shutdown()

    async def _run(self, function: Any, *arguments: Any) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
        except (sqlite3.Error, OSError) as error:
            raise StudyFailedError(
                f"{self._path}: cannot be written ({error}); is the disk full, or was the file removed?"
            ) from error

    # --- in the writer thread -----------------------------------------------------------------

    def _open(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None, cached_statements=CACHED_STATEMENTS)
        self._parameters = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
        self._connection = connection
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(f"BEGIN; {schema.TABLES} PRAGMA user_version = {schema.VERSION}; COMMIT;")

    def _commit(self, items: Sequence[Item], reports: Sequence[Reports]) -> None:
        if self._connection is None:
            raise StudyFailedError(f"{self._path}: nothing can be stored, it is not open")
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            for insert, rows in self._rows(items).items():
                self._insert(connection, insert, rows.values())
            self._insert(connection, schema.REPORT, itertools.chain.from_iterable(map(_report_rows, reports)))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _rows(self, items: Iterable[Item]) -> dict[schema.Insert, dict[Row, Row]]:
        """The last row of each key."""
        rows: dict[schema.Insert, dict[Row, Row]] = {}
        for item in items:
            insert, row = self._row(item)
            rows.setdefault(insert, {})[row[: insert.keys]] = row
        return rows

    def _insert(self, connection: sqlite3.Connection, insert: schema.Insert, rows: Iterable[Row]) -> None:
        rows = iter(rows)
        most = min(ROWS_A_STATEMENT, self._parameters // insert.columns)
        while some := list(itertools.islice(rows, most)):
            connection.execute(insert.sql(len(some)), list(itertools.chain.from_iterable(some)))

    def _row(self, item: Item) -> tuple[schema.Insert, Row]:
        match item:
            case Trial():
                return schema.TRIAL, _trial_row(item)
            case TaskRecord():
                return schema.TASK, _task_row(item)
            case AttemptRecord():
                return schema.ATTEMPT, _attempt_row(item)
            case Stage():
                space = json.dumps(space_to_json(item.space))
                budget = item.budget
                row = (item.number, budget.train_epoch, budget.opt_epoch, space, _number(item.best))
                return schema.STAGE, row
            case Study():
                return schema.STUDY, self._study_row(item)

    def _study_row(self, study: Study) -> Row:
        spec = self._spec
        return (
            study.study_id,
            study.state.value,
            study.reason,
            spec.seed,
            spec.objective.value,
            study.number_of_stages,
            study.counts.total,
            _number(study.best),
            study.started_at,
            study.ended_at,
            study.model_trial,
            study.model_problem,
        )


def _number(trial: Trial | None) -> int | None:
    return trial.number if trial else None


def _failure_row(failure: Failure | None) -> tuple[str | None, str | None, str | None]:
    return (failure.kind.value, failure.message, failure.detail) if failure else (None, None, None)


def _trial_row(trial: Trial) -> Row:
    return (
        trial.number,
        trial.stage,
        trial.state.value,
        json.dumps(dict(trial.parameters)),
        trial.loss,
        trial.train_loss,
        trial.val_loss,
        *_failure_row(trial.failure),
        trial.attempts,
        trial.seconds,
        json.dumps(trial.hosts),
        json.dumps(trial.notes),
        json.dumps(dict(trial.metrics)),
    )


def _attempt_row(record: AttemptRecord) -> Row:
    placement = {host: [str(task) for task in tasks] for host, tasks in record.placement.items()}
    return (
        record.attempt.trial,
        record.attempt.attempt,
        record.state,
        json.dumps(placement),
        record.started_at,
        record.ended_at,
        *_failure_row(record.failure),
    )


def _task_row(record: TaskRecord) -> Row:
    result = record.result
    return (
        record.attempt.trial,
        record.attempt.attempt,
        str(record.task),
        record.host,
        result.status.value,
        *_failure_row(result.failure),
        result.step,
        result.train_loss,
        result.val_loss,
        json.dumps(dict(result.metrics)),
        json.dumps(dict(result.phase_seconds)),
        result.exit_code,
        result.signal,
        json.dumps(dict(result.artifacts)),
        json.dumps(result.notes),
    )


def _report_rows(reports: Reports) -> Iterable[Row]:
    source = (reports.attempt.trial, reports.attempt.attempt, str(reports.task))
    for sequence, step, train_loss, val_loss, metrics, at in reports.rows:
        words = json.dumps(dict(metrics)) if metrics else None
        yield (*source, sequence, step, train_loss, val_loss, words, at)

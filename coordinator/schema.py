"""The tables of study.db."""

from __future__ import annotations

from dataclasses import dataclass

VERSION = 2

TABLES = """
CREATE TABLE study (
    study_id TEXT PRIMARY KEY, state TEXT NOT NULL, reason TEXT NOT NULL, seed INTEGER NOT NULL,
    objective TEXT NOT NULL, number_of_stages INTEGER NOT NULL, total_trials INTEGER NOT NULL,
    best_trial INTEGER, started_at REAL NOT NULL, ended_at REAL,
    model_trial INTEGER, model_problem TEXT NOT NULL
);
CREATE TABLE stages (
    number INTEGER PRIMARY KEY, train_epoch INTEGER NOT NULL, opt_epoch INTEGER NOT NULL,
    space TEXT NOT NULL, best_trial INTEGER
);
CREATE TABLE trials (
    number INTEGER PRIMARY KEY, stage INTEGER NOT NULL, state TEXT NOT NULL, parameters TEXT NOT NULL,
    loss REAL, train_loss REAL, val_loss REAL, failure_kind TEXT, failure_message TEXT, failure_detail TEXT,
    attempts INTEGER NOT NULL, seconds REAL, hosts TEXT NOT NULL, notes TEXT NOT NULL,
    metrics TEXT NOT NULL
);
CREATE TABLE attempts (
    trial INTEGER NOT NULL, attempt INTEGER NOT NULL, state TEXT NOT NULL, placement TEXT NOT NULL,
    started_at REAL NOT NULL, ended_at REAL, failure_kind TEXT, failure_message TEXT, failure_detail TEXT,
    PRIMARY KEY (trial, attempt)
) WITHOUT ROWID;
CREATE TABLE tasks (
    trial INTEGER NOT NULL, attempt INTEGER NOT NULL, task TEXT NOT NULL, host TEXT NOT NULL,
    status TEXT NOT NULL, failure_kind TEXT, failure_message TEXT, failure_detail TEXT,
    step INTEGER NOT NULL, train_loss REAL, val_loss REAL, metrics TEXT NOT NULL,
    phase_seconds TEXT NOT NULL, exit_code INTEGER, signal INTEGER,
    artifacts TEXT NOT NULL, notes TEXT NOT NULL,
    PRIMARY KEY (trial, attempt, task)
) WITHOUT ROWID;
-- train_loss is NULL where it was not a number: SQLite has no NaN.
CREATE TABLE reports (
    trial INTEGER NOT NULL, attempt INTEGER NOT NULL, source TEXT NOT NULL, sequence INTEGER NOT NULL,
    step INTEGER NOT NULL, train_loss REAL, val_loss REAL, metrics TEXT, at REAL NOT NULL,
    PRIMARY KEY (trial, attempt, source, sequence)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Insert:
    """An INSERT of rows of so many ``columns``, of which the first ``keys`` are the primary key."""

    head: str
    columns: int
    keys: int
    tail: str = ""

    def sql(self, rows: int) -> str:
        """The statement for this many rows."""
        row = f"({', '.join('?' * self.columns)})"
        return f"{self.head} VALUES {', '.join([row] * rows)}{self.tail}"


def upsert(table: str, keys: str, values: str) -> Insert:
    """Inserts rows, or replaces their values where the keys are taken.

    ``keys`` and ``values`` are names of columns, separated by spaces.
    """
    columns = [*keys.split(), *values.split()]
    changes = ", ".join(f"{column} = excluded.{column}" for column in values.split())
    return Insert(
        f"INSERT INTO {table} ({', '.join(columns)})",
        len(columns),
        len(keys.split()),
        f" ON CONFLICT ({', '.join(keys.split())}) DO UPDATE SET {changes}",
    )


_FAILURE = "failure_kind failure_message failure_detail"

STUDY = upsert(
    "study",
    "study_id",
    "state reason seed objective number_of_stages total_trials best_trial started_at ended_at "
    "model_trial model_problem",
)
STAGE = upsert("stages", "number", "train_epoch opt_epoch space best_trial")
TRIAL = upsert(
    "trials",
    "number",
    f"stage state parameters loss train_loss val_loss {_FAILURE} attempts seconds hosts notes metrics",
)
ATTEMPT = upsert("attempts", "trial attempt", f"state placement started_at ended_at {_FAILURE}")
TASK = upsert(
    "tasks",
    "trial attempt task",
    f"host status {_FAILURE} step train_loss val_loss metrics phase_seconds exit_code signal artifacts notes",
)
REPORT = Insert("INSERT OR IGNORE INTO reports", columns=9, keys=4)

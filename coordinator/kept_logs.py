"""The logs of failed tasks as an output directory keeps them: ``logs/trial-3-attempt-1-worker-0.log``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from nhop_models.contract import TaskId

LOGS_FOLDER = "logs"
"""Folder of an output directory that holds them."""

_NAME = re.compile(r"trial-([1-9][0-9]*)-attempt-([1-9][0-9]*)-((?:ps|worker)-[0-9]+)\.log")


def kept_log_name(trial: int, attempt: int, task: TaskId) -> str:
    """The file's name within the folder."""
    return f"trial-{trial}-attempt-{attempt}-{task.file_stem}.log"


def kept_logs(folder: Path, trial: int) -> dict[tuple[int, TaskId], Path]:
    """Those of a trial by attempt and task, the earliest attempt first; none where there is no folder."""
    found = {}
    for path in folder.glob(f"trial-{trial}-attempt-*.log"):
        match = _NAME.fullmatch(path.name)
        if match is not None:
            found[int(match[2]), TaskId.parse(match[3])] = path
    return dict(sorted(found.items()))


def why_not_kept(trial: int, task: TaskId, kept: Iterable[tuple[int, TaskId]]) -> str:
    """Says that only logs of failed tasks are kept, and which ones there are of the trial."""
    there = ", ".join(f"{owner} of attempt {attempt}" for attempt, owner in kept)
    there = f"; of trial {trial} there is {there}" if there else ""
    return f"the log of {task} of trial {trial} was not kept: only logs of tasks that failed are{there}"

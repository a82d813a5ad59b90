"""A parameter server: holds the parameters until it is told to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nhop_models.contract import Outcome, TaskStatus
from nhop_models.runtime import cluster

if TYPE_CHECKING:
    from nhop_models.runtime.task import Task


def run(task: Task) -> Outcome:
    """Serves parameters; returns when the task is asked to end."""
    with task.reporter.phase("session"):
        server = cluster.start_server(task.spec, task.identity)
    task.reporter.ready()
    task.stop.wait()
    del server  # it has to live until here
    return task.outcome(TaskStatus.STOPPED)

"""What a new agent does about the attempts that an earlier one left in the state directory.

Attempts that had ended keep their events until a coordinator has them. Of the others, the tasks
that still live are ended, and the coordinator is told what became of each: its own outcome where it
wrote one, HOST_LOST otherwise. A process counts as a task only if pid and start time are the
task's.
"""

from __future__ import annotations

import logging
from pathlib import Path

from agent.attempt import Attempt
from agent.attempts import DISCARDED_PREFIX, AttemptDirectory
from agent.domain import AttemptId, AttemptState, Limits, TaskEnded, TaskStarted, TaskState
from agent.event_log import EventLog
from agent.events import AgentRestarted, TaskForkWithdrawn
from agent.machine import AttemptMachine
from agent.processes import start_ticks
from agent.runtime import Agent
from nhop_models.contract import TaskId, TaskStatus

logger = logging.getLogger(__name__)


def recover(agent: Agent) -> None:
    """Takes over every attempt directory; to be called once, before the agent serves."""
    for path in sorted(agent.attempts_dir.iterdir()):
        directory = AttemptDirectory(path, agent.places.user)
        if path.name.startswith(DISCARDED_PREFIX):
            directory.delete()
            continue
        try:
            attempt = _load(directory, path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            # Its lease goes with it, so that a task which nobody knows ends by itself.
            logger.error("%s: not an attempt that can be taken over (%s); it is removed", path, error)  # noqa: TRY400
            directory.delete()
            continue
        agent.take_over(attempt)
        if attempt.active:
            _end(agent, attempt)


def _load(directory: AttemptDirectory, path: Path) -> Attempt:
    attempt_id = AttemptId.parse(path.name)
    manifest = directory.read_manifest()
    log = EventLog.read(directory.events_path)
    tasks = [lease.task for lease in manifest.leases]
    forked = [event.task for _, event in log.events if isinstance(event, TaskStarted)]
    ended = [event.task for _, event in log.events if isinstance(event, TaskEnded)]
    if manifest.limits is None and not log.ended:
        machine = AttemptMachine(tasks, None)
    else:
        machine = AttemptMachine.restored(tasks, manifest.limits or Limits(), forked, ended, over=log.ended)
    return Attempt(attempt_id, machine, directory, log, manifest)


def _end(agent: Agent, attempt: Attempt) -> None:
    logger.warning("%s was under way when an earlier agent ended; it is ended", attempt.id)
    attempt.directory.end_lease()
    running = attempt.machine.tasks_in(TaskState.RUNNING)
    for _, event in attempt.log.events:
        if not isinstance(event, TaskStarted) or event.task not in running:
            continue
        if start_ticks(event.pid) == event.start_ticks:
            agent.watch_process(attempt, event.task, event.pid, adopted=True)
    for task in _gone(attempt):
        outcome = attempt.directory.read_outcome(task)
        if outcome is not None and outcome.status is not TaskStatus.STOPPED:
            agent.task_gone(attempt, task, None)  # it had ended by itself: that may be the attempt's result
    if attempt.machine.state in (AttemptState.PREPARED, AttemptState.RUNNING):
        agent.feed(attempt, AgentRestarted())
    for task in attempt.machine.tasks_in(TaskState.FORKING):
        agent.feed(attempt, TaskForkWithdrawn(task))
    for task in _gone(attempt):
        agent.task_gone(attempt, task, None)


def _gone(attempt: Attempt) -> list[TaskId]:
    """Tasks that were forked and are no more, the chief first."""
    gone = [task for task in attempt.machine.tasks_in(TaskState.RUNNING) if task not in attempt.pids]
    return sorted(gone, key=lambda task: (not task.is_chief, task))

"""The log of a task of a trial, wherever it is: at the agent that runs it, or as it was kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from coordinator.attempt import CHIEF
from coordinator.domain import AttemptId, Cluster, Trial
from coordinator.errors import NhopError, UsageError
from coordinator.kept_logs import kept_log_name, kept_logs, why_not_kept
from coordinator.link_errors import HostUnreachableError, LogGoneError, TransferError
from coordinator.manager import ManagedStudy
from coordinator.study_run import StudyRun
from nhop_models.contract import TaskId, TaskRole

PIECE_BYTES = 1 << 16
LOOK_PAUSE = 0.2
"""Seconds after which an attempt that is about to begin is looked at again."""

RETRY_PAUSE = 0.5
"""Seconds until a host that did not answer is asked again by a follower."""


class NoLogError(UsageError):
    """There is no such trial or task, or its log was not kept."""


class LogHostError(NhopError):
    """The host that has the log does not answer, or gives it to nobody else now."""


@dataclass(frozen=True, slots=True)
class LogPart:
    """A piece of the log of an attempt, the first of each empty; ``host`` is empty where it is not known."""

    attempt: AttemptId
    host: str
    data: bytes


def parse_task(text: str) -> TaskId:
    """From ``worker/1`` or ``ps-0``, empty for the chief; raises ValueError with what is expected."""
    try:
        return TaskId.parse(text) if text else CHIEF
    except ValueError:
        raise ValueError(f"{text!r} is not a task: ps/N or worker/N is") from None


async def read_task_log(
    managed: ManagedStudy, trial: int, task: TaskId, *, follow: bool
) -> AsyncGenerator[LogPart, None]:
    """The log of a task in all attempts of a trial that there are logs of, the oldest first.

    ``follow``: goes on with what is added and with new attempts until the trial has ended; one that has
    not begun is waited for. Raises NoLogError, and LogHostError where a host does not answer (a follower
    waits for it as long as the attempt lives) or refuses.
    """
    _check(managed, trial, task)
    seen: set[int] = set()
    while True:
        changed = managed.changed  # before the look: what changes meanwhile wakes the wait
        run, known = managed.run, managed.trials.get(trial)
        if run is not None:
            await run.logs.kept(trial)
        place = run.machine.place(trial, task) if run is not None else None
        live = place[0].attempt if place is not None else None
        # By name, not by a look at the folder: it may hold thousands, and followers come here often.
        for number in range(1, known.attempts + 1 if known is not None else 1):
            path = managed.directory.logs / kept_log_name(trial, number, task)
            if number != live and number not in seen and path.exists():
                seen.add(number)
                attempt = AttemptId(managed.spec.study_id, trial, number)
                host = _host_of_chief(known, number) if task == CHIEF else ""
                yield LogPart(attempt, host, b"")
                data = await asyncio.to_thread(path.read_bytes)
                for start in range(0, len(data), PIECE_BYTES):
                    yield LogPart(attempt, host, data[start : start + PIECE_BYTES])
        if run is not None and place is not None and place[0].attempt not in seen:
            attempt, host = place
            async with contextlib.aclosing(_read_live(run, attempt, host, task, follow=follow)) as parts:
                async for part in parts:
                    seen.add(attempt.attempt)
                    yield part
        if not follow or run is None or (known is not None and known.state.ended):
            break
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_PAUSE):
                await changed.wait()
    if not seen:
        raise NoLogError(_why_none(managed, trial, task))


async def _read_live(
    run: StudyRun, attempt: AttemptId, host: str, task: TaskId, *, follow: bool
) -> AsyncGenerator[LogPart, None]:
    """From the agent, resumed where it was away; nothing where it does not know the attempt."""
    offset, announced = 0, False
    with run.logs.reading():
        while True:
            try:
                log = run.link(host).transfers.follow_log(attempt, task, offset, follow=follow)
                async with contextlib.aclosing(log) as pieces:
                    async for data in pieces:
                        if not announced:
                            announced = True
                            yield LogPart(attempt, host, b"")
                        if data:
                            offset += len(data)
                            yield LogPart(attempt, host, data)
                if not announced:
                    yield LogPart(attempt, host, b"")
                return
            except LogGoneError:
                return
            except TransferError as error:
                raise LogHostError(str(error)) from error
            except HostUnreachableError as error:
                if not follow:
                    raise LogHostError(
                        f"the log of {task} of trial {attempt.trial} is on {host}, which cannot be reached: "
                        f"{error}"
                    ) from error
            if not run.machine.is_live(attempt):
                return
            await asyncio.sleep(RETRY_PAUSE)


def _check(managed: ManagedStudy, trial: int, task: TaskId) -> None:
    total = managed.study.counts.total
    if not 1 <= trial <= total:
        raise NoLogError(f"there is no trial {trial}: the study {managed.spec.study_id} has 1 to {total}")
    if not has_task(managed.spec.cluster, task):
        ps, workers = managed.spec.cluster.ps, managed.spec.cluster.workers
        message = f"no trial has a task {task}: each has {ps} ps and {workers} worker, counted from 0"
        raise NoLogError(message)


def has_task(cluster: Cluster, task: TaskId) -> bool:
    """Whether a trial has this task."""
    return task.index < (cluster.ps if task.role is TaskRole.PS else cluster.workers)


def _host_of_chief(trial: Trial | None, attempt: int) -> str:
    """Where the chief of an attempt ran: of the last one it is known."""
    return trial.hosts[0] if trial is not None and trial.attempts == attempt and trial.hosts else ""


def _why_none(managed: ManagedStudy, trial: int, task: TaskId) -> str:
    known = managed.trials.get(trial)
    if known is None or not known.attempts:
        if managed.run is None:
            return f"trial {trial} was never begun: the study ended before"
        return f"trial {trial} has not begun yet; --follow waits for it"
    if not known.state.ended and managed.run is not None:
        return f"trial {trial} is about to start, there is no log of {task} yet; --follow waits for it"
    return why_not_kept(trial, task, kept_logs(managed.directory.logs, trial))

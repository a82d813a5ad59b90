"""How a task ended: its own last word where there is one, its wait status otherwise."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Mapping

from agent.domain import Exit, Failure, TaskResult
from nhop_models.contract import (
    ARTIFACT_NAME,
    EXIT_NO_OUTCOME,
    EXIT_NO_TASK,
    FailureKind,
    Outcome,
    TaskId,
    TaskRole,
    TaskStatus,
)

MAX_MESSAGE_CHARACTERS = 2_000
MAX_DETAIL_CHARACTERS = 16_000
MAX_NOTES = 20
MAX_ARTIFACTS = 20
_NO_ROOM = {
    EXIT_NO_TASK: "could not use its attempt directory; is the disk of the state directory full?",
    EXIT_NO_OUTCOME: "could not write its outcome; is the disk of the state directory full?",
}


def fuse(
    task: TaskId, ending: Exit, outcome: Outcome | None, log_tail: str, *, told: bool, imposed: Failure | None
) -> TaskResult:
    """The result of a task that is gone.

    ``told``: it was asked to end. ``imposed``: the failure for which the agent ended it; it counts
    unless the task itself says that it completed or failed.
    """
    failure: Failure | None = None
    said = outcome.status if outcome is not None else None
    if outcome is not None and said is TaskStatus.FAILED:
        kind = outcome.failure_kind or FailureKind.INTERNAL
        failure = Failure(kind, outcome.message or f"{task} failed", outcome.detail or log_tail)
    elif imposed is not None and said is not TaskStatus.COMPLETED:
        last_line = log_tail.rstrip().rpartition("\n")[2]
        message = f"{imposed.message}; its log ends with: {last_line}" if last_line else imposed.message
        failure = Failure(imposed.kind, message, imposed.detail or log_tail)
    elif not told:
        failure = _unasked(task, ending, said, log_tail)
    if failure is not None:
        status = TaskStatus.FAILED
    else:
        status = TaskStatus.COMPLETED if said is TaskStatus.COMPLETED else TaskStatus.STOPPED
    word = outcome or Outcome(status)
    return TaskResult(
        status=status,
        failure=_shortened(failure),
        step=word.step,
        train_loss=word.train_loss,
        val_loss=word.val_loss,
        metrics=dict(word.metrics),
        phase_seconds=dict(word.phase_seconds),
        exit_code=ending.exit_code,
        signal=ending.signal,
        artifacts=_valid(word.artifacts),
        notes=word.notes[:MAX_NOTES],
    )


def _unasked(task: TaskId, ending: Exit, said: TaskStatus | None, log_tail: str) -> Failure | None:
    """What is wrong with the end of a task that no one asked to end; None: nothing."""
    if task.role is TaskRole.PS and said is not None:
        message = f"{task} ended although nobody in NHOP asked it to; was it stopped from outside?"
        return Failure(FailureKind.PEER_LOST, message, log_tail)
    if said is TaskStatus.COMPLETED:
        return None
    if said is TaskStatus.STOPPED:
        message = f"{task} was told to stop by someone outside NHOP (or found its agent gone)"
        return Failure(FailureKind.KILLED, message, log_tail)
    if ending.signal == signal.SIGKILL:
        message = f"{task} was killed from outside (SIGKILL); often that is the kernel, out of memory"
        return Failure(FailureKind.KILLED, message, log_tail)
    if ending.signal is not None:
        return Failure(FailureKind.CRASHED, f"{task} died of {signal_name(ending.signal)}", log_tail)
    if ending.exit_code is None:
        message = f"{task} is gone without an outcome, and its exit status was lost with the zygote"
        return Failure(FailureKind.CRASHED, message, log_tail)
    if ending.exit_code in _NO_ROOM:
        return Failure(FailureKind.RESOURCES, f"{task} {_NO_ROOM[ending.exit_code]}", log_tail)
    if task.role is TaskRole.PS:
        message = f"{task} ended with exit code {ending.exit_code}, without an outcome"
        return Failure(FailureKind.CRASHED, message, log_tail)
    message = f"{task} ended the process itself with exit code {ending.exit_code}"
    return Failure(FailureKind.USER_CODE, message, log_tail)


def signal_name(number: int) -> str:
    """As in ``SIGSEGV``; realtime signals by number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _valid(artifacts: Mapping[str, int]) -> dict[str, int]:
    """Those that can be asked for: the user's code may have had a hand in the rest."""
    good = {
        name: size
        for name, size in artifacts.items()
        if ARTIFACT_NAME.fullmatch(name) and isinstance(size, int) and 0 <= size < 2**63
    }
    return dict(itertools.islice(good.items(), MAX_ARTIFACTS))


def _shortened(failure: Failure | None) -> Failure | None:
    if failure is None:
        return None
    message, detail = failure.message, failure.detail
    if len(message) > MAX_MESSAGE_CHARACTERS:
        message = f"{message[:MAX_MESSAGE_CHARACTERS]}..."
    if len(detail) > MAX_DETAIL_CHARACTERS:
        detail = f"...{detail[-MAX_DETAIL_CHARACTERS:]}"
    return Failure(failure.kind, message, detail)

from __future__ import annotations

import pytest

from agent.domain import Exit, TaskResult
from agent.outcome import MAX_DETAIL_CHARACTERS, fuse
from nhop_models.contract import FailureKind, Outcome, TaskId, TaskStatus

WORKER = TaskId.parse("worker/1")
PS = TaskId.parse("ps/0")


def unasked(ending: Exit, outcome: Outcome | None = None, task: TaskId = WORKER) -> TaskResult:
    return fuse(task, ending, outcome, "the log", told=False, imposed=None)


@pytest.mark.parametrize(
    ("task", "ending", "kind"),
    [
        (WORKER, Exit(signal=9), FailureKind.KILLED),
        (WORKER, Exit(signal=11), FailureKind.CRASHED),
        (WORKER, Exit(exit_code=3), FailureKind.USER_CODE),
        (WORKER, Exit(exit_code=0), FailureKind.USER_CODE),
        (WORKER, Exit(), FailureKind.CRASHED),
        (WORKER, Exit(exit_code=74), FailureKind.RESOURCES),
        (PS, Exit(signal=9), FailureKind.KILLED),
        (PS, Exit(exit_code=3), FailureKind.CRASHED),
    ],
)
def test_without_an_outcome_the_wait_status_decides(task: TaskId, ending: Exit, kind: FailureKind) -> None:
    failure = unasked(ending, task=task).failure
    assert failure is not None
    assert (failure.kind, failure.detail) == (kind, "the log")


def test_an_exit_of_user_code_is_named() -> None:
    failure = unasked(Exit(exit_code=3)).failure
    assert failure is not None
    assert failure.message == "worker/1 ended the process itself with exit code 3"


def test_the_tasks_own_failure_counts() -> None:
    said = Outcome(TaskStatus.FAILED, FailureKind.DATA, "no rows", "a traceback", step=7)
    result = unasked(Exit(exit_code=0), said)
    assert result.failure is not None
    assert (result.failure.kind, result.failure.detail, result.step) == (FailureKind.DATA, "a traceback", 7)


def test_a_task_that_somebody_else_stopped_has_failed() -> None:
    failure = unasked(Exit(exit_code=0), Outcome(TaskStatus.STOPPED)).failure
    assert failure is not None
    assert failure.kind is FailureKind.KILLED


@pytest.mark.parametrize("ending", [Exit(signal=9), Exit(signal=10), Exit(signal=11), Exit(exit_code=1)])
def test_a_task_that_was_told_to_end_was_stopped_however_it_died(ending: Exit) -> None:
    result = fuse(WORKER, ending, None, "", told=True, imposed=None)
    assert (result.status, result.failure, result.signal) == (TaskStatus.STOPPED, None, ending.signal)


def test_a_long_detail_keeps_its_end() -> None:
    said = Outcome(TaskStatus.FAILED, FailureKind.DATA, "m", "x" * 100_000 + "end")
    failure = unasked(Exit(exit_code=0), said).failure
    assert failure is not None
    assert failure.detail.endswith("end")
    assert len(failure.detail) <= MAX_DETAIL_CHARACTERS + 3


def test_wait_statuses() -> None:
    statuses = [Exit.from_wait_status(s) for s in (0, 3 << 8, 9, 0x8B, None)]
    assert statuses == [Exit(exit_code=0), Exit(exit_code=3), Exit(signal=9), Exit(signal=11), Exit()]


def test_files_and_notes_of_a_task_are_passed_on() -> None:
    outcome = Outcome(TaskStatus.COMPLETED, artifacts={"model.keras": 7}, notes=("a note",))
    result = unasked(Exit(exit_code=0), outcome)
    assert (result.artifacts, result.notes) == ({"model.keras": 7}, ("a note",))


@pytest.mark.parametrize("name", ["../x", "", "a/b", "A", "x" * 65])
def test_files_that_could_not_be_asked_for_are_dropped(name: str) -> None:
    outcome = Outcome(TaskStatus.COMPLETED, artifacts={name: 7, "ok": -1})
    assert unasked(Exit(exit_code=0), outcome).artifacts == {}

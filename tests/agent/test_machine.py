from __future__ import annotations

from collections.abc import Sequence

import pytest

from agent.domain import (
    AttemptEnded,
    AttemptState,
    Exit,
    Failure,
    Limits,
    Rung,
    StopReason,
    TaskEnded,
    TaskResult,
    TaskState,
)
from agent.events import (
    AgentRestarted,
    CoordinatorSilent,
    DeadlineReached,
    Event,
    StartRequested,
    StopRequested,
    TaskBecameReady,
    TaskExited,
    TaskForked,
    TaskForkFailed,
    TaskForkWithdrawn,
)
from agent.instructions import ForkTask, Instruction, RecordEvent, ReleaseLease, SignalTask, WithdrawFork
from agent.machine import AttemptMachine, IllegalTransition
from nhop_models.contract import FailureKind, Outcome, TaskId, TaskStatus

PS = TaskId.parse("ps/0")
CHIEF = TaskId.parse("worker/0")
OTHER = TaskId.parse("worker/1")
LIMITS = Limits(start=60.0, stop_grace=2.0, terminate_grace=3.0)
COMPLETED = Outcome(TaskStatus.COMPLETED, step=10, train_loss=0.5, val_loss=0.25)
STOPPED = Outcome(TaskStatus.STOPPED)


def exited(
    task: TaskId, outcome: Outcome | None = None, code: int | None = 0, signal: int | None = None
) -> Event:
    return TaskExited(task, Exit(code if signal is None else None, signal), outcome, "last line")


def failed(task: TaskId, kind: FailureKind) -> Event:
    return exited(task, Outcome(TaskStatus.FAILED, kind, "it failed"))


def prepared() -> AttemptMachine:
    return AttemptMachine([OTHER, CHIEF, PS], lease_deadline=30.0)


def forked(limits: Limits = LIMITS) -> AttemptMachine:
    machine = prepared()
    machine.handle(StartRequested(limits), 0.0)
    for pid, task in enumerate((PS, CHIEF, OTHER), 100):
        machine.handle(TaskForked(task, pid, 1), 0.0)
    return machine


def running(limits: Limits = LIMITS) -> AttemptMachine:
    machine = forked(limits)
    for task in (PS, CHIEF, OTHER):
        machine.handle(TaskBecameReady(task), 1.0)
    return machine


def result(instructions: Sequence[Instruction]) -> TaskResult:
    return next(
        i.event.result for i in instructions if isinstance(i, RecordEvent) and isinstance(i.event, TaskEnded)
    )


def stop_all(machine: AttemptMachine) -> StopReason:
    """Lets every task end that is told to; the reason of the attempt's end."""
    for task in (CHIEF, OTHER, PS):
        if task in machine.tasks_in(TaskState.STARTING, TaskState.RUNNING):
            out = machine.handle(exited(task, STOPPED), 2.0)
    (event,) = [i.event for i in out if isinstance(i, RecordEvent) and isinstance(i.event, AttemptEnded)]
    return event.reason


def test_start_forks_parameter_servers_first() -> None:
    assert prepared().handle(StartRequested(LIMITS), 0.0) == [ForkTask(PS), ForkTask(CHIEF), ForkTask(OTHER)]


def test_a_lease_that_runs_out_is_released() -> None:
    machine = prepared()
    assert machine.handle(DeadlineReached(), 30.0) == [
        ReleaseLease(),
        RecordEvent(AttemptEnded(StopReason.RELEASED)),
    ]


def test_a_lease_that_was_started_does_not_run_out() -> None:
    machine = running()
    assert machine.handle(DeadlineReached(), 31.0) == []


def test_the_chief_completing_stops_the_workers_first() -> None:
    assert running().handle(exited(CHIEF, COMPLETED), 1.0)[1:] == [SignalTask(OTHER, Rung.STOP)]


def test_parameter_servers_are_told_when_the_workers_are_gone() -> None:
    machine = running()
    machine.handle(exited(CHIEF, COMPLETED), 1.0)
    assert SignalTask(PS, Rung.STOP) in machine.handle(exited(OTHER, STOPPED), 1.1)


def test_the_end_comes_last_after_the_release() -> None:
    machine = running()
    machine.handle(exited(CHIEF, COMPLETED), 1.0)
    machine.handle(exited(OTHER, STOPPED), 1.1)
    assert machine.handle(exited(PS, STOPPED), 1.2)[1:] == [
        ReleaseLease(),
        RecordEvent(AttemptEnded(StopReason.FINISHED)),
    ]


def test_the_chiefs_failure_ends_the_attempt_as_failed() -> None:
    machine = running()
    machine.handle(failed(CHIEF, FailureKind.KILLED), 1.0)
    assert stop_all(machine) is StopReason.FAILED


@pytest.mark.parametrize(
    "kind",
    [
        FailureKind.USER_CODE,
        FailureKind.DATA,
        FailureKind.DIVERGED,
        FailureKind.INTERNAL,
        FailureKind.PORT_TAKEN,
    ],
)
def test_a_workers_failure_ends_the_attempt(kind: FailureKind) -> None:
    machine = running()
    machine.handle(failed(OTHER, kind), 1.0)
    assert machine.state is AttemptState.STOPPING


@pytest.mark.parametrize("kind", [FailureKind.KILLED, FailureKind.CRASHED, FailureKind.PEER_LOST])
def test_training_goes_on_without_a_lost_worker(kind: FailureKind) -> None:
    machine = running()
    machine.handle(failed(OTHER, kind), 1.0)
    assert machine.state is AttemptState.RUNNING


def test_a_parameter_server_is_the_cause_even_where_a_worker_misses_it_first() -> None:
    machine = running()
    machine.handle(failed(OTHER, FailureKind.PEER_LOST), 1.0)
    failure = result(machine.handle(exited(PS, signal=9), 1.1)).failure
    assert failure is not None
    assert failure.kind is FailureKind.KILLED
    assert stop_all(machine) is StopReason.FAILED


def test_a_parameter_server_that_ends_unasked_ends_the_attempt() -> None:
    machine = running()
    out = machine.handle(exited(PS, STOPPED), 1.0)
    assert result(out).failure is not None
    assert result(out).failure.kind is FailureKind.PEER_LOST  # type: ignore[union-attr]
    assert stop_all(machine) is StopReason.FAILED


def test_an_attempt_whose_tasks_all_ended_by_themselves_has_finished() -> None:
    machine = AttemptMachine([OTHER], None)
    machine.handle(StartRequested(LIMITS), 0.0)
    machine.handle(TaskForked(OTHER, 1, 1), 0.0)
    out = machine.handle(exited(OTHER, signal=9), 1.0)
    assert out[-1] == RecordEvent(AttemptEnded(StopReason.FINISHED))


def test_the_first_reason_stays() -> None:
    machine = running()
    machine.handle(StopRequested(StopReason.PRUNED), 1.0)
    machine.handle(StopRequested(StopReason.SHUTDOWN), 1.0)
    assert stop_all(machine) is StopReason.PRUNED


# --- the ladder -----------------------------------------------------------------------------


def test_the_ladder_has_a_deadline_after_each_rung() -> None:
    machine = AttemptMachine([CHIEF], None)
    machine.handle(StartRequested(LIMITS), 0.0)
    machine.handle(TaskForked(CHIEF, 1, 1), 0.0)
    machine.handle(TaskBecameReady(CHIEF), 0.0)
    seen = [(machine.handle(StopRequested(StopReason.PRUNED), 10.0), machine.deadline)]
    seen += [(machine.handle(DeadlineReached(), now), machine.deadline) for now in (12.0, 15.0)]
    assert seen == [
        ([SignalTask(CHIEF, Rung.STOP)], 12.0),
        ([SignalTask(CHIEF, Rung.TERMINATE)], 15.0),
        ([SignalTask(CHIEF, Rung.KILL)], None),
    ]


def test_a_deadline_that_has_not_come_does_nothing() -> None:
    machine = running()
    machine.handle(StopRequested(StopReason.PRUNED), 10.0)
    assert machine.handle(DeadlineReached(), 11.9) == []


def test_at_once_kills_everything() -> None:
    out = running().handle(StopRequested(StopReason.SHUTDOWN, at_once=True), 1.0)
    assert {SignalTask(task, Rung.KILL) for task in (PS, CHIEF, OTHER)} <= set(out)


def test_a_fork_under_way_is_withdrawn() -> None:
    machine = prepared()
    machine.handle(StartRequested(LIMITS), 0.0)
    assert machine.handle(StopRequested(StopReason.PRUNED), 1.0) == [WithdrawFork(CHIEF), WithdrawFork(OTHER)]


def test_a_fork_that_could_not_be_withdrawn_is_signalled() -> None:
    machine = prepared()
    machine.handle(StartRequested(LIMITS), 0.0)
    machine.handle(StopRequested(StopReason.PRUNED), 1.0)
    assert SignalTask(CHIEF, Rung.STOP) in machine.handle(TaskForked(CHIEF, 1, 1), 1.5)


def test_a_fork_that_is_never_answered_is_withdrawn_by_force_after_the_ladder() -> None:
    machine = AttemptMachine([CHIEF], None)
    machine.handle(StartRequested(LIMITS), 0.0)
    machine.handle(StopRequested(StopReason.PRUNED), 10.0)
    machine.handle(DeadlineReached(), 12.0)
    assert machine.handle(DeadlineReached(), 15.0) == [WithdrawFork(CHIEF, force=True)]


def test_short_graces_do_not_end_a_zygote_that_is_about_to_fork() -> None:
    machine = AttemptMachine([CHIEF], None)
    machine.handle(StartRequested(Limits(stop_grace=0.0, terminate_grace=0.0)), 0.0)
    machine.handle(StopRequested(StopReason.PRUNED), 0.0)
    assert machine.handle(DeadlineReached(), 0.9) == []
    machine.handle(DeadlineReached(), 1.0)
    assert machine.handle(DeadlineReached(), 1.9) == []
    assert machine.handle(DeadlineReached(), 2.0) == [WithdrawFork(CHIEF, force=True)]


def test_at_once_withdraws_forks_by_force() -> None:
    machine = AttemptMachine([CHIEF], None)
    machine.handle(StartRequested(LIMITS), 0.0)
    out = machine.handle(StopRequested(StopReason.SHUTDOWN, at_once=True), 1.0)
    assert out[-1] == WithdrawFork(CHIEF, force=True)


def test_withdrawn_forks_end_the_attempt() -> None:
    machine = prepared()
    machine.handle(StartRequested(LIMITS), 0.0)
    machine.handle(StopRequested(StopReason.PRUNED), 1.0)
    for task in (CHIEF, OTHER, PS):
        machine.handle(TaskForkWithdrawn(task), 1.0)
    assert machine.state is AttemptState.ENDED


# --- limits ---------------------------------------------------------------------------------


def test_the_start_limit_counts_from_the_fork() -> None:
    assert forked().deadline == 60.0


def test_a_task_that_is_late_fails_with_the_end_of_its_log() -> None:
    machine = forked()
    machine.handle(TaskBecameReady(PS), 1.0)
    machine.handle(TaskBecameReady(CHIEF), 1.0)
    machine.handle(DeadlineReached(), 60.0)
    failure = result(machine.handle(exited(OTHER, STOPPED), 60.5)).failure
    assert failure is not None
    assert (failure.kind, failure.detail) == (FailureKind.START_TIMEOUT, "last line")
    assert "last line" in failure.message


def test_a_start_limit_that_has_passed_is_not_waited_for_again() -> None:
    machine = forked()
    machine.handle(DeadlineReached(), 60.0)  # ps/0 is late, too, and told when the workers are gone
    assert machine.deadline == 60.0 + LIMITS.stop_grace


def test_tasks_that_were_in_time_are_stopped_without_a_failure() -> None:
    machine = forked()
    machine.handle(TaskBecameReady(CHIEF), 1.0)
    machine.handle(DeadlineReached(), 60.0)
    assert result(machine.handle(exited(CHIEF, STOPPED), 60.5)).status is TaskStatus.STOPPED


def test_the_run_limit_fails_the_workers() -> None:
    machine = running(Limits(run=100.0))
    machine.handle(DeadlineReached(), 100.0)
    failure = result(machine.handle(exited(CHIEF, STOPPED), 100.5)).failure
    assert failure is not None
    assert failure.kind is FailureKind.TIME_LIMIT
    assert stop_all(machine) is StopReason.FAILED


def test_a_chief_that_completes_at_the_limit_has_completed() -> None:
    machine = running(Limits(run=100.0))
    machine.handle(DeadlineReached(), 100.0)
    assert result(machine.handle(exited(CHIEF, COMPLETED), 100.5)).status is TaskStatus.COMPLETED


def test_a_fork_failure_ends_the_attempt() -> None:
    machine = prepared()
    machine.handle(StartRequested(LIMITS), 0.0)
    failure = Failure(FailureKind.RESOURCES, "no room")
    assert result(machine.handle(TaskForkFailed(PS, failure), 1.0)).failure == failure
    assert machine.state is AttemptState.STOPPING


def test_a_restarted_agent_stops_what_runs() -> None:
    machine = AttemptMachine.restored([PS, CHIEF], LIMITS, [PS, CHIEF], [], over=False)
    assert machine.handle(AgentRestarted(), 0.0) == [SignalTask(CHIEF, Rung.STOP)]
    failure = result(machine.handle(exited(CHIEF, STOPPED), 1.0)).failure
    assert failure is not None
    assert failure.kind is FailureKind.HOST_LOST


# --- a coordinator that is out of reach -----------------------------------------------------


def test_tasks_are_told_to_end_when_their_coordinator_is_silent() -> None:
    assert running().handle(CoordinatorSilent(80.0), 1.0) == [
        SignalTask(CHIEF, Rung.STOP),
        SignalTask(OTHER, Rung.STOP),
    ]


@pytest.mark.parametrize("machine", [forked(), running()], ids=["starting", "running"])
def test_a_task_that_ends_for_a_silent_coordinator_was_lost_with_its_host(machine: AttemptMachine) -> None:
    machine.handle(CoordinatorSilent(80.0), 1.0)
    failure = result(machine.handle(exited(CHIEF, STOPPED), 1.5)).failure
    assert failure is not None
    assert failure.kind is FailureKind.HOST_LOST
    assert failure.message.startswith(
        "worker/0: ended, so that the trial may be tried again elsewhere: its coordinator was out of reach "
        "for 80 s"
    )
    assert stop_all(machine) is StopReason.FAILED


def test_a_chief_that_completes_meanwhile_has_completed() -> None:
    machine = running()
    machine.handle(CoordinatorSilent(80.0), 1.0)
    assert result(machine.handle(exited(CHIEF, COMPLETED), 1.5)).status is TaskStatus.COMPLETED


def test_forks_under_way_are_withdrawn_for_a_silent_coordinator() -> None:
    machine = prepared()
    machine.handle(StartRequested(LIMITS), 0.0)
    assert machine.handle(CoordinatorSilent(80.0), 1.0) == [WithdrawFork(CHIEF), WithdrawFork(OTHER)]
    failure = result(machine.handle(TaskForkWithdrawn(CHIEF), 1.0)).failure
    assert failure is not None
    assert failure.kind is FailureKind.HOST_LOST


def test_what_was_only_leased_is_released_for_a_silent_coordinator() -> None:
    assert prepared().handle(CoordinatorSilent(80.0), 1.0) == [
        ReleaseLease(),
        RecordEvent(AttemptEnded(StopReason.RELEASED)),
    ]


@pytest.mark.parametrize("last", [StopRequested(StopReason.PRUNED), exited(CHIEF, COMPLETED)], ids=str)
def test_what_stops_anyhow_does_not_mind_a_silent_coordinator(last: Event) -> None:
    machine = running()
    machine.handle(last, 1.0)
    with pytest.raises(IllegalTransition):
        machine.handle(CoordinatorSilent(80.0), 1.5)


def test_a_silent_coordinator_means_nothing_after_the_end() -> None:
    machine = prepared()
    machine.handle(StopRequested(StopReason.RELEASED), 1.0)
    with pytest.raises(IllegalTransition):
        machine.handle(CoordinatorSilent(80.0), 2.0)


# --- what the tables do not allow -----------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [StartRequested(LIMITS), TaskForked(CHIEF, 1, 1), TaskForkWithdrawn(CHIEF), TaskBecameReady(CHIEF)],
)
def test_an_illegal_event_changes_nothing(event: Event) -> None:
    machine = running()
    before = (machine.state, machine.deadline, machine.tasks_in(*TaskState))
    with pytest.raises(IllegalTransition):
        machine.handle(event, 5.0)
    assert (machine.state, machine.deadline, machine.tasks_in(*TaskState)) == before


def test_nothing_happens_after_the_end() -> None:
    machine = prepared()
    machine.handle(StopRequested(StopReason.RELEASED), 1.0)
    with pytest.raises(IllegalTransition):
        machine.handle(StopRequested(StopReason.RELEASED), 2.0)

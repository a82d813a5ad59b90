"""The life of one attempt on this host: events in, instructions out.

No I/O, no clock (``now`` is passed in), no waiting. What may happen when stands in two tables;
anything else raises IllegalTransition and changes nothing.

The rules of the group: the chief's end ends the attempt, and so does a parameter server that ends
unasked, and a worker's failure, except that training goes on without a worker (not the chief) that
was killed, crashed or lost a peer: the end of that peer decides. Stopping is a ladder for each task,
SIGUSR1, SIGTERM, SIGKILL, with a deadline after each; parameter servers are told when all workers of
the host are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.domain import (
    AttemptEnded,
    AttemptState,
    Failure,
    Limits,
    Rung,
    StopReason,
    TaskEnded,
    TaskResult,
    TaskStarted,
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
    TaskEvent,
    TaskExited,
    TaskForked,
    TaskForkFailed,
    TaskForkWithdrawn,
)
from agent.instructions import ForkTask, Instruction, RecordEvent, ReleaseLease, SignalTask, WithdrawFork
from agent.outcome import fuse
from nhop_models.contract import FailureKind, TaskId, TaskRole, TaskStatus

FORK_PATIENCE = 1.0
"""Seconds that each rung of the ladder lasts at least while a task is being forked: the zygote is ended for
one that does not come, and all who want tasks of this host wait for the next zygote."""

ATTEMPT_TRANSITIONS: Mapping[AttemptState, frozenset[type[Event]]] = {
    AttemptState.PREPARED: frozenset(
        {StartRequested, StopRequested, AgentRestarted, CoordinatorSilent, DeadlineReached}
    ),
    AttemptState.RUNNING: frozenset(
        {
            TaskForked,
            TaskForkFailed,
            TaskBecameReady,
            TaskExited,
            StopRequested,
            AgentRestarted,
            CoordinatorSilent,
            DeadlineReached,
        }
    ),
    AttemptState.STOPPING: frozenset(
        {
            TaskForked,
            TaskForkFailed,
            TaskForkWithdrawn,
            TaskBecameReady,
            TaskExited,
            StopRequested,
            DeadlineReached,
        }
    ),
    AttemptState.ENDED: frozenset(),
}
"""The events that each state of an attempt allows."""

TASK_TRANSITIONS: Mapping[tuple[TaskState, type[TaskEvent]], TaskState] = {
    (TaskState.FORKING, TaskForked): TaskState.STARTING,
    (TaskState.FORKING, TaskForkFailed): TaskState.ENDED,
    (TaskState.FORKING, TaskForkWithdrawn): TaskState.ENDED,
    (TaskState.STARTING, TaskBecameReady): TaskState.RUNNING,
    (TaskState.STARTING, TaskExited): TaskState.ENDED,
    (TaskState.RUNNING, TaskExited): TaskState.ENDED,
}
"""What an event makes of the state of its task."""

TOLERATED = frozenset({FailureKind.KILLED, FailureKind.CRASHED, FailureKind.PEER_LOST})
"""Failures of a worker that is not the chief, without which training goes on."""


class IllegalTransition(Exception):  # noqa: N818  (the usual name)
    """The tables do not allow this event now; nothing has changed."""


@dataclass(slots=True)
class _Task:
    id: TaskId
    state: TaskState = TaskState.LEASED
    rung: Rung = Rung.NONE
    start_deadline: float | None = None
    stop_deadline: float | None = None
    imposed: Failure | None = None


class AttemptMachine:
    """An attempt from its lease to its end."""

    def __init__(self, tasks: Iterable[TaskId], lease_deadline: float | None) -> None:
        # Parameter servers first: workers look for their ports.
        self._tasks = {task: _Task(task) for task in sorted(tasks)}
        self._state = AttemptState.PREPARED
        self._limits = Limits()
        self._reason: StopReason | None = None
        self._deadline = lease_deadline  # of the state: the lease's while prepared, the run limit's after
        self._out: list[Instruction] = []

    @classmethod
    def restored(
        cls,
        tasks: Iterable[TaskId],
        limits: Limits,
        forked: Iterable[TaskId],
        ended: Iterable[TaskId],
        *,
        over: bool,
    ) -> AttemptMachine:
        """An attempt that was started, as a new agent finds it: which tasks were forked, and which ended."""
        machine = cls(tasks, None)
        machine._state = AttemptState.ENDED if over else AttemptState.RUNNING
        machine._limits = limits
        for task in machine._tasks.values():
            task.state = TaskState.FORKING
        for known in forked:
            machine._tasks[known].state = TaskState.RUNNING
        for gone in ended:
            machine._tasks[gone].state = TaskState.ENDED
        return machine

    @property
    def state(self) -> AttemptState:
        """Where the attempt stands."""
        return self._state

    def tasks_in(self, *states: TaskState) -> Sequence[TaskId]:
        """The tasks that are in one of the states."""
        return [task.id for task in self._tasks.values() if task.state in states]

    @property
    def deadline(self) -> float | None:
        """When DeadlineReached is due next."""
        living = self._living()
        if self._state is AttemptState.STOPPING:
            deadlines = [task.stop_deadline for task in living]
        else:
            deadlines = [self._deadline, *(task.start_deadline for task in living)]
        return min((d for d in deadlines if d is not None), default=None)

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """What to do about an event at ``now`` (seconds, monotonic)."""
        if type(event) not in ATTEMPT_TRANSITIONS[self._state]:
            raise IllegalTransition(f"{event} in an attempt that is {self._state.value}")
        self._out = []
        match event:
            case StartRequested():
                self._start(event.limits, now)
            case StopRequested():
                self._request_stop(event, now)
            case DeadlineReached():
                self._look_at_deadlines(now)
            case AgentRestarted():
                self._give_up("the agent of this host was restarted while the task ran", now)
            case CoordinatorSilent(seconds):
                why = "so that the trial may be tried again elsewhere"
                self._give_up(f"ended, {why}: its coordinator was out of reach for {seconds:g} s", now)
            case _:
                self._handle_task(event, now)
        return self._out

    # --- tasks ------------------------------------------------------------------------------

    def _handle_task(self, event: TaskEvent, now: float) -> None:
        task = self._tasks.get(event.task)
        if task is None:
            raise IllegalTransition(f"{event}: no such task in this attempt")
        try:
            task.state = TASK_TRANSITIONS[task.state, type(event)]
        except KeyError:
            raise IllegalTransition(f"{event} for a task that is {task.state.value}") from None
        match event:
            case TaskForked():
                self._record(TaskStarted(task.id, event.pid, event.start_ticks))
                task.start_deadline = now + self._limits.start
                if task.rung is not Rung.NONE:
                    self._climb(task, task.rung, now)
            case TaskForkFailed():
                self._end_task(task, TaskResult(TaskStatus.FAILED, event.failure), now)
            case TaskForkWithdrawn():
                status = TaskStatus.FAILED if task.imposed else TaskStatus.STOPPED
                self._end_task(task, TaskResult(status, task.imposed), now)
            case TaskExited():
                told = task.rung is not Rung.NONE
                result = fuse(
                    task.id, event.exit, event.outcome, event.log_tail, told=told, imposed=task.imposed
                )
                self._end_task(task, result, now)
            case TaskBecameReady():
                task.start_deadline = None

    def _end_task(self, task: _Task, result: TaskResult, now: float) -> None:
        self._record(TaskEnded(task.id, result))
        verdict = self._verdict(task.id, result)
        if self._state is AttemptState.RUNNING and verdict is not None:
            self._begin_stop(verdict, now)
        else:
            self._advance(now)

    @staticmethod
    def _verdict(task: TaskId, result: TaskResult) -> StopReason | None:
        """Why the end of a task ends its attempt; None: the others go on."""
        if task.is_chief:
            return StopReason.FINISHED if result.status is TaskStatus.COMPLETED else StopReason.FAILED
        if result.failure is None:
            return None
        if task.role is TaskRole.WORKER and result.failure.kind in TOLERATED:
            return None
        return StopReason.FAILED

    # --- the attempt ------------------------------------------------------------------------

    def _start(self, limits: Limits, now: float) -> None:
        self._state = AttemptState.RUNNING
        self._limits = limits
        self._deadline = None if limits.run is None else now + limits.run
        for task in self._tasks.values():
            task.state = TaskState.FORKING
            self._out.append(ForkTask(task.id))

    def _request_stop(self, event: StopRequested, now: float) -> None:
        if self._state is not AttemptState.STOPPING:
            self._begin_stop(event.reason, now)
        if event.at_once:
            for task in self._living():
                if task.rung is not Rung.KILL:
                    self._climb(task, Rung.KILL, now)

    def _look_at_deadlines(self, now: float) -> None:
        if self._state is AttemptState.PREPARED:
            if _passed(self._deadline, now):
                self._begin_stop(StopReason.RELEASED, now)
            return
        if self._state is AttemptState.RUNNING:
            if _passed(self._deadline, now):
                self._impose_time_limit()
                self._begin_stop(StopReason.FAILED, now)
            elif late := [t for t in self._living() if _passed(t.start_deadline, now)]:
                for task in late:
                    limit = f"{self._limits.start:g} s after its start (start_limit)"
                    message = f"{task.id} was not ready to train {limit}"
                    task.imposed = Failure(FailureKind.START_TIMEOUT, message)
                self._begin_stop(StopReason.FAILED, now)
        for task in self._living():
            if _passed(task.stop_deadline, now):
                self._climb(task, Rung(task.rung + 1), now)

    def _impose_time_limit(self) -> None:
        living = self._living()
        workers = [task for task in living if task.id.role is TaskRole.WORKER]
        for task in workers or living:
            message = f"{task.id} ran longer than {self._limits.run:g} s (run_limit)"
            task.imposed = Failure(FailureKind.TIME_LIMIT, message)

    def _give_up(self, message: str, now: float) -> None:
        """Ends an attempt that is lost to its coordinator, and what has not ended by now with it."""
        for task in self._living():
            task.imposed = Failure(FailureKind.HOST_LOST, f"{task.id}: {message}")
        reason = StopReason.RELEASED if self._state is AttemptState.PREPARED else StopReason.FAILED
        self._begin_stop(reason, now)

    # --- stopping ---------------------------------------------------------------------------

    def _begin_stop(self, reason: StopReason, now: float) -> None:
        self._state = AttemptState.STOPPING
        self._reason = reason
        self._advance(now)

    def _advance(self, now: float) -> None:
        """Tells the next group to end where the attempt is stopping, and notices the end of the last."""
        living = self._living()
        if not living:
            self._state = AttemptState.ENDED
            self._out.append(ReleaseLease())
            self._record(AttemptEnded(self._reason or StopReason.FINISHED))
        elif self._state is AttemptState.STOPPING:
            for task in [t for t in living if t.id.role is TaskRole.WORKER] or living:
                if task.rung is Rung.NONE:
                    self._climb(task, Rung.STOP, now)

    def _climb(self, task: _Task, rung: Rung, now: float) -> None:
        task.rung = rung
        grace = {Rung.STOP: self._limits.stop_grace, Rung.TERMINATE: self._limits.terminate_grace}.get(rung)
        forking = task.state is TaskState.FORKING
        if forking and grace is not None:
            grace = max(grace, FORK_PATIENCE)
        task.stop_deadline = None if grace is None else now + grace
        if forking:
            # Where it is too late for that, it is signalled once forked.
            self._out.append(WithdrawFork(task.id, force=rung is Rung.KILL))
        else:
            self._out.append(SignalTask(task.id, rung))

    def _living(self) -> list[_Task]:
        return [t for t in self._tasks.values() if t.state not in (TaskState.LEASED, TaskState.ENDED)]

    def _record(self, event: TaskStarted | TaskEnded | AttemptEnded) -> None:
        self._out.append(RecordEvent(event))


def _passed(deadline: float | None, now: float) -> bool:
    return deadline is not None and now >= deadline

"""A machine, one event at a time: shorthands for what hosts say and what is asked of them."""

from __future__ import annotations

from coordinator import events as ev
from coordinator.domain import (
    AttemptId,
    Failure,
    StopReason,
    TaskResult,
)
from coordinator.instructions import (
    PrepareAttempt,
    Save,
    SetTimer,
)
from coordinator.machine import StudyMachine
from nhop_models.contract import TaskId, TaskStatus
from tests.coordinator.studies import make_spec

CHIEF = TaskId.parse("worker/0")
WORKER_1 = TaskId.parse("worker/1")


class Driver:
    """A machine, what it asked for, and shorthands for what hosts say."""

    def __init__(self, hosts=None, **changes):
        self.spec = make_spec(**changes)
        self.machine = StudyMachine(self.spec, hosts or {"a": 1}, now=0.0, started_at=1000.0)
        self.now = 0.0
        self.asked = []
        self.feed(ev.StudyBegun())

    def feed(self, *events):
        """Gives events; returns what the machine asks for."""
        asked = [i for event in events for i in self.machine.handle(event, self.now)]
        self.asked += asked
        return asked

    def attempt(self, trial, attempt=1):
        return AttemptId("s1", trial, attempt)

    def start(self, trial, attempt=1, hosts=("a",)):
        for host in hosts:
            prepare = next(
                i for i in reversed(self.asked) if isinstance(i, PrepareAttempt) and i.host == host
            )
            addresses = {task: f"{host}:{task}" for task in prepare.tasks} if prepare.ports else {}
            self.feed(ev.PrepareSucceeded(self.attempt(trial, attempt), host, addresses))
        for host in hosts:
            self.feed(ev.StartSucceeded(self.attempt(trial, attempt), host))

    def end_task(self, trial, result, *, task=CHIEF, attempt=1, host="a"):
        return self.feed(ev.TaskEnded(self.attempt(trial, attempt), host, task, result))

    def end(self, trial, *, attempt=1, host="a", reason=StopReason.FINISHED):
        return self.feed(ev.AttemptEnded(self.attempt(trial, attempt), host, reason))

    def complete(self, trial, loss=1.0, **kind):
        self.start(trial, **kind)
        self.end_task(trial, completed(loss), **kind)
        return self.end(trial, **kind)

    def fail(self, trial, kind, **where):
        self.start(trial, **where)
        self.end_task(trial, failed(kind), **where)
        return self.end(trial, reason=StopReason.FAILED, **where)

    def trial(self, number):
        return self.machine.trials()[number - 1]

    @property
    def study(self):
        return self.machine.study()


def completed(loss, train_loss=5.0):
    return TaskResult(TaskStatus.COMPLETED, train_loss=train_loss, val_loss=loss, step=10)


def failed(kind, message="it broke"):
    return TaskResult(TaskStatus.FAILED, Failure(kind, message))


def stopped(train_loss=None):
    return TaskResult(TaskStatus.STOPPED, train_loss=train_loss)


def of(kind, instructions):
    return [i for i in instructions if isinstance(i, kind)]


def timers(kind, instructions):
    return [i for i in of(SetTimer, instructions) if isinstance(i.timer, kind)]


def saved(kind, instructions):
    return [i.item for i in of(Save, instructions) if isinstance(i.item, kind)]

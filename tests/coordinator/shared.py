"""Several machines on the same simulated hosts: virtual time, a delay of each message, no process."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Mapping

from coordinator import events as ev
from coordinator.domain import AttemptId, StopReason, StudySpec, TaskResult
from coordinator.instructions import (
    Instruction,
    PrepareAttempt,
    SetTimer,
    StartAttempt,
    StopAttempt,
    Tell,
)
from coordinator.machine import StudyMachine
from coordinator.transitions import LateEventError
from nhop_models.contract import TaskId, TaskRole, TaskStatus

CHIEF = TaskId(TaskRole.WORKER, 0)
Key = tuple[AttemptId, str]
"""An attempt on a host."""


class SharedHosts:
    """What all machines use: slots, who holds them, and the time."""

    def __init__(self, slots: Mapping[str, int]) -> None:
        self.slots = slots
        self.now = 0.0
        self.held: dict[str, dict[tuple[str, AttemptId], int]] = {host: {} for host in slots}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, delay: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), do))

    def run(self, until: Callable[[], bool], limit: float) -> None:
        """Lets time pass until the condition holds; AssertionError past ``limit`` seconds."""
        while not until():
            at, _, do = heapq.heappop(self._queue)
            assert at <= limit, f"not over after {limit:g} s"
            self.now = at
            do()

    def lease(self, run: str, attempt: AttemptId, host: str, tasks: tuple[TaskId, ...]) -> bool:
        wanted = sum(task.role is TaskRole.WORKER for task in tasks)
        taken = sum(self.held[host].values())
        if taken + wanted > self.slots[host]:
            return False
        self.held[host][run, attempt] = wanted
        return True

    def release(self, run: str, attempt: AttemptId, host: str) -> bool:
        return self.held[host].pop((run, attempt), None) is not None


class SharingCoordinator:
    """A machine; a message to a host takes ``delay(host)`` seconds, a trial ``trial_seconds()``."""

    def __init__(
        self,
        hosts: SharedHosts,
        spec: StudySpec,
        *,
        delay: Callable[[str], float],
        trial_seconds: Callable[[], float] = lambda: 1.0,
        rng: random.Random | None = None,
    ) -> None:
        self.hosts = hosts
        self.run = spec.run_id
        self.delay = delay
        self.trial_seconds = trial_seconds
        self.prepares = 0
        self.tasks: dict[Key, tuple[TaskId, ...]] = {}
        self.told: list[tuple[float, str]] = []
        self.machine = StudyMachine(spec, hosts.slots, now=0.0, started_at=1000.0, rng=rng)

    @property
    def over(self) -> bool:
        return self.machine.state.ended

    def begin(self) -> None:
        self.feed(ev.StudyBegun())

    def feed(self, event: ev.Event) -> None:
        try:
            instructions = self.machine.handle(event, self.hosts.now)
        except LateEventError:
            return
        for instruction in instructions:
            self.obey(instruction)

    def answer(self, event: ev.AttemptEvent) -> None:
        self.hosts.after(self.delay(event.host), lambda: self.feed(event))

    def obey(self, instruction: Instruction) -> None:
        hosts = self.hosts
        match instruction:
            case SetTimer(timer, at):
                hosts.after(at - hosts.now, lambda: self.feed(ev.TimerFired(timer)))
            case PrepareAttempt():
                self.prepares += 1
                hosts.after(self.delay(instruction.host), lambda: self.prepare(instruction))
            case StartAttempt():
                hosts.after(self.delay(instruction.host), lambda: self.start(instruction))
            case StopAttempt(attempt, host, reason):
                hosts.after(self.delay(host), lambda: self.stop(attempt, host, reason))
            case Tell(notice):
                self.told.append((hosts.now, notice.message))

    def prepare(self, prepare: PrepareAttempt) -> None:
        attempt, host, tasks = prepare.attempt, prepare.host, prepare.tasks
        self.tasks[attempt, host] = tasks
        if self.hosts.lease(self.run, attempt, host, tasks):
            addresses = {task: f"{host}:{task}" for task in tasks} if prepare.ports else {}
            self.answer(ev.PrepareSucceeded(attempt, host, addresses))
        else:
            self.answer(ev.PrepareRefused(attempt, host, "full"))

    def start(self, start: StartAttempt) -> None:
        attempt, host = start.attempt, start.host
        self.answer(ev.StartSucceeded(attempt, host))
        if CHIEF in self.tasks[attempt, host]:
            self.hosts.after(self.trial_seconds(), lambda: self.complete(attempt, host))

    def complete(self, attempt: AttemptId, host: str) -> None:
        result = TaskResult(TaskStatus.COMPLETED, train_loss=1.0, val_loss=1.0, step=10)
        self.answer(ev.TaskEnded(attempt, host, CHIEF, result))
        self.end(attempt, host, StopReason.FINISHED)

    def stop(self, attempt: AttemptId, host: str, reason: StopReason) -> None:
        active = (self.run, attempt) in self.hosts.held[host]
        self.answer(ev.StopAnswered(attempt, host, active))
        self.end(attempt, host, reason)

    def end(self, attempt: AttemptId, host: str, reason: StopReason) -> None:
        if self.hosts.release(self.run, attempt, host):
            self.answer(ev.AttemptEnded(attempt, host, reason))

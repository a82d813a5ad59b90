"""Agents without any process, loop or clock, for driving the machine: in any order, and with faults."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from coordinator import events as ev
from coordinator.domain import AttemptId, Failure, StopReason, StudySpec, TaskResult, Trial
from coordinator.instructions import (
    DropArtifacts,
    FetchArtifacts,
    FetchCheckpoint,
    ForgetHost,
    Instruction,
    PrepareAttempt,
    PublishModel,
    Save,
    SetTimer,
    StartAttempt,
    StopAttempt,
)
from coordinator.machine import StudyMachine
from coordinator.transitions import LateEventError
from nhop_models.contract import FailureKind, TaskId, TaskRole, TaskStatus

CHIEF = TaskId(TaskRole.WORKER, 0)


def loss_of(parameters: dict[str, object]) -> float:
    """A function of the parameters alone, so that the best does not depend on the order."""
    return float(parameters["learning_rate"]) * float(parameters["batch_size"])  # type: ignore[arg-type]


class Simulation:
    """Hosts that lease, run and end attempts; ``rng`` decides what happens next."""

    def __init__(
        self,
        spec: StudySpec,
        hosts: dict[str, int],
        rng: random.Random,
        *,
        chance: Callable[[str], float] = lambda what: 0.0,
        foreign: int = 0,
    ) -> None:
        self.machine = StudyMachine(spec, hosts, now=0.0, started_at=1000.0)
        self.spec = spec
        self.hosts = hosts
        self.rng = rng
        self.chance = chance
        self.now = 0.0
        self.foreign = dict.fromkeys(hosts, foreign)  # slots that others hold
        self.leases: dict[tuple[AttemptId, str], tuple[TaskId, ...]] = {}
        self.running: dict[tuple[AttemptId, str], list[TaskId]] = {}
        self.parameters: dict[AttemptId, dict[str, object]] = {}
        self.pending: list[ev.Event] = []  # any order
        self.ordered: dict[str, list[ev.Event]] = {host: [] for host in hosts}  # event streams
        self.timers: list[SetTimer] = []
        self.lost: set[str] = set()
        self.away: set[str] = set()  # hosts that have left
        self.forgotten: set[str] = set()  # and to which nothing leads any more
        self.comings: dict[str, int] = {"left": 0, "joined": 0, "forgotten": 0, "changed": 0}
        self.ends: dict[int, list[Trial]] = {}
        self.started: dict[AttemptId, int] = {}
        self.below: dict[AttemptId, float | None] = {}
        self.work: list[tuple[int, Callable[[], None]]] = []  # transfers of files of trials
        self.models: dict[int, str] = {}  # by trial: nothing where it is here, or why it is not
        self.best: int | None = None  # whose model shall be published
        self.published: int | None = None
        self.asked: set[int] = set()  # trials whose model was to be published
        self.dropped: set[int] = set()
        self.saved: dict[AttemptId, int] = {}
        self.checkpoints: dict[int, tuple[int, int]] = {}  # attempt and step, by trial
        self.restored: dict[AttemptId, tuple[int, int]] = {}

    def run(self, limit: int = 100_000) -> None:
        self.feed(ev.StudyBegun())
        for _ in itertools.repeat(None, limit):
            if self.machine.state.ended:
                return
            self.step()
        raise AssertionError("the study does not end")

    def feed(self, event: ev.Event) -> None:
        try:
            instructions = self.machine.handle(event, self.now)
        except LateEventError:
            return
        for instruction in instructions:
            self.obey(instruction)

    def step(self) -> None:
        self.now += 0.01
        choices: list[Callable[[], None]] = []
        if self.pending:
            choices.append(lambda: self.feed(self.pending.pop(self.rng.randrange(len(self.pending)))))
        for host, stream in self.ordered.items():
            if stream and host not in self.lost | self.forgotten:
                choices.append(lambda stream=stream: self.feed(stream.pop(0)))  # type: ignore[misc]
        first = dict(reversed(self.work))  # those of a trial in their order
        choices += [lambda item=item: self.transfer(*item) for item in first.items()]  # type: ignore[misc]
        choices += [lambda key=key: self.advance(*key) for key in self.running]  # type: ignore[misc]
        if not choices or self.rng.random() < 0.02:
            self.fire_timer()
            return
        self.rng.choice(choices)()
        self.mischief()

    def fire_timer(self) -> None:
        if self.lost and self.rng.random() < 0.5:
            self.find(self.rng.choice(sorted(self.lost)))
            return
        if self.timers:
            first = min(self.timers, key=lambda timer: timer.at)
            idle = not self.pending and not self.work and not any(self.ordered.values()) and not self.running
            if idle or first.at <= self.now:
                self.timers.remove(first)
                self.now = max(self.now, first.at)
                self.feed(ev.TimerFired(first.timer))
            return
        for host in self.lost:
            self.find(host)
            return
        for host in self.away:
            self.join(host)
            return

    def mischief(self) -> None:
        host = self.rng.choice(sorted(self.hosts))
        if self.rng.random() < self.chance("lose") and host not in self.lost | self.forgotten:
            self.lost.add(host)
            self.feed(ev.HostLost(host, "cut"))
        elif self.rng.random() < self.chance("find") and host in self.lost:
            self.find(host)
        if self.happens("leave") and self.could_do_without(host):
            self.comings["left"] += 1
            self.away.add(host)
            self.feed(ev.HostLeft(host))
        elif self.happens("join") and host in self.away:
            self.join(host)
        elif self.happens("slots") and host not in self.away:
            self.comings["changed"] += 1
            self.hosts[host] = self.rng.randint(1, 4)
            self.feed(ev.HostJoined(host, self.hosts[host]))
        if self.rng.random() < self.chance("foreign"):
            taken = sum(len(self.workers(tasks)) for (_, h), tasks in self.leases.items() if h == host)
            self.foreign[host] = self.rng.randint(0, max(0, self.hosts[host] - taken))

    def happens(self, what: str) -> bool:
        chance = self.chance(what)
        return chance > 0 and self.rng.random() < chance  # nothing is drawn for what never happens

    def find(self, host: str) -> None:
        self.lost.discard(host)
        if host not in self.forgotten:
            self.feed(ev.HostFound(host))

    def could_do_without(self, host: str) -> bool:
        rest = [slots for name, slots in self.hosts.items() if name not in self.away | {host}]
        return host not in self.away and sum(rest) >= self.spec.cluster.workers

    def join(self, host: str) -> None:
        self.comings["joined"] += 1
        self.away.discard(host)
        self.forgotten.discard(host)
        self.lost.discard(host)
        self.feed(ev.HostJoined(host, self.hosts[host]))

    def forget(self, host: str) -> None:
        assert host in self.away, f"{host} is in use"
        if host in self.forgotten:
            return
        self.comings["forgotten"] += 1
        self.forgotten.add(host)
        left = [attempt for attempt, name in self.leases if name == host]
        assert host in self.lost or not left, f"{left} are still on {host}"
        for attempt in left:
            self.stop(attempt, host, StopReason.FAILED)  # its coordinator is silent from now on

    @staticmethod
    def workers(tasks: tuple[TaskId, ...]) -> list[TaskId]:
        return [task for task in tasks if task.role is TaskRole.WORKER]

    # --- what agents do -----------------------------------------------------------------------

    def obey(self, instruction: Instruction) -> None:
        match instruction:
            case SetTimer():
                self.timers.append(instruction)
            case Save(Trial() as trial) if trial.state.ended:
                self.ends.setdefault(trial.number, []).append(trial)
            case ForgetHost(host):
                self.forget(host)
            case PrepareAttempt(attempt, host, tasks, ports):
                assert host not in self.away, f"{attempt} is placed on {host}, which has left"
                self.prepare(attempt, host, tasks, ports)
            case StartAttempt():
                self.start(instruction)
            case FetchArtifacts(attempt, host):
                self.work.append((attempt.trial, lambda: self.fetch_model(attempt, host)))
            case FetchCheckpoint(attempt, host, step):
                self.work.append((attempt.trial, lambda: self.fetch_checkpoint(attempt, host, step)))
            case PublishModel(trial):
                self.best = trial
                self.asked.add(trial)
                self.work.append((trial, lambda: self.publish(trial)))
            case DropArtifacts(trial):
                self.models.pop(trial, None)
                self.dropped.add(trial)
                self.checkpoints.pop(trial, None)
            case StopAttempt(attempt, host, reason):
                active = (attempt, host) in self.leases
                if host in self.lost | self.forgotten:
                    self.pending.append(ev.StopFailed(attempt, host, Failure(FailureKind.HOST_LOST, "gone")))
                    return
                self.pending.append(ev.StopAnswered(attempt, host, active))
                if active:
                    self.stop(attempt, host, reason)

    def prepare(self, attempt: AttemptId, host: str, tasks: tuple[TaskId, ...], ports: bool) -> None:
        if host in self.lost:
            failure = Failure(FailureKind.HOST_LOST, "gone")
            self.pending.append(ev.PrepareFailed(attempt, host, failure))
            return
        used = sum(len(self.workers(t)) for (_, h), t in self.leases.items() if h == host)
        if used + self.foreign[host] + len(self.workers(tasks)) > self.hosts[host]:
            self.pending.append(ev.PrepareRefused(attempt, host, "full"))
            return
        self.leases[attempt, host] = tasks
        addresses = {task: f"{host}:{n}" for n, task in enumerate(tasks)} if ports else {}
        self.pending.append(ev.PrepareSucceeded(attempt, host, addresses))

    def start(self, instruction: StartAttempt) -> None:
        attempt, host = instruction.attempt, instruction.host
        self.parameters[attempt] = dict(instruction.parameters)
        if (attempt, host) not in self.leases or host in self.lost:
            failure = Failure(FailureKind.HOST_LOST, "gone")
            self.pending.append(ev.StartFailed(attempt, host, failure))
            return
        self.started[attempt] = self.started.get(attempt, 0) + 1
        self.below[attempt] = instruction.keep_model_below
        if instruction.restore:
            self.restored[attempt] = self.checkpoints[attempt.trial]
        self.running[attempt, host] = list(self.leases[attempt, host])
        for task in self.leases[attempt, host]:
            self.ordered[host].append(ev.TaskStarted(attempt, host, task))
        self.pending.append(ev.StartSucceeded(attempt, host))

    def advance(self, attempt: AttemptId, host: str) -> None:
        """Something happens by itself in a running attempt."""
        tasks = self.running[attempt, host]
        task = self.rng.choice(tasks)
        kind = next((k for k in FailureKind if self.rng.random() < self.chance(k.value)), None)
        if kind is not None:
            self.end_task(attempt, host, task, TaskResult(TaskStatus.FAILED, Failure(kind, "by chance")))
            spared = task.role is TaskRole.WORKER and task != CHIEF
            if not spared or kind not in (FailureKind.KILLED, FailureKind.CRASHED, FailureKind.PEER_LOST):
                self.stop(attempt, host, StopReason.FAILED)
        elif task == CHIEF and self.rng.random() < self.chance("checkpoint"):
            self.saved[attempt] = self.saved.get(attempt, 0) + 1
            self.ordered[host].append(ev.CheckpointSaved(attempt, host, self.saved[attempt]))
        elif task == CHIEF:
            loss = loss_of(self.parameters[attempt])
            below = self.below[attempt]
            saves = self.spec.training.keep_model and (below is None or loss < below)
            files = {"model.keras": 100, "predictions.npz": 10} if saves else {}
            result = TaskResult(
                TaskStatus.COMPLETED, train_loss=loss * 2, val_loss=loss, step=10, artifacts=files
            )
            self.end_task(attempt, host, task, result)
            self.stop(attempt, host, StopReason.FINISHED)
        if (attempt, host) in self.running and not self.running[attempt, host]:
            self.stop(attempt, host, StopReason.FINISHED)

    # --- files --------------------------------------------------------------------------------

    def transfer(self, trial: int, work: Callable[[], None]) -> None:
        self.work.remove((trial, work))
        work()

    def fails(self, host: str) -> str:
        return "no way" if host in self.lost or self.rng.random() < self.chance("transfer") else ""

    def fetch_model(self, attempt: AttemptId, host: str) -> None:
        self.models[attempt.trial] = self.fails(host)

    def publish(self, trial: int) -> None:
        if self.best != trial:
            return
        problem = self.models.get(trial)
        self.published = trial if problem == "" else None
        self.pending.append(ev.ModelPublished(trial, problem == "", problem or ""))

    def fetch_checkpoint(self, attempt: AttemptId, host: str, step: int) -> None:
        problem = self.fails(host)
        if not problem:
            self.checkpoints[attempt.trial] = (attempt.attempt, step)
        self.pending.append(ev.CheckpointFetched(attempt, step, problem))

    def stop(self, attempt: AttemptId, host: str, reason: StopReason) -> None:
        for task in list(self.running.get((attempt, host), ())):
            self.end_task(attempt, host, task, TaskResult(TaskStatus.STOPPED, train_loss=1e9))
        self.running.pop((attempt, host), None)
        del self.leases[attempt, host]
        self.ordered[host].append(ev.AttemptEnded(attempt, host, reason))

    def end_task(self, attempt: AttemptId, host: str, task: TaskId, result: TaskResult) -> None:
        self.running[attempt, host].remove(task)
        self.ordered[host].append(ev.TaskEnded(attempt, host, task, result))

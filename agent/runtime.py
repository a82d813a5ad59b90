"""The agent at work: does what the machines of its attempts say, and tells them what happened."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import random
import signal
import time
import uuid
from collections.abc import Coroutine, Iterable, Sequence

from agent import share
from agent.attempt import Attempt
from agent.attempts import AttemptDirectory, Manifest
from agent.background import log_exception
from agent.bundles import FOLDER as BUNDLES
from agent.bundles import Bundles, Wanted
from agent.config import AgentConfig, usable_cores
from agent.domain import (
    AgentEvent,
    AttemptEnded,
    AttemptId,
    AttemptState,
    Exit,
    Failure,
    Limits,
    StopReason,
    TaskLease,
    TaskRequirement,
    TaskState,
)
from agent.event_log import SOURCE, EventLog
from agent.events import (
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
from agent.fences import AttemptOverError, Fences
from agent.gpu_watch import GpuWatch
from agent.instructions import ForkTask, Instruction, RecordEvent, ReleaseLease, SignalTask, WithdrawFork
from agent.leases import LeaseBook, PortPool, no_room
from agent.logs import Followers
from agent.machine import AttemptMachine, IllegalTransition
from agent.owners import Owners
from agent.probes import Probes
from agent.processes import Processes, become_subreaper
from agent.rounds import Rounds
from agent.spool import SpoolReader
from agent.streams import Positions, Subscription
from agent.subscribers import Subscribers
from agent.task_places import TaskPlaces
from agent.zygote import ForkRequest, Zygote
from nhop_models.contract import FailureKind, TaskId, TaskSpec

logger = logging.getLogger(__name__)

ATTEMPTS = "attempts"
"""Folder of the attempt directories in the state directory."""


class NotPreparedError(Exception):
    """The attempt holds no lease here."""


class ShuttingDownError(Exception):
    """The agent takes no new work."""


class Agent:
    """Everything of one agent but its gRPC server."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.incarnation = uuid.uuid4().hex
        self.attempts_dir = config.state_dir / ATTEMPTS
        self.attempts: dict[AttemptId, Attempt] = {}
        rng = random.Random()  # noqa: S311  (spreads ports, keeps no secret)
        ports = PortPool(*config.ports, rng)
        self.leases = LeaseBook(config.slots, ports)
        self.probes = Probes(ports)
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self.fences = Fences()
        self.owners = Owners(self._loop.time)
        self.subscribers = Subscribers()
        self.followers = Followers()
        self._by_pid: dict[int, tuple[Attempt, TaskId, int | None]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self.rounds = Rounds(self)
        self._idle = asyncio.Event()
        self._shutting_down = False
        self.places = TaskPlaces(config.state_dir, config.task_user)
        self.zygote = Zygote(
            self.places.command(config.zygote_command),
            config.state_dir / "zygote.log",
            self,
            self.places.of_zygote(os.environ),
            self.places.umask,
        )
        self.processes = Processes(self._process_exited, self.zygote.replace, self._own_children)
        self.gpus = GpuWatch(config.gpus, self.leases.gpus, config.gpu_release_limit, self.processes.strays)
        self.bundles = Bundles(
            config.state_dir / BUNDLES, self.bundles_in_use, config.bundle_limits, user=config.task_user
        )

    # --- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the zygote; OSError where that is impossible. To be called before gRPC starts threads."""
        become_subreaper()
        # Not through the loop: uvloop keeps SIGCHLD for itself. It wakes up for Python's handlers, though.
        signal.signal(signal.SIGCHLD, self._child_signalled)
        self.zygote.start()
        self.rounds.begin()

    async def shut_down(self) -> None:
        """Ends every attempt in order, and hands out the last events; the zygote is left."""
        self._shutting_down = True
        for attempt in list(self.attempts.values()):
            if attempt.active:
                self.feed(attempt, StopRequested(StopReason.SHUTDOWN))
        while any(attempt.active for attempt in self.attempts.values()):
            self._idle.clear()
            await self._idle.wait()

    def kill_all(self) -> None:
        """Ends every attempt at once, by SIGKILL."""
        self._shutting_down = True
        for attempt in list(self.attempts.values()):
            if attempt.active:
                self.feed(attempt, StopRequested(StopReason.SHUTDOWN, at_once=True))

    async def hand_out_events(self, seconds: float) -> None:
        """Waits until every subscriber has taken all that there is, at most so long."""
        await self.subscribers.wait_until_emptied(seconds)

    async def close(self) -> None:
        """Ends the streams and the zygote; to be called when no attempt is active."""
        self.subscribers.close()
        self.probes.close()
        self.rounds.end()
        await self.gpus.close()
        await self.zygote.close()
        await self.processes.clean_up()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.processes.close()

    # --- what a coordinator asks for --------------------------------------------------------

    def prepare(
        self, attempt_id: AttemptId, requirements: Sequence[TaskRequirement], lease_timeout: float | None
    ) -> tuple[TaskLease, ...]:
        """Leases for each task, in order.

        Raises AttemptOverError, ShuttingDownError, NotEnoughError, and then leases nothing.
        """
        self._check_open(attempt_id)
        known = self.attempts.get(attempt_id)
        if known is not None:
            leases = known.manifest.leases
            if [lease.requirement for lease in leases] != list(requirements):
                raise AttemptOverError(f"{attempt_id} was prepared with other tasks")
            return leases
        for other in list(self.attempts.values()):
            if other.active and other.id.same_trial(attempt_id):
                self.feed(other, StopRequested(StopReason.RELEASED))
        leases = self.leases.lease(attempt_id, requirements)
        manifest = Manifest(leases, owner=self.owners.of(attempt_id.study_id))
        try:
            directory = AttemptDirectory.create(self.attempts_dir, attempt_id, manifest, self.places.user)
        except OSError as error:
            self.leases.release(attempt_id)
            raise no_room(attempt_id, error) from error
        deadline = self._loop.time() + (lease_timeout or self.config.lease_timeout)
        machine = AttemptMachine([lease.task for lease in leases], deadline)
        attempt = Attempt(attempt_id, machine, directory, EventLog(directory.events_path), manifest)
        attempt.prepared_at = self._loop.time()
        self.attempts[attempt_id] = attempt
        self._set_timer(attempt)
        return leases

    def known(self, attempt_id: AttemptId) -> Attempt:
        """An attempt that may be started, or was; NotPreparedError, AttemptOverError, ShuttingDownError."""
        self._check_open(attempt_id)
        attempt = self.attempts.get(attempt_id)
        if attempt is None:
            raise NotPreparedError(f"{attempt_id} is not prepared here")
        return attempt

    def prepared(self, attempt_id: AttemptId) -> Attempt:
        """An attempt that holds its lease and was not started; raises as ``known``."""
        attempt = self.known(attempt_id)
        if attempt.machine.state is not AttemptState.PREPARED:
            raise AttemptOverError(f"{attempt_id} was started already")
        return attempt

    def begin(
        self, attempt_id: AttemptId, spec: TaskSpec, limits: Limits, wanted: Wanted | None = None
    ) -> None:
        """Starts the prepared tasks; ``wanted`` are the bundles that they use.

        Raises as ``known``, NoBundleError, and NotEnoughError where the disk is full.
        """
        attempt = self.known(attempt_id)
        if attempt.machine.state is not AttemptState.PREPARED:
            return
        wanted = wanted or Wanted()
        spec = self.bundles.furnish(spec, wanted)
        manifest = dataclasses.replace(attempt.manifest, limits=limits, bundles=wanted.digests())
        threads = share.threads(manifest.leases, usable_cores(), self.leases.slots)
        spec = dataclasses.replace(spec, threads=threads)
        try:
            self.places.furnish(attempt_id)
            attempt.directory.write_spec(spec)
            attempt.renew_lease(limits.without_agent(self.config.orphan_limit), self._loop.time())
            attempt.directory.write_manifest(manifest)
            doorbell = attempt.directory.open_doorbell()
        except OSError as error:
            raise no_room(attempt_id, error) from error
        attempt.manifest = manifest
        self._loop.add_reader(doorbell, self._doorbell_rang, attempt)
        # Who starts it has received the answer that it is prepared.
        self.rounds.contacts.answered(attempt_id.study_id, attempt.prepared_at)
        self.feed(attempt, StartRequested(limits))

    def stop(self, attempt_id: AttemptId, reason: StopReason) -> bool:
        """Ends what is left of an attempt; whether there was anything. It cannot be started any more."""
        self.fences.put(attempt_id)
        attempt = self.attempts.get(attempt_id)
        if attempt is None or not attempt.active:
            return False
        self.feed(attempt, StopRequested(reason))
        return True

    def subscribe(self, study_id: str, positions: Positions) -> Subscription:
        """A stream of a study's events, in the place of an earlier one."""
        self.rounds.absences.end(study_id)
        self.acknowledge(study_id, positions)
        attempts = [attempt for attempt in self.attempts.values() if attempt.id.study_id == study_id]
        return self.subscribers.add(study_id, positions, attempts)

    def acknowledge(self, study_id: str, positions: Positions) -> None:
        """The receiver has these events for good; attempts whose last event it has are forgotten."""
        for (attempt_id, source), sequence in positions.items():
            attempt = self.attempts.get(attempt_id)
            if attempt is None or source != SOURCE or attempt_id.study_id != study_id:
                continue
            if attempt.log.ended and sequence >= attempt.log.numbers[-1]:
                self.forget(attempt)

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return self._loop.time() - self._started_at

    def heard(self, studies: Iterable[str], incarnation: str, uptime: float | None) -> None:
        """The coordinator of the studies has received what this agent answered at an uptime."""
        if incarnation == self.incarnation and uptime is not None and uptime <= self.uptime:
            for study_id in studies:
                self.rounds.contacts.answered(study_id, self._started_at + uptime)

    def studies_alone(self) -> set[str]:
        """Those with attempts here, whose events nobody takes now."""
        return {attempt.study_id for attempt in self.attempts} - self.subscribers.studies

    def bundles_in_use(self) -> set[str]:
        """Digests of the bundles of attempts that have not ended."""
        return {d for a in self.attempts.values() if a.active for d in a.manifest.bundles}

    # --- attempts ---------------------------------------------------------------------------

    def feed(self, attempt: Attempt, event: Event) -> None:
        """Tells the machine of an attempt what happened, and does what it says."""
        attempt.inbox.append(event)
        if attempt.busy:
            return  # an instruction brought about an event: after the others
        attempt.busy = True
        try:
            while attempt.inbox:
                self._handle(attempt, attempt.inbox.popleft())
        finally:
            attempt.busy = False
        self._set_timer(attempt)

    def _handle(self, attempt: Attempt, event: Event) -> None:
        try:
            instructions = attempt.machine.handle(event, self._loop.time())
        except IllegalTransition:
            logger.exception("%s: an event came out of turn; please report this", attempt.id)
            return
        for instruction in instructions:
            self._do(attempt, instruction)

    def take_over(self, attempt: Attempt) -> None:
        """Adds an attempt of an earlier agent."""
        self.attempts[attempt.id] = attempt
        self.owners.claim(attempt.id.study_id, attempt.manifest.owner)
        if attempt.active:
            self.leases.restore(attempt.id, attempt.manifest.leases)
        else:
            self.fences.put(attempt.id)

    def forget(self, attempt: Attempt) -> None:
        """Deletes what is left of an attempt that has ended."""
        del self.attempts[attempt.id]
        self.subscribers.forget(attempt.id)
        self.followers.forget(attempt.id)
        attempt.directory.discard()
        self._spawn(asyncio.to_thread(self._delete, attempt))

    def _delete(self, attempt: Attempt) -> None:
        attempt.directory.delete()
        self.places.clear(attempt.id)

    def watch_process(
        self, attempt: Attempt, task: TaskId, pid: int, *, adopted: bool, group: bool = True
    ) -> None:
        """A process is a task of an attempt from now on; ``group``: what is in its group goes with it."""
        attempt.pids[task] = pid
        self._by_pid[pid] = (attempt, task, pid if group else None)
        self.processes.add(pid, adopted=adopted)

    def task_gone(self, attempt: Attempt, task: TaskId, status: int | None) -> None:
        """A task and all that it left behind are gone."""
        attempt.pids.pop(task, None)
        outcome = attempt.directory.read_outcome(task)
        tail = attempt.directory.log_tail(task)
        self.feed(attempt, TaskExited(task, Exit.from_wait_status(status), outcome, tail))

    def _do(self, attempt: Attempt, instruction: Instruction) -> None:
        match instruction:
            case ForkTask():
                lease = attempt.manifest.lease(instruction.task)
                environment = share.environment(lease) | self.places.of_attempt(attempt.id)
                request = ForkRequest(attempt.id, instruction.task, attempt.directory.path, environment)
                attempt.first_records[instruction.task] = SpoolReader(
                    attempt.directory.spool_path(instruction.task)
                )
                self.zygote.fork(request)
            case WithdrawFork():
                if not self._withdraw(attempt, instruction.task) and instruction.force:
                    self.zygote.replace()  # the rest follows from its death
            case SignalTask():
                pid = attempt.pids.get(instruction.task)
                if pid is not None:  # otherwise its end is about to be told
                    self.processes.signal(pid, instruction.rung)
            case ReleaseLease():
                self._release(attempt)
            case RecordEvent():
                self._record(attempt, instruction.event)

    def _withdraw(self, attempt: Attempt, task: TaskId) -> bool:
        withdrawn = self.zygote.withdraw(attempt.id, task)
        if withdrawn:
            self.feed(attempt, TaskForkWithdrawn(task))
        return withdrawn

    def _release(self, attempt: Attempt) -> None:
        pids = attempt.started_pids
        self.leases.release(attempt.id, gpus=not pids)
        self.gpus.depart(attempt.id, pids)
        self.fences.put(attempt.id)
        if attempt.directory.doorbell is not None:
            self._loop.remove_reader(attempt.directory.doorbell)
            attempt.directory.close_doorbell()
        attempt.first_records.clear()

    def _record(self, attempt: Attempt, event: AgentEvent) -> None:
        attempt.log.append(time.time(), event)
        self.subscribers.touch(attempt)
        self.followers.take(attempt.id, event)
        if isinstance(event, AttemptEnded):
            logger.info("%s ended (%s)", attempt.id, event.reason.value)
            self._idle.set()

    def _doorbell_rang(self, attempt: Attempt) -> None:
        attempt.directory.answer_doorbell()
        self._look_for_ready(attempt)
        self.subscribers.touch(attempt)

    def _look_for_ready(self, attempt: Attempt) -> None:
        for task in attempt.machine.tasks_in(TaskState.STARTING):
            try:
                ready = attempt.first_records[task].read(1)
            except OSError as error:  # the next report rings again
                logger.error("cannot read what %s of %s says: %s", task, attempt.id, error.strerror)  # noqa: TRY400
                continue
            if ready:
                self.feed(attempt, TaskBecameReady(task))

    def _set_timer(self, attempt: Attempt) -> None:
        if attempt.timer is not None:
            attempt.timer.cancel()
            attempt.timer = None
        deadline = attempt.machine.deadline
        if attempt.active and deadline is not None:
            attempt.timer = self._loop.call_at(deadline, self.feed, attempt, DeadlineReached())

    def _check_open(self, attempt_id: AttemptId) -> None:
        if self._shutting_down:
            raise ShuttingDownError("the agent shuts down")
        self.fences.check(attempt_id, self.attempts)

    # --- processes --------------------------------------------------------------------------

    def task_forked(self, request: ForkRequest, pid: int, start_ticks: int) -> None:
        """From the zygote: a task lives."""
        attempt = self.attempts[request.attempt]
        owned = True if self.places.user is None else self.places.user.owns(pid)
        if owned is False or pid in self._by_pid:
            # A task that has got hold of the zygote would have us signal whatever it names.
            message = f"the zygote named process {pid}, which is no task of its, for {request.task}"
            logger.error("%s; it is replaced", message)
            self.zygote.replace()
            self.feed(attempt, TaskForkFailed(request.task, Failure(FailureKind.INTERNAL, message)))
            return
        # Of one that is gone nobody can tell whether the group of that number is its own; what is left
        # of a task is ours to reap, group or not.
        self.watch_process(attempt, request.task, pid, adopted=False, group=owned is not None)
        self.feed(attempt, TaskForked(request.task, pid, start_ticks))
        self._look_for_ready(attempt)  # it may have rung before its fork was told

    def fork_failed(self, request: ForkRequest, failure: Failure) -> None:
        """From the zygote: a task could not be forked."""
        self.feed(self.attempts[request.attempt], TaskForkFailed(request.task, failure))

    def task_reaped(self, pid: int, status: int) -> None:
        """From the zygote: a task is gone."""
        self.processes.reaped_by_zygote(pid, status)

    async def zygote_died(self, lost: Sequence[ForkRequest]) -> None:
        """From the zygote: it is dead. What it forked and did not tell is ended before it is repeated."""
        self.processes.adopt_all()
        await self.processes.clean_up()
        for request in lost:
            attempt = self.attempts.get(request.attempt)
            if attempt is not None and attempt.active:
                attempt.directory.forget_task(request.task)
                if attempt.machine.state is AttemptState.STOPPING:
                    self._withdraw(attempt, request.task)

    def _child_signalled(self, _number: int, _frame: object) -> None:
        self._loop.call_soon_threadsafe(self.processes.child_signalled)

    def _own_children(self) -> Iterable[int]:
        pid = self.zygote.pid
        return () if pid is None else (pid,)

    def _process_exited(self, pid: int, status: int | None) -> None:
        attempt, task, group = self._by_pid.pop(pid)
        if self.processes.needs_clean_up(group):
            self._spawn(self._clean_up_after(attempt, task, group, status))
        else:
            self.task_gone(attempt, task, status)

    async def _clean_up_after(
        self, attempt: Attempt, task: TaskId, group: int | None, status: int | None
    ) -> None:
        try:
            await self.processes.clean_up(group)
        finally:
            self.task_gone(attempt, task, status)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(log_exception)

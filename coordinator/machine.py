"""The core of a study: events in, instructions out; no clock, no I/O, no loop.

The machine proposes trials, places them, follows their attempts, retries, narrows the stages,
and ends the study. ``handle`` is the only way in. An event that the tables of ``transitions``
do not allow raises and changes nothing.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping

from coordinator import events as ev
from coordinator.attempt import CHIEF, RETRIED, Attempt, Completed, Failed, Refused, Stopped, final_failure
from coordinator.availability import Availability
from coordinator.domain import (
    AttemptId,
    Failure,
    Notice,
    StopReason,
    Study,
    StudySpec,
    StudyState,
    Trial,
    TrialState,
)
from coordinator.instructions import (
    Instruction,
    PrepareAttempt,
    Save,
    SetTimer,
    StartAttempt,
    StopAttempt,
    Tell,
)
from coordinator.keeping import Keeping
from coordinator.placement import Placement
from coordinator.progress import Progress, Propose
from coordinator.search import random_search
from coordinator.transitions import STUDY, AttemptState, IllegalTransitionError, LateEventError
from coordinator.trials import LiveTrial, trial_seed
from nhop_models.contract import TaskId, TaskRole

PREPARING_AT_ONCE = 16
"""Attempts that may be waiting for their hosts' leases. With a thousand hosts, as many commands at once
would take so long to leave, and their answers to be heard, that everything else would be late. With 64
the most trials a second are up to a third more, and slow answers take two to three times as long."""


class StudyMachine:
    """One study. ``slots`` maps each host to its slots, in the order of the hosts file.

    ``now`` is a monotonic clock in seconds, ``started_at`` the same moment in seconds since the
    epoch. ``rng`` spreads when refusing hosts are asked again; None: seeded by the id of the run,
    which no two coordinators share.
    """

    def __init__(
        self,
        spec: StudySpec,
        slots: Mapping[str, int],
        *,
        now: float,
        started_at: float,
        propose: Propose = random_search.propose,
        rng: random.Random | None = None,
    ) -> None:
        self.spec = spec
        self.state = StudyState.RUNNING
        self._progress = Progress(spec, propose)
        rng = rng or random.Random(spec.run_id or spec.study_id)  # noqa: S311 - keeps no secret
        self._availability = Availability(slots, spec.cluster, spec.placement, rng)
        self._capacity = self._availability.capacity
        self._keeping = Keeping(spec)
        self._started_now, self._started_at = now, started_at
        self._ended_at: float | None = None
        self._waiting: deque[LiveTrial] = deque()
        self._live: dict[AttemptId, LiveTrial] = {}
        self._preparing: list[Attempt] = []
        self._goal = StudyState.COMPLETED
        self._reason = ""
        self._shown: Study | None = None
        self.late_messages = 0

    # --- what others see ----------------------------------------------------------------------

    def study(self) -> Study:
        """The study as others see it."""
        return Study(
            study_id=self.spec.study_id,
            state=self.state,
            stages=tuple(stage.snapshot() for stage in self._progress.stages),
            number_of_stages=len(self.spec.stages),
            counts=self._progress.tally.snapshot(),
            best=self._progress.best,
            reason=self._reason,
            started_at=self._started_at,
            ended_at=self._ended_at,
            model_trial=self._keeping.model_trial,
            model_problem=self._keeping.problem,
            late_messages=self.late_messages,
        )

    def trials(self) -> tuple[Trial, ...]:
        """All trials so far, by number."""
        return tuple(trial.snapshot() for trial in self._progress.trials)

    def is_live(self, attempt: AttemptId) -> bool:
        """Whether messages of this attempt still count."""
        return attempt in self._live

    def place(self, trial: int, task: TaskId) -> tuple[AttemptId, str] | None:
        """The live attempt of a trial once all its tasks are leased, and the host of one of them."""
        trials = self._progress.trials
        attempt = trials[trial - 1].attempt if trial <= len(trials) else None
        if attempt is None or attempt.id not in self._live or attempt.state is AttemptState.PREPARING:
            return None
        host = attempt.host_of(task)
        return None if host is None else (attempt.id, host)

    # --- the way in ---------------------------------------------------------------------------

    def handle(self, event: ev.Event, now: float) -> list[Instruction]:
        """Takes one event.

        Raises LateEventError for messages of attempts that are over (harmless), and
        IllegalTransitionError for what must not happen; nothing is changed then.
        """
        if isinstance(event, ev.AttemptEvent):
            instructions = list(self._attempt_event(event, now))
        else:
            instructions = list(self._study_event(event, now))
        instructions += self._go_on(now)
        study = self.study()
        if study != self._shown:
            self._shown = study
            instructions.append(Save(study))
        return instructions

    def _study_event(self, event: ev.StudyEvent, now: float) -> Iterator[Instruction]:
        if isinstance(event, ev.StudyBegun):
            if self._progress.stages:
                raise IllegalTransitionError("the study has begun already")
            if self.state is not StudyState.RUNNING:
                return  # stopped before it began
            yield Save(self._progress.begin_stage())
            if self.spec.time_budget is not None:
                yield SetTimer(ev.TimeBudgetTimer(), now + self.spec.time_budget)
            return
        if self.state.ended or self._is_foreign(event):
            return
        match event:
            case ev.StopRequested(reason):
                yield from self._stop(StudyState.STOPPED, reason, now)
            case ev.StudyAborted(state, reason):
                yield from self._abort(state, reason, now)
            case ev.ShareChanged(slots, crowded):
                self._capacity.share, self._capacity.crowded = slots, crowded
            case ev.SlotsReleased(host):
                self._capacity.reopen(host)
            case ev.HostJoined(host, slots):
                yield from self._availability.joined(host, slots, now)
            case ev.HostLeft(host):
                yield from self._availability.left(host, now)
            case ev.HostLost(host, reason):
                yield from self._host_lost(host, reason, now)
            case ev.HostFound(host):
                yield from self._availability.found(host, now)
            case ev.HostAwaited(host):
                self._capacity.expect(host)
            case ev.HostSilent(host):
                self._capacity.set_silent(host, silent=True)
            case ev.HostHeard(host):
                yield from self._availability.heard(host)
            case ev.HostRestarted(host):
                yield from self._host_restarted(host)
            case ev.CheckpointFetched(attempt):
                trial = self._progress.trials[attempt.trial - 1]
                if not trial.state.ended:
                    yield from self._keeping.checkpoint_fetched(trial, event)
            case ev.ModelPublished():
                yield from self._keeping.published(event)
            case ev.TimerFired(timer):
                yield from self._timer(timer, now)

    def _is_foreign(self, event: ev.StudyEvent) -> bool:
        """Whether an event is of a host that left before this study came: others still have to do with it."""
        about = (
            *(ev.HostLost, ev.HostFound, ev.HostAwaited, ev.HostSilent, ev.HostHeard, ev.HostRestarted),
            ev.SlotsReleased,
        )
        return isinstance(event, about) and not self._capacity.knows(event.host)

    def _timer(self, timer: ev.Timer, now: float) -> Iterator[Instruction]:
        match timer:
            case ev.TimeBudgetTimer():
                reason = f"the time budget of {self.spec.time_budget:g} s is used up"
                yield from self._stop(StudyState.COMPLETED, reason, now)
            case ev.BackOffTimer(host, pause):
                self._capacity.reopen(host, pause)
            case ev.StopTimer(identity, host):
                yield from self._stop_overdue(identity, host, now)
            case ev.HostsGoneTimer():
                why = self._availability.why_give_up(timer)
                if why is not None:
                    yield from self._stop(StudyState.FAILED, why, now)
            case ev.CrowdedOutTimer():
                yield from self._availability.tell_crowded_out(timer)

    # --- attempts -----------------------------------------------------------------------------

    def _attempt_event(self, event: ev.AttemptEvent, now: float) -> Iterator[Instruction]:
        trial = self._live.get(event.attempt)
        if trial is None or trial.attempt is None:
            if self._availability.leftover_gone(event):
                yield from self._availability.forget(event.host)
                return
            raise LateEventError(f"{event.attempt} is over or unknown: {type(event).__name__} refused")
        attempt = trial.attempt
        before = attempt.state
        try:
            yield from attempt.handle(event, now)
        except LateEventError:
            if self._availability.leftover_gone(event):
                yield from self._availability.forget(event.host)
                return
            raise
        if isinstance(event, ev.PrepareRefused | ev.PrepareFailed):
            yield from self._availability.back_off(event, now)
        elif isinstance(event, ev.CheckpointSaved) and self.state is StudyState.RUNNING:
            yield from self._keeping.checkpoint_saved(trial, event)
        elif isinstance(event, ev.TaskEnded) and event.task == CHIEF:
            yield from self._keeping.chief_ended(trial, event, self._progress.best)
        if before is AttemptState.PREPARING and attempt.state is AttemptState.STARTING:
            yield from self._start(trial, attempt)
        yield from self._settle(trial, attempt, now)

    def _launch(self, trial: LiveTrial, placement: Placement, now: float) -> Iterator[Instruction]:
        if trial.attempts == 0 or trial.attempt is not None:
            trial.attempts += 1
        identity = AttemptId(self.spec.study_id, trial.number, trial.attempts, self.spec.run_id)
        attempt = Attempt(identity, placement, self.spec.limits, now)
        trial.attempt, trial.hosts = attempt, attempt.hosts
        self._live[identity] = trial
        self._preparing.append(attempt)
        self._capacity.hold(identity, placement)
        self._progress.tally.move(trial, TrialState.RUNNING)
        yield Save(trial.snapshot())
        yield Save(attempt.record(self._at(now)))
        for host, tasks in placement.items():
            ports = self.spec.cluster.ps > 0
            yield PrepareAttempt(identity, host, tasks, ports, restores=trial.checkpoint is not None)

    def _start(self, trial: LiveTrial, attempt: Attempt) -> Iterator[Instruction]:
        self._availability.room_found(attempt)
        cluster = self.spec.cluster
        ps = _addresses(attempt, TaskRole.PS, cluster.ps)
        workers = _addresses(attempt, TaskRole.WORKER, cluster.workers) if cluster.ps else ()
        seed = trial_seed(self.spec.seed, trial.number)
        train_epoch = self._progress.stages[trial.stage - 1].budget.train_epoch
        below = self._keeping.below(trial, self._progress.best)
        attempt.restore = trial.checkpoint
        for host in attempt.hosts:
            restore = attempt.restore is not None and host == attempt.hosts[0]
            yield StartAttempt(
                attempt.id, host, ps, workers, trial.parameters, train_epoch, seed, below, restore
            )

    def _settle(self, trial: LiveTrial, attempt: Attempt, now: float) -> Iterator[Instruction]:
        """Gives back the slots of hosts that are through; once all are, the verdict becomes the trial's."""
        yield from self._availability.give_back(attempt, now)
        if attempt.state is not AttemptState.ENDED:
            return
        del self._live[attempt.id]
        trial.seconds = now - attempt.began
        trial.notes += [note for note in attempt.notes if note not in trial.notes]
        verdict = attempt.verdict(self.spec.objective)
        yield Save(attempt.record(self._at(attempt.began), self._at(now)))
        match verdict:
            case Completed():
                trial.loss = verdict.loss
                trial.train_loss, trial.val_loss = verdict.train_loss, verdict.val_loss
                trial.metrics, trial.failure = verdict.metrics, None
                yield from self._end(trial, TrialState.COMPLETED)
            case Failed():
                trial.failures += 1
                trial.failure = verdict.failure
                if self._may_retry(trial, verdict.failure):
                    yield from self._retry(trial, attempt, verdict.failure)
                    return
                trial.train_loss, trial.val_loss = verdict.train_loss, verdict.val_loss
                trial.failure = final_failure(verdict.failure, trial.failures)
                yield from self._end(trial, TrialState.FAILED)
            case Stopped():
                yield from self._end(trial, TrialState.STOPPED)
            case Refused(leased):
                trial.seconds = None
                if self.state is StudyState.RUNNING:
                    if not leased:
                        trial.attempt = None  # no host knows this number: it is used again
                    self._progress.tally.move(trial, TrialState.WAITING)
                    self._waiting.appendleft(trial)
                else:
                    yield from self._end(trial, TrialState.STOPPED)
        yield Save(trial.snapshot())

    def _end(self, trial: LiveTrial, state: TrialState) -> Iterator[Instruction]:
        self._progress.end(trial, state)
        yield from self._keeping.trial_ended(trial, self._progress.best)

    def _may_retry(self, trial: LiveTrial, failure: Failure) -> bool:
        return (
            failure.kind in RETRIED
            and trial.failures < self.spec.max_attempts
            and self.state is StudyState.RUNNING
        )

    def _retry(self, trial: LiveTrial, attempt: Attempt, failure: Failure) -> Iterator[Instruction]:
        trial.notes.append(f"attempt {attempt.id.attempt} failed ({failure.kind.value}: {failure.message})")
        self._progress.tally.move(trial, TrialState.WAITING)
        self._waiting.append(trial)
        yield Save(trial.snapshot())
        yield Tell(
            Notice(
                f"trial {trial.number} is tried again after {failure.kind.value}: {failure.message}",
                warning=True,
            )
        )

    # --- hosts --------------------------------------------------------------------------------

    def _host_lost(self, host: str, reason: str, now: float) -> Iterator[Instruction]:
        yield from self._availability.lost(host, reason)
        for identity, trial in list(self._live.items()):
            if trial.attempt is not None and host in trial.attempt.hosts:
                yield from self._lose(identity, trial, host, reason, now)
        yield from self._availability.check(now)

    def _host_restarted(self, host: str) -> Iterator[Instruction]:
        yield from self._availability.restarted(host)
        for trial in self._live.values():
            if trial.attempt is not None and host in trial.attempt.hosts:
                yield from trial.attempt.check_on(host)

    def _stop_overdue(self, identity: AttemptId, host: str, now: float) -> Iterator[Instruction]:
        trial = self._live.get(identity)
        if trial is None or trial.attempt is None or trial.attempt.is_over_on(host):
            return
        yield from self._lose(identity, trial, host, "it does not say that the attempt has ended", now)
        yield StopAttempt(identity, host, StopReason.RELEASED)
        yield from self._availability.check(now)

    def _lose(
        self, identity: AttemptId, trial: LiveTrial, host: str, reason: str, now: float
    ) -> Iterator[Instruction]:
        attempt = trial.attempt
        assert attempt is not None
        if attempt.is_over_on(host):
            return
        yield from attempt.lose(host, reason, now)
        self._capacity.abandon(identity, host)
        yield from self._settle(trial, attempt, now)

    # --- the study ----------------------------------------------------------------------------

    def _go_on(self, now: float) -> Iterator[Instruction]:
        """Whatever the state calls for now: the end, the next stage, the next trials."""
        if self.state is StudyState.RUNNING:
            yield from self._check_goals(now)
        while self.state is StudyState.RUNNING and self._progress.stages and self._progress.stage.over:
            yield from self._end_stage(now)
        if self.state is StudyState.RUNNING and self._progress.stages:
            yield from self._fill(now)
        if self.state is StudyState.STOPPING and not self._live and not self._keeping.pending:
            yield from self._finish(now)

    def _check_goals(self, now: float) -> Iterator[Instruction]:
        progress = self._progress
        if progress.goal_reached and progress.best is not None:
            reason = f"trial {progress.best.number} reached opt_tolerance {self.spec.opt_tolerance:g}"
            yield from self._stop(StudyState.COMPLETED, reason, now)
        elif (failure := progress.hopeless) is not None:
            reason = f"the model or its data failed the first trials: {failure.message}"
            yield from self._stop(StudyState.FAILED, reason, now)

    def _fill(self, now: float) -> Iterator[Instruction]:
        progress = self._progress
        self._preparing = [a for a in self._preparing if a.state is AttemptState.PREPARING]
        while self._may_launch:
            # A new attempt waits for the checkpoint from which it shall go on.
            waiting = next((trial for trial in self._waiting if trial.checkpoint_wanted is None), None)
            if waiting is None and progress.stage.exhausted:
                return
            placement = self._capacity.place()
            if placement is None:
                return
            if waiting is not None:
                self._waiting.remove(waiting)
            trial = waiting or progress.propose()
            yield from self._launch(trial, placement, now)

    @property
    def _may_launch(self) -> bool:
        parallel = self.spec.parallel_trials
        return len(self._preparing) < PREPARING_AT_ONCE and (
            parallel is None or self._progress.tally[TrialState.RUNNING] < parallel
        )

    def _end_stage(self, now: float) -> Iterator[Instruction]:
        yield Save(self._progress.end_stage())
        if self._progress.in_last_stage:
            yield from self._stop(StudyState.COMPLETED, "", now)
        else:
            yield Save(self._progress.begin_stage())

    def _stop(self, goal: StudyState, reason: str, now: float) -> Iterator[Instruction]:
        """Starts nothing more, ends what runs; the study then ends as ``goal``."""
        if self.state is not StudyState.RUNNING:
            return
        self._move(StudyState.STOPPING)
        self._goal, self._reason = goal, reason
        yield from self._stop_waiting()
        for trial in list(self._live.values()):
            if trial.attempt is not None:
                attempt = trial.attempt
                yield from attempt.stop(StopReason.STUDY_STOPPED, now)
                yield from self._settle(trial, attempt, now)

    def _stop_waiting(self) -> Iterator[Instruction]:
        while self._waiting:
            trial = self._waiting.popleft()
            yield from self._end(trial, TrialState.STOPPED)
            yield Save(trial.snapshot())

    def _abort(self, state: StudyState, reason: str, now: float) -> Iterator[Instruction]:
        self._goal, self._reason = state, reason
        yield from self._stop_waiting()
        for identity, trial in list(self._live.items()):
            assert trial.attempt is not None
            for host in trial.attempt.hosts:
                if not trial.attempt.is_over_on(host):
                    yield StopAttempt(identity, host, StopReason.STUDY_STOPPED)
            del self._live[identity]
            trial.seconds = now - trial.attempt.began
            yield from self._end(trial, TrialState.STOPPED)
            yield Save(trial.snapshot())
        yield from self._finish(now)

    def _finish(self, now: float) -> Iterator[Instruction]:
        goal, progress = self._goal, self._progress
        self._keeping.study_ended()
        if goal is StudyState.COMPLETED and progress.best is None:
            goal = StudyState.FAILED
            why = f": {progress.first_failure.message}" if progress.first_failure else ""
            self._reason = f"{self._reason or 'the stages are done'}, and no trial completed{why}"
        if progress.stages:
            yield Save(progress.end_stage())
        self._move(goal)
        self._ended_at = self._at(now)

    def _move(self, state: StudyState) -> None:
        if state not in STUDY[self.state]:
            raise IllegalTransitionError(f"a study cannot go from {self.state} to {state}")
        self.state = state

    def _at(self, now: float) -> float:
        return self._started_at + (now - self._started_now)


def _addresses(attempt: Attempt, role: TaskRole, number: int) -> tuple[str, ...]:
    return tuple(attempt.addresses[TaskId(role, index)] for index in range(number))

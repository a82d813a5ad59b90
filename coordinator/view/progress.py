"""How far a study is, from the updates that it sends; no clock of its own, no output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coordinator.domain import Report, Reports, Study, StudySpec, Trial, TrialCounts, TrialState, Update
from coordinator.search.space import Space, is_fixed


class Progress:
    """The newest state of the study and of its running trials."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        self.study: Study | None = None
        self.running: dict[int, Trial] = {}
        self.reports: dict[int, Report] = {}
        self._steps_done = 0
        self._steps_total = sum(stage.train_epoch * stage.opt_epoch for stage in spec.stages)

    def take(self, update: Update) -> None:
        """Takes one update."""
        if isinstance(update, Study):
            self.study = update
        elif isinstance(update, Trial):
            if update.state is TrialState.RUNNING:
                if update.number not in self.running:
                    self.reports.pop(update.number, None)
                self.running[update.number] = update
                return
            self.running.pop(update.number, None)
            self.reports.pop(update.number, None)
            if update.state.ended:
                self._steps_done += self.steps_of(update)
        elif isinstance(update, Reports) and update.task.is_chief and update.attempt.trial in self.running:
            self.reports[update.attempt.trial] = update.last

    def steps_of(self, trial: Trial) -> int:
        """Global steps that a trial trains for."""
        return self.spec.stages[trial.stage - 1].train_epoch

    def describe(self, trial: Trial) -> str:
        """A trial's searched parameters in one line."""
        return describe_parameters(trial.parameters, self.spec.space)

    @property
    def counts(self) -> TrialCounts:
        """Trials by state."""
        return self.study.counts if self.study else TrialCounts()

    @property
    def ended(self) -> int:
        """Trials that have reached their terminal state."""
        counts = self.counts
        return counts.completed + counts.pruned + counts.failed + counts.stopped

    def elapsed(self, now: float) -> float:
        """Seconds since the study began; ``now`` in seconds since the epoch."""
        return max(now - self.study.started_at, 0.0) if self.study else 0.0

    def trials_per_minute(self, now: float) -> float | None:
        """Rate of ended trials; None before the first."""
        elapsed = self.elapsed(now)
        return 60.0 * self.ended / elapsed if self.ended and elapsed else None

    def seconds_left(self, now: float) -> float | None:
        """Time until the last trial ends, at the rate of global steps so far; None while unknown."""
        share = sum(min(report.step, self.steps_of(self.running[n])) for n, report in self.reports.items())
        done = self._steps_done + share
        if not done:
            return None
        left = self.elapsed(now) * (self._steps_total - done) / done
        if self.spec.time_budget is not None:
            left = min(left, max(self.spec.time_budget - self.elapsed(now), 0.0))
        return max(left, 0.0)


def describe_parameters(parameters: Mapping[str, Any], space: Space) -> str:
    """The searched parameters in one line, as in ``learning_rate=0.00213 hidden_layers=6-5``."""
    return " ".join(
        f"{name}={describe_value(value)}"
        for name, value in parameters.items()
        if name not in space or not is_fixed(space[name])
    )


def describe_value(value: Any) -> str:
    """A value of a hyper-parameter, short."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return "-".join(map(str, value))
    return str(value)


def describe_seconds(seconds: float) -> str:
    """A duration: ``9 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def describe_loss(loss: float | None) -> str:
    """A loss with four significant digits."""
    return "-" if loss is None else f"{loss:.4g}"

"""How far a study has come: its stages and trials, the best one, the first failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from coordinator.domain import Failure, Stage, StudySpec, Trial, TrialState
from coordinator.search.space import Space
from coordinator.stages import narrow
from coordinator.trials import LiveStage, LiveTrial, Tally
from nhop_models.contract import FailureKind

HOPELESS_AFTER = 3
"""If the first trials, this many, all failed by the user's code or data, the rest would too."""

Propose = Callable[[int, int, Space], Mapping[str, Any]]


class Progress:
    """Trials are numbered in the order of their stages; a stage is over when all its trials ended."""

    def __init__(self, spec: StudySpec, propose: Propose) -> None:
        self._spec = spec
        self._propose = propose
        self.stages: list[LiveStage] = []
        self.trials: list[LiveTrial] = []
        self.tally = Tally(sum(stage.opt_epoch for stage in spec.stages))
        self.best: Trial | None = None
        self.first_failure: Failure | None = None
        """How the first trial to fail did."""

    @property
    def stage(self) -> LiveStage:
        """The stage that runs."""
        return self.stages[-1]

    @property
    def in_last_stage(self) -> bool:
        """Whether no other stage follows."""
        return len(self.stages) == len(self._spec.stages)

    @property
    def goal_reached(self) -> bool:
        """Whether a trial is as good as ``opt_tolerance`` asks for; 0 asks for nothing."""
        tolerance = self._spec.opt_tolerance
        return bool(tolerance) and self.best is not None and rank(self.best)[0] <= tolerance

    @property
    def hopeless(self) -> Failure | None:
        """How the first trial failed, if the first ones all failed by what would fail the others too.

        The first by number: where many run at once, those that fail are the first to end in any case.
        """
        if self.best is not None:  # asked at every turn
            return None
        failures = [
            trial.failure for trial in self.trials[:HOPELESS_AFTER] if trial.state is TrialState.FAILED
        ]
        broken = [
            f for f in failures if f is not None and f.kind in (FailureKind.USER_CODE, FailureKind.DATA)
        ]
        return broken[0] if len(broken) == HOPELESS_AFTER else None

    def begin_stage(self) -> Stage:
        """Begins the first or the next stage.

        The next one searches around the best trial so far, or in the same space where no trial of
        the stage before has completed.
        """
        space = self._spec.space
        if self.stages:
            space = self.stage.space
            if self.stage.completed and self.best is not None:
                space = narrow(space, self._spec.space, self.best.parameters, self._spec.narrow_factor)
        self.stages.append(LiveStage(len(self.stages) + 1, self._spec.stages[len(self.stages)], space))
        return self.stage.snapshot()

    def end_stage(self) -> Stage:
        """Fixes the best trial up to the end of the stage."""
        self.stage.best = self.best
        return self.stage.snapshot()

    def propose(self) -> LiveTrial:
        """The next trial of the stage; its parameters depend on seed, number and space alone."""
        number = len(self.trials) + 1
        parameters = self._propose(self._spec.seed, number, self.stage.space)
        trial = LiveTrial(number, self.stage.number, parameters)
        self.stage.proposed += 1
        self.trials.append(trial)
        self.tally.add(trial)
        return trial

    def end(self, trial: LiveTrial, state: TrialState) -> None:
        """Ends a trial."""
        self.tally.move(trial, state)
        trial.attempt = None
        stage = self.stages[trial.stage - 1]
        stage.ended += 1
        if state is TrialState.COMPLETED:
            stage.completed += 1
            if self.best is None or rank(trial) < rank(self.best):
                self.best = trial.snapshot()
        elif state is TrialState.FAILED and self.first_failure is None:
            self.first_failure = trial.failure


def rank(trial: Trial | LiveTrial) -> tuple[float, int]:
    """Order of completed trials, the best first; among equals the first."""
    assert trial.loss is not None
    return trial.loss, trial.number

"""The live state of trials and stages, and the frozen snapshots that others see."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coordinator.attempt import Attempt
from coordinator.domain import Checkpoint, Failure, Stage, StageBudget, Trial, TrialCounts, TrialState
from coordinator.search.space import Space
from coordinator.transitions import TRIAL, IllegalTransitionError


@dataclass(slots=True)
class LiveTrial:
    """A trial on its way; ``failures`` counts the attempts that failed.

    ``has_model``: it was or is fetched. ``checkpoint`` is the newest that is here,
    ``checkpoint_wanted`` the newest that is on its way.
    """

    number: int
    stage: int
    parameters: Mapping[str, Any]
    state: TrialState = TrialState.WAITING
    attempt: Attempt | None = None
    attempts: int = 0
    failures: int = 0
    loss: float | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    failure: Failure | None = None
    seconds: float | None = None
    hosts: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    metrics: Mapping[str, float] = field(default_factory=dict)
    has_model: bool = False
    checkpoint: Checkpoint | None = None
    checkpoint_wanted: Checkpoint | None = None
    checkpoint_lost: bool = False

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint is here, or on its way."""
        return self.checkpoint is not None or self.checkpoint_wanted is not None

    def snapshot(self) -> Trial:
        """The trial as others see it."""
        return Trial(
            number=self.number,
            stage=self.stage,
            state=self.state,
            parameters=self.parameters,
            loss=self.loss,
            train_loss=self.train_loss,
            val_loss=self.val_loss,
            failure=self.failure,
            attempts=self.attempts,
            seconds=self.seconds,
            hosts=self.hosts,
            notes=tuple(self.notes),
            metrics=self.metrics,
        )


@dataclass(slots=True)
class LiveStage:
    """A stage on its way."""

    number: int
    budget: StageBudget
    space: Space
    proposed: int = 0
    ended: int = 0
    completed: int = 0
    best: Trial | None = None

    @property
    def exhausted(self) -> bool:
        """Whether every trial of the stage has been proposed."""
        return self.proposed >= self.budget.opt_epoch

    @property
    def over(self) -> bool:
        """Whether every trial of the stage has ended."""
        return self.ended >= self.budget.opt_epoch

    def snapshot(self) -> Stage:
        """The stage as others see it."""
        return Stage(self.number, self.budget, self.space, self.best)


class Tally:
    """The only way to change a trial's state: by the table, and counted."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._counts: Counter[TrialState] = Counter()

    def add(self, trial: LiveTrial) -> None:
        """Counts a new trial."""
        self._counts[trial.state] += 1

    def move(self, trial: LiveTrial, state: TrialState) -> None:
        """Changes a trial's state; raises IllegalTransitionError where the table does not allow it."""
        if state not in TRIAL[trial.state]:
            raise IllegalTransitionError(f"trial {trial.number} cannot go from {trial.state} to {state}")
        self._counts[trial.state] -= 1
        self._counts[state] += 1
        trial.state = state

    def __getitem__(self, state: TrialState) -> int:
        return self._counts[state]

    def snapshot(self) -> TrialCounts:
        """The counts as others see them."""
        counts = {state.value: self._counts[state] for state in TrialState}
        return TrialCounts(total=self._total, **counts)


def trial_seed(seed: int, trial: int) -> int:
    """Seed of a trial's weights and batches, the same for each of its attempts: 0 to 2**31 - 1."""
    digest = hashlib.blake2b(f"{seed}/{trial}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1

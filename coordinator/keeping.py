"""Which files of trials are worth having: the best trial's model, and the newest checkpoint of each.

Pure, as the machine that it belongs to. Of a trial that may become the best the model is fetched
once its chief has ended, while its agent still has it; when the trial's verdict is known the model
is published as the best one, or dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from coordinator import events as ev
from coordinator.domain import Checkpoint, Notice, Objective, StudySpec, TaskResult, Trial
from coordinator.instructions import (
    DropArtifacts,
    FetchArtifacts,
    FetchCheckpoint,
    Instruction,
    PublishModel,
    Tell,
)
from coordinator.trials import LiveTrial
from nhop_models.contract import MODEL_FILE, PREDICTIONS_FILE, TaskStatus

KEPT_FILES = (MODEL_FILE, PREDICTIONS_FILE)
"""What is kept of the best trial."""

TOO_LATE = "the study ended before it was fetched"


class Keeping:
    """``model_trial`` and ``problem`` as in ``Study``."""

    def __init__(self, spec: StudySpec) -> None:
        self._spec = spec
        self._publishing: int | None = None
        self.model_trial: int | None = None
        self.problem = ""

    @property
    def pending(self) -> bool:
        """Whether the best trial's model is still on its way."""
        return self._publishing is not None

    # --- the best model -----------------------------------------------------------------------

    def below(self, trial: LiveTrial, best: Trial | None) -> float | None:
        """The loss on held-out data below which the chief need save its model; None: in any case."""
        return _bound(trial, best) if self._spec.objective is Objective.VAL_LOSS else None

    def chief_ended(self, trial: LiveTrial, event: ev.TaskEnded, best: Trial | None) -> Iterator[Instruction]:
        """Fetches the model of a trial that has completed, if it may become the best."""
        result = event.result
        files = {name: result.artifacts[name] for name in KEPT_FILES if name in result.artifacts}
        wanted = self._spec.training.keep_model and result.status is TaskStatus.COMPLETED
        if wanted and MODEL_FILE in files and self._may_win(trial, result, best):
            trial.has_model = True
            yield FetchArtifacts(event.attempt, event.host, files)

    def _may_win(self, trial: LiveTrial, result: TaskResult, best: Trial | None) -> bool:
        loss = result.val_loss
        if self._spec.objective is Objective.TRAIN_LOSS:
            if self._spec.cluster.workers > 1:
                return True  # another worker may have seen a smaller loss than the chief
            loss = result.train_loss
        bound = _bound(trial, best)
        return loss is not None and math.isfinite(loss) and (bound is None or loss < bound)

    def trial_ended(self, trial: LiveTrial, best: Trial | None) -> Iterator[Instruction]:
        """Publishes the model of a trial that is the best now, removes the files of another one."""
        is_best = best is not None and best.number == trial.number
        older = self.model_trial is not None or self.pending
        if is_best and (trial.has_model or older):
            # Without a model of its own, too: what an older trial left is not the best any more.
            self._publishing, self.problem = trial.number, ""
            yield PublishModel(trial.number)
        elif trial.has_model or trial.has_checkpoint:
            yield DropArtifacts(trial.number)

    def published(self, event: ev.ModelPublished) -> Iterator[Instruction]:
        """The model of a trial is in its place, or cannot be had."""
        if event.trial != self._publishing:
            return  # another one is the best meanwhile
        self._publishing = None
        self.model_trial = event.trial if event.saved else None
        self.problem = event.problem
        if event.problem:
            what = "predictions" if event.saved else "model"
            message = (
                f"the {what} of trial {event.trial}, the best so far, could not be kept: {event.problem}"
            )
            yield Tell(Notice(message, warning=True))

    def study_ended(self) -> None:
        """Nothing is waited for any more."""
        if self.pending:
            self._publishing, self.model_trial, self.problem = None, None, TOO_LATE

    # --- checkpoints --------------------------------------------------------------------------

    def checkpoint_saved(self, trial: LiveTrial, event: ev.CheckpointSaved) -> Iterator[Instruction]:
        """Fetches a checkpoint at once, so that it outlives its host; not where no other attempt follows."""
        if self._spec.training.checkpoint_every and trial.failures + 1 < self._spec.max_attempts:
            trial.checkpoint_wanted = Checkpoint(event.attempt.attempt, event.step)
            yield FetchCheckpoint(event.attempt, event.host, event.step)

    def checkpoint_fetched(self, trial: LiveTrial, event: ev.CheckpointFetched) -> Iterator[Instruction]:
        """A checkpoint is here, or could not be fetched: an older one serves, then."""
        fetched = Checkpoint(event.attempt.attempt, event.step)
        if fetched == trial.checkpoint_wanted:
            trial.checkpoint_wanted = None
        if not event.problem:
            trial.checkpoint = fetched if trial.checkpoint is None else max(trial.checkpoint, fetched)
        elif not trial.checkpoint_lost:
            trial.checkpoint_lost = True  # once is enough
            message = f"a checkpoint of trial {trial.number} could not be fetched: {event.problem}"
            yield Tell(Notice(message, warning=True))


def _bound(trial: LiveTrial, best: Trial | None) -> float | None:
    """The loss below which the trial would be the best; None: any."""
    if best is None or best.loss is None:
        return None
    # Among equals the trial with the lower number is the best.
    return math.nextafter(best.loss, math.inf) if trial.number < best.number else best.loss

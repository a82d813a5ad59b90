"""Plain lines, for logs and pipes."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console

from coordinator.domain import Notice, Report, Reports, Study, StudySpec, Trial, TrialState, Update
from coordinator.view.failure import LastLines
from coordinator.view.progress import Progress, describe_loss

LOSS_LINE_SECONDS = 2.0
"""A running trial's loss is shown at most this often."""


class PlainView:
    """One line for each trial that ends, and now and then one for the losses of those that run."""

    def __init__(self, spec: StudySpec, console: Console, logs: Path | None = None) -> None:
        self._progress = Progress(spec)
        self._last_lines = LastLines(logs)
        self._console = console
        self._stage = 0
        self._best: float | None = None
        self._due: dict[int, float] = {}
        self._best = math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def __call__(self, update: Update) -> None:
        """Takes an update."""
        progress = self._progress
        progress.take(update)
        match update:
            case Study() if len(update.stages) > self._stage:
                self._stage = len(update.stages)
                budget = update.stages[-1].budget
                self._line(
                    f"stage {self._stage} of {update.number_of_stages}: "
                    f"{budget.opt_epoch} trials of {budget.train_epoch} steps"
                )
            case Reports() if update.attempt.trial in progress.reports and update.task.is_chief:
                self._loss_line(progress.reports[update.attempt.trial])
            case Trial() if update.state.ended:
                self._due.pop(update.number, None)
                for line in (self._trial_line(update), *self._last_lines.of(update)):
                    self._line(line)
            case Notice():
                self._line(("warning: " if update.warning else "") + update.message)

    def _loss_line(self, report: Report) -> None:
        number = report.attempt.trial
        now = time.monotonic()
        if now >= self._due.get(number, 0.0):
            self._due[number] = now + LOSS_LINE_SECONDS
            steps = self._progress.steps_of(self._progress.running[number])
            self._line(
                f"trial {number}: step {min(report.step, steps)} of {steps}, "
                f"train_loss {describe_loss(report.train_loss)}"
            )

    def _trial_line(self, trial: Trial) -> str:
        what = trial.state.value
        if trial.state is TrialState.COMPLETED:
            what += f", loss {describe_loss(trial.loss)}"
        elif trial.failure is not None:
            what += f" ({trial.failure.kind.value}): {trial.failure.message}"
        seconds = "" if trial.seconds is None else f" in {trial.seconds:.1f} s"
        mark = ""
        if trial.loss is not None and (self._best is None or trial.loss < self._best):
            self._best = trial.loss
            mark = ", the best so far"
        return f"trial {trial.number} {what}{seconds}{mark}: {self._progress.describe(trial)}"

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

"""The live display: stage, counts, best trial, running trials, rate and time left."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from coordinator.domain import Notice, StudySpec, Trial, TrialState, Update
from coordinator.view.failure import LastLines
from coordinator.view.progress import Progress, describe_loss, describe_seconds

REFRESHES_PER_SECOND = 4
SHOWN_RUNNING = 8
SHOWN_ENDED = 5

_STYLES = {
    TrialState.COMPLETED: "green",
    TrialState.FAILED: "red",
    TrialState.PRUNED: "yellow",
    TrialState.STOPPED: "yellow",
}


class LiveView:
    """Redraws at its own pace, from a thread of rich's; updates only change the state."""

    def __init__(self, spec: StudySpec, console: Console, logs: Path | None = None) -> None:
        self._progress = Progress(spec)
        self._ended: deque[Trial] = deque(maxlen=SHOWN_ENDED)
        self._last_lines = LastLines(logs)
        self._console = console
        self._live = Live(
            get_renderable=self._render,
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, update: Update) -> None:
        """Takes an update."""
        self._progress.take(update)
        if isinstance(update, Trial) and update.state.ended:
            self._ended.append(update)
            if update.failure is not None:
                line = f"trial {update.number} {update.state.value}: {update.failure.message}"
                self._live.console.print(Text(line, style="red"))
                for line in self._last_lines.of(update):
                    self._live.console.print(Text(line, style="dim"), soft_wrap=True)
        elif isinstance(update, Notice):
            style = "yellow" if update.warning else "dim"
            self._live.console.print(Text(update.message, style=style))

    def _render(self) -> RenderableType:
        now = time.time()
        parts: list[RenderableType] = [self._header(now), self._bar()]
        if (study := self._progress.study) is not None and (best := study.best) is not None:
            line = Text.assemble(
                "best ", (describe_loss(best.loss), "bold green"), f" (trial {best.number}) "
            )
            parts.append(line.append(self._progress.describe(best), style="dim"))
        parts.append(self._trials())
        return Group(*parts)

    def _header(self, now: float) -> RenderableType:
        progress, counts = self._progress, self._progress.counts
        study = progress.study
        if study is None or not study.stages:
            return Text("starting ...")
        stage = study.stages[-1]
        line = Text.assemble(
            (f"stage {stage.number} of {study.number_of_stages}", "bold"),
            f" ({stage.budget.opt_epoch} x {stage.budget.train_epoch} steps)   ",
            f"{counts.completed} of {counts.total} trials done, {counts.running} running",
        )
        if counts.failed:
            line.append(f", {counts.failed} failed", style="red")
        rate, left = progress.trials_per_minute(now), progress.seconds_left(now)
        if rate is not None:
            line.append(f"   {rate:.1f} a minute")
        if left is not None:
            line.append(f"   {describe_seconds(left)} left")
        return line

    def _bar(self) -> RenderableType:
        total = max(self._progress.counts.total, 1)
        width = min(60, self._console.width)
        line = Table.grid()  # a bar alone does not end its line
        line.add_row(ProgressBar(total=total, completed=self._progress.ended, width=width))
        return line

    def _trials(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for trial in self._ended:
            outcome = describe_loss(trial.loss)
            if trial.failure is not None:
                outcome = trial.failure.kind.value
            self._row(table, trial, Text(trial.state.value, style=_STYLES[trial.state]), outcome)
        shown = list(self._progress.running.values())[:SHOWN_RUNNING]
        for trial in shown:
            report = self._progress.reports.get(trial.number)
            steps = self._progress.steps_of(trial)
            state = f"{min(report.step, steps)}/{steps}" if report else "starting"
            self._row(
                table, trial, Text(state, style="cyan"), describe_loss(report.train_loss if report else None)
            )
        hidden = len(self._progress.running) - len(shown)
        if hidden > 0:
            table.add_row("", Text(f"and {hidden} more", style="dim"))
        return table

    def _row(self, table: Table, trial: Trial, state: Text, loss: str) -> None:
        parameters = Text(self._progress.describe(trial), style="dim", no_wrap=True, overflow="ellipsis")
        table.add_row(f"{trial.number:>5}", state, loss, parameters)

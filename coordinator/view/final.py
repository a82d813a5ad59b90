"""The last words: what the study found, and where the results are."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coordinator.domain import Study, StudyState
from coordinator.report.results import MODEL_FILE
from coordinator.view.progress import describe_loss, describe_parameters, describe_seconds

_STYLES = {
    StudyState.COMPLETED: "bold green",
    StudyState.STOPPED: "bold yellow",
    StudyState.FAILED: "bold red",
}


def show_result(study: Study, directory: Path, console: Console, url: str | None = None) -> None:
    """Prints the stages with their best trials, the best of all, the output directory and the ``url``."""
    if study.stages:
        table = Table(
            "stage", "trials", "steps", "best loss", "trial", "parameters", box=None, pad_edge=False
        )
        for stage in study.stages:
            best = stage.best
            table.add_row(
                str(stage.number),
                str(stage.budget.opt_epoch),
                str(stage.budget.train_epoch),
                describe_loss(best.loss if best else None),
                str(best.number) if best else "-",
                describe_parameters(best.parameters, study.stages[0].space) if best else "-",
            )
        console.print(table)
    counts = study.counts
    seconds = (study.ended_at or time.time()) - study.started_at
    parts = [f"{counts.completed} completed"]
    parts += [f"{n} {what}" for n, what in ((counts.failed, "failed"), (counts.stopped, "stopped")) if n]
    line = Text.assemble(
        (f"study {study.study_id} {study.state.value}", _STYLES.get(study.state, "bold")),
        f": {', '.join(parts)} in {describe_seconds(seconds)}",
    )
    if study.reason:
        line.append(f" ({study.reason})")
    console.print(line, soft_wrap=True)
    if study.best is not None:
        best = study.best
        console.print(
            Text(
                f"best loss {describe_loss(best.loss)} in trial {best.number} "
                f"(val_loss {describe_loss(best.val_loss)}, train_loss {describe_loss(best.train_loss)})"
            ),
            soft_wrap=True,
        )
        if best.metrics:
            words = ", ".join(f"{name} {value:.4g}" for name, value in sorted(best.metrics.items()))
            console.print(Text(f"its metrics: {words}"), soft_wrap=True)
        kept = study.model_trial == best.number
        if kept:
            console.print(Text(f"its model is {directory / MODEL_FILE}"), soft_wrap=True)
        if study.model_problem:
            what = "predictions" if kept else "model"
            problem = f"its {what} could not be kept: {study.model_problem}"
            console.print(Text(problem, style="yellow"), soft_wrap=True)
    also = f" and at {url}" if url is not None else ""
    console.print(Text(f"results in {directory}{also}"), soft_wrap=True)

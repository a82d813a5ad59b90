"""The last lines of a failed trial, as both views show them."""

from __future__ import annotations

from pathlib import Path

from coordinator.domain import Trial
from coordinator.kept_logs import kept_log_name
from nhop_models.contract import printable

SHOWN_LINES = 10


class LastLines:
    """Lines for each failed trial; ``logs`` is the folder where logs are kept, None: no path is shown."""

    def __init__(self, logs: Path | None) -> None:
        self._logs = logs
        self._shown = ""

    def of(self, trial: Trial) -> list[str]:
        """What to show behind the trial's failure; last lines only where they are not the same again."""
        failure = trial.failure
        if failure is None:
            return []
        text = printable(failure.detail).strip("\n")
        lines = []
        if text and text != self._shown:
            self._shown = text
            lines = [f"    {line.rstrip()}" for line in text.splitlines()[-SHOWN_LINES:]]
        if failure.task is not None and self._logs is not None:
            name = kept_log_name(trial.number, trial.attempts, failure.task)
            lines.append(f"    its log: {self._logs / name}")
        return lines

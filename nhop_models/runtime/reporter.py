"""What a task says while it trains: progress kept for its last word, and reports at a bounded rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from nhop_models.contract import RecordKind, SpoolWriter


class Reporter:
    """Keeps the newest step and the smallest training loss, and writes reports to the spool.

    ``interval`` is the least time between two reports in seconds; the first and the last are
    always written.
    """

    def __init__(self, spool: SpoolWriter, interval: float) -> None:
        self._spool = spool
        self._interval = interval
        self._due = {False: 0.0, True: 0.0}  # with a loss on held-out data: True
        self._unwritten: tuple[int, float] | None = None
        self.step = 0
        self.train_loss: float | None = None
        self.phase_seconds: dict[str, float] = {}

    def ready(self) -> None:
        """Says that the first step comes next (a parameter server: that it listens)."""
        self._spool.append(RecordKind.READY, {})

    def report(
        self,
        step: int,
        train_loss: float,
        smallest: float | None = None,
        metrics: Callable[[], Mapping[str, float]] = dict,
        val_loss: float | None = None,
    ) -> None:
        """Notes the training loss at a global step; writes it where the interval allows.

        ``smallest`` is the smallest training loss since the last report, where that is another one;
        ``metrics`` is asked where it is written. The interval is that between two reports with a
        ``val_loss``, too, beside those without.
        """
        self.step = step
        smallest = train_loss if smallest is None else smallest
        if self.train_loss is None or smallest < self.train_loss:
            self.train_loss = smallest
        now = time.monotonic()
        measured = val_loss is not None
        if now >= self._due[measured]:
            self._due[measured] = now + self._interval
            self._unwritten = None
            self._write(step, train_loss, val_loss, metrics())
        else:
            self._unwritten = (step, train_loss)

    def checkpoint(self, step: int, size: int) -> None:
        """Says that a checkpoint of ``size`` bytes is whole."""
        self._spool.append(RecordKind.CHECKPOINT, {"step": step, "size": size})

    def finish(self, val_loss: float | None = None, metrics: Mapping[str, float] | None = None) -> None:
        """Writes the last report, where it is not yet written or has something to add."""
        if val_loss is None and self._unwritten is None:
            return
        step, train_loss = self._unwritten or (
            self.step,
            math.nan if self.train_loss is None else self.train_loss,
        )
        self._unwritten = None
        self._write(step, train_loss, val_loss, metrics)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures a phase of the task's life; it is told with the outcome."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.phase_seconds[name] = self.phase_seconds.get(name, 0.0) + time.monotonic() - start

    def _write(
        self,
        step: int,
        train_loss: float,
        val_loss: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        self._spool.append(
            RecordKind.REPORT,
            {"step": step, "train_loss": train_loss, "val_loss": val_loss, "metrics": dict(metrics or {})},
        )

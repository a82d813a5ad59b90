"""Making steps: calls of the graph's loop, and the chief's care that synchronous ones never wait for ever."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable

import tensorflow as tf

from nhop_models.base import DataError
from nhop_models.contract import TaskSpec
from nhop_models.runtime.cluster import answers
from nhop_models.runtime.graph import TrainingGraph
from nhop_models.runtime.pace import CALL_SECONDS, Pace
from nhop_models.runtime.quorum import Quorum

Note = Callable[[float, float, int], None]
"""Takes the loss of the last step, the smallest loss, and the global step."""

_LOOK_SECONDS = 0.05
_PROBE_SECONDS = 0.2


class Steps:
    """Many steps in a call, without waiting for anyone else or, in a synchronous training, as a follower."""

    def __init__(
        self,
        session: tf.compat.v1.Session,
        graph: TrainingGraph,
        spec: TaskSpec,
        global_step: int,
        note: Note,
    ) -> None:
        steps = graph.steps
        self._call = session.make_callable(steps.results, [steps.limit, steps.first, steps.after])
        self._note = note
        self._has_stale_gradients = len(spec.workers) > 1 and graph.synchronous is None
        self._made = self._first = self._global_step = global_step
        self._counted, self._stale, self._most_stale = 0, 0, 0
        self._loss = math.nan
        self._pace = Pace()

    def make(self, most: int) -> float:
        """Makes at least one step and ``most`` at most, unless the training ends; the last loss."""
        limit = min(most, self._pace.steps)
        begin = time.monotonic()
        try:
            made, loss, smallest, after, most_stale, stale = self._call(limit, self._made, self._global_step)
        except tf.errors.OutOfRangeError as error:  # the one queue that can end is a pipeline's
            raise DataError(
                "load_data: the train dataset has no samples, or fewer than workers (each takes its own part)"
            ) from error
        self._made_steps(int(made), time.monotonic() - begin)
        self._stale += int(stale)
        self._most_stale = max(self._most_stale, int(most_stale))
        self._global_step = int(after)
        if made:
            self._loss = float(loss)
            self._note(self._loss, float(smallest), self._global_step)
        return self._loss

    def metrics(self) -> dict[str, float]:
        """How old gradients were: updates of others between two of this worker's, mean and most."""
        if not (self._has_stale_gradients and self._counted):
            return {}
        return {"staleness": self._stale / self._counted, "staleness_max": float(self._most_stale)}

    def notes(self) -> list[str]:
        """What the user should know of the steps, in sentences."""
        return []

    def _made_steps(self, made: int, seconds: float) -> None:
        self._pace.took(made, seconds)
        self._made += made
        self._counted += made


class ChiefSteps(Steps):
    """Synchronous steps of the chief. A thread of its own looks after calls that take long."""

    def __init__(
        self,
        session: tf.compat.v1.Session,
        graph: TrainingGraph,
        spec: TaskSpec,
        global_step: int,
        note: Note,
    ) -> None:
        super().__init__(session, graph, spec, global_step, note)
        assert graph.lead is not None
        self._watch = session.make_callable(graph.lead.watched)
        self._adjust = session.make_callable(graph.lead.adjusted, graph.lead.adjustment)
        self._workers = spec.workers
        self._quorum = Quorum(len(spec.workers), spec.sync_backup_workers, spec.start_limit, time.monotonic())
        self._set = (self._quorum.needed, self._quorum.present)  # what the graph knows
        self._lock = threading.Lock()  # of all that the two threads share
        self._called: float | None = None
        threading.Thread(target=self._guard, name="nhop-quorum", daemon=True).start()

    def make(self, most: int) -> float:
        """As for all steps."""
        self._called = time.monotonic()
        try:
            return super().make(most)
        finally:
            self._called = None

    def notes(self) -> list[str]:
        """Which workers were missing."""
        return self._quorum.notes(self._first, self._global_step)

    def _made_steps(self, made: int, seconds: float) -> None:
        super()._made_steps(made, seconds)
        with self._lock:
            self._look()
            self._quorum.made(made, seconds)
            self._tell()

    def _guard(self) -> None:
        with contextlib.suppress(tf.errors.OpError):  # the other thread finds the same, and says so
            while True:
                time.sleep(_LOOK_SECONDS)
                called = self._called
                if called is not None and time.monotonic() - called > 2 * CALL_SECONDS:
                    with self._lock:
                        self._look()
                        for worker in self._quorum.missing:
                            listens = answers(self._workers[worker], _PROBE_SECONDS)
                            self._quorum.probed(worker, listens, time.monotonic())
                        self._tell()

    def _look(self) -> None:
        step, pushed = self._watch()
        self._quorum.observe(int(step), [int(value) for value in pushed], time.monotonic())

    def _tell(self) -> None:
        """Has the graph wait for whom the quorum waits for, and wakes it where that are fewer now."""
        needed, present = now = (self._quorum.needed, self._quorum.present)
        before, were_present = self._set
        called = self._quorum.call_again(time.monotonic())
        if now != self._set or any(called):
            for worker, (is_now, was) in enumerate(zip(present, were_present, strict=True)):
                called[worker] = called[worker] or (is_now and not was)
            self._adjust(needed, present, called, max(before - needed, 0))
            self._set = now

"""One worker's training: sessions, calls of many steps, synchronous steps, evaluation."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from nhop_models.base import HyperParameters, NNModel
from nhop_models.contract import FailureKind
from nhop_models.runtime import cluster
from nhop_models.runtime.checkpoints import Checkpoints
from nhop_models.runtime.data import Data
from nhop_models.runtime.evaluation import Evaluation, Evaluator
from nhop_models.runtime.failures import TaskError
from nhop_models.runtime.graph import TrainingGraph
from nhop_models.runtime.losses import loss_of
from nhop_models.runtime.pace import MOST_STEPS
from nhop_models.runtime.steps import ChiefSteps, Steps

if TYPE_CHECKING:
    from nhop_models.runtime.task import Task

v1 = tf.compat.v1
_CHIEF_POLL_SECONDS = 0.01


class Training:
    """One worker's part in the training of a trial.

    ``advance()`` makes some steps, ``step()`` makes one, ``ended`` says when to stop making them. Only
    the chief ends the training: other workers pause when the step budget is used up.
    """

    def __init__(
        self,
        task: Task,
        hp: HyperParameters,
        model: NNModel,
        keras_model: keras.Model,
        data: Data,
        target: str,
    ) -> None:
        self._spec = task.spec
        self._task = task
        self._chief = task.identity.is_chief
        self._ended = False
        reporter = task.reporter
        with reporter.phase("graph"):
            self._graph = TrainingGraph(task.spec, task.identity, hp, loss_of(model), keras_model, data)
        with reporter.phase("session"):
            if self._spec.ps:
                cluster.wait_for_parameter_servers(self._spec)
            config = cluster.session_config(self._spec, task.identity)
            self._session = v1.Session(target, graph=self._graph.graph, config=config)
            self._session.run(self._graph.local_initializer, self._graph.local_feed)
            self._checkpoints = Checkpoints(task, self._session, self._graph)
            if self._chief:
                self._session.run(self._graph.initializer, self._graph.initial_feed)
                self._checkpoints.restore()
                self._session.run(self._graph.announce)
            else:
                self._wait_for_chief()
            self._graph.forget_initial_values()
            self._evaluator: Evaluator | None = None
            if self._graph.held_out is not None:
                self._evaluator = Evaluator(self._session, self._graph.held_out, keras_model, model.metrics)
                self._evaluator.try_metrics()
        self._global_step = int(self._session.run(self._graph.step_now))
        self._ended = self._global_step >= self._spec.train_epoch  # as a worker that comes late finds it
        leads = self._graph.lead is not None
        self._steps = (ChiefSteps if leads else Steps)(
            self._session, self._graph, self._spec, self._global_step, self._note_steps
        )
        reporter.ready()

    @property
    def ended(self) -> bool:
        """Whether the training is over for this worker: by budget, tolerance, or because it is told so."""
        return self._ended or self._task.stop.is_set()

    @property
    def is_chief(self) -> bool:
        """Whether this worker is the chief, which alone evaluates and ends the training."""
        return self._chief

    @property
    def global_step(self) -> int:
        """Steps of all workers together, as far as this one knows."""
        return self._global_step

    def step(self) -> float:
        """Makes one step and returns the training loss of its batch; after the end the last loss again.

        Raises TaskError (DIVERGED) where the loss is not finite.
        """
        return self._steps.make(1)

    def advance(self) -> float:
        """Makes as many steps as take about a tenth of a second, at least one; the loss of the last one.

        Raises TaskError (DIVERGED) where the loss is not finite.
        """
        return self._steps.make(self._checkpoints.steps_until_due(self._global_step) or MOST_STEPS)

    def evaluate(self) -> Evaluation:
        """Loss and metrics on the held-out data, over all its samples, with the parameters as they are now.

        For the chief alone, which has that data in its graph: TaskError (USER_CODE) elsewhere. TaskError
        (DIVERGED) where the loss is not finite.
        """
        evaluator = self._chiefs_evaluator()
        return evaluator.evaluate(evaluator.pull())

    def finish(self) -> Evaluation:
        """As ``evaluate``; the Keras model then has the parameters that were evaluated."""
        evaluator = self._chiefs_evaluator()
        pulled = evaluator.pull()
        evaluation = evaluator.evaluate(pulled)
        self._graph.replica.store(pulled)
        return evaluation

    def notes(self) -> list[str]:
        """What the user should know of this training."""
        evaluator = self._evaluator.notes if self._evaluator else []
        return [*self._checkpoints.notes, *self._steps.notes(), *dict.fromkeys(evaluator)]

    @property
    def metrics(self) -> dict[str, float]:
        """What is to be said of the steps beside their losses."""
        return self._steps.metrics()

    def _note_steps(self, loss: float, smallest: float, step: int) -> None:
        """Reports, saves a checkpoint where it is time to, and sees whether the training is over."""
        self._global_step = step
        reporter = self._task.reporter
        if not math.isfinite(loss):
            reporter.finish()
            raise TaskError(
                FailureKind.DIVERGED,
                f"the training loss became {loss} at global step {step} of {self._spec.train_epoch}",
            )
        reporter.report(step, loss, smallest, self._steps.metrics)
        tolerance = self._spec.train_tolerance
        converged = self._chief and loss <= tolerance and tolerance > 0
        self._ended = converged or step >= self._spec.train_epoch
        if self._chief and not self._ended:
            self._checkpoints.save_if_due(step)

    def _chiefs_evaluator(self) -> Evaluator:
        if self._evaluator is None:
            message = f"{self._task.identity} cannot evaluate: ask training.is_chief first"
            raise TaskError(FailureKind.USER_CODE, message)
        return self._evaluator

    def _wait_for_chief(self) -> None:
        deadline = time.monotonic() + self._spec.start_limit
        while not self._session.run(self._graph.chief_is_done):
            if time.monotonic() > deadline:
                raise TaskError(
                    FailureKind.START_TIMEOUT,
                    f"the chief has not initialised the parameters within {self._spec.start_limit:g} s",
                )
            if self._task.stop.wait(_CHIEF_POLL_SECONDS):
                return

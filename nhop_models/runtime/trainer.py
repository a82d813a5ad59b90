"""One worker's training: sessions, calls of many steps, synchronous steps, evaluation."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from nhop_models.base import DataError, HyperParameters, NNModel
from nhop_models.contract import FailureKind
from nhop_models.runtime import cluster
from nhop_models.runtime.checkpoints import Checkpoints
from nhop_models.runtime.data import Data
from nhop_models.runtime.failures import TaskError
from nhop_models.runtime.graph import TrainingGraph
from nhop_models.runtime.pace import MOST_STEPS
from nhop_models.runtime.steps import ChiefSteps, Steps

if TYPE_CHECKING:
    from nhop_models.runtime.task import Task

v1 = tf.compat.v1
_CHIEF_POLL_SECONDS = 0.01
KEPT_PREDICTIONS = 10_000
"""Held-out samples whose predictions are kept, at most."""


@dataclass(slots=True)
class Evaluation:
    """What a model does on the held-out data.

    ``y_true`` and ``y_pred`` are of the first KEPT_PREDICTIONS samples, None where the model has
    several outputs.
    """

    loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    y_true: Any = None
    y_pred: Any = None


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
        self._index = task.identity.index
        self._keras_model = keras_model
        self._metrics = list(model.metrics)
        self._ended = False
        reporter = task.reporter
        with reporter.phase("graph"):
            self._graph = TrainingGraph(task.spec, task.identity, hp, model, keras_model, data)
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
        return self._evaluate(self._pull())

    def finish(self) -> Evaluation:
        """As ``evaluate``; the Keras model then has the parameters that were evaluated."""
        pulled = self._pull()
        evaluation = self._evaluate(pulled)
        replica = self._graph.replica
        number = len(replica.weights.variables)
        for variable, value in zip(
            self._keras_model.trainable_variables, replica.weights.arrays(pulled[:number]), strict=True
        ):
            variable.assign(value)
        if replica.state:
            shared = [v for v in self._keras_model.non_trainable_variables if v.dtype == "float32"]
            for variable, value in zip(shared, replica.state.arrays(pulled[number:]), strict=True):
                variable.assign(value)
        return evaluation

    def notes(self) -> list[str]:
        """What the user should know of this training."""
        return [*self._checkpoints.notes, *self._steps.notes()]

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

    # --- evaluation ---------------------------------------------------------------------------

    def _pull(self) -> list[Any]:
        held_out = self._graph.held_out
        if held_out is None:
            message = f"{self._task.identity} cannot evaluate: ask training.is_chief first"
            raise TaskError(FailureKind.USER_CODE, message)
        pulled: list[Any] = self._session.run(held_out.pulled)
        return pulled

    def _evaluate(self, pulled: list[Any]) -> Evaluation:
        # Other workers may still push: one set of parameters is taken and used for every batch.
        assert self._graph.held_out is not None
        test, evaluated = self._graph.held_out.inputs, self._graph.held_out.evaluated
        feed = dict(zip(evaluated.parameters, pulled, strict=True))
        simple = not tf.nest.is_nested(evaluated.outputs) and not tf.nest.is_nested(test.y)
        wanted = [evaluated.loss, test.y, evaluated.outputs]
        metrics = self._compiled_metrics()
        total, rows = 0.0, 0
        kept: list[tuple[Any, Any]] = []
        test.restart(self._session)
        for more in test.feeds():
            try:
                loss, y, outputs = self._session.run(wanted, {**feed, **more})
            except tf.errors.OutOfRangeError:
                break
            number = len(tf.nest.flatten(y)[0])
            total += number * float(loss)
            if simple and rows < KEPT_PREDICTIONS:
                left = KEPT_PREDICTIONS - rows
                kept.append((y[:left], outputs[:left]))
            rows += number
            if metrics:
                self._keras_model.compute_metrics(None, y, outputs)
        if not rows:
            raise DataError(f"{self._spec.model}.load_data: the test dataset has no samples")
        loss = total / rows
        if not math.isfinite(loss):
            raise TaskError(FailureKind.DIVERGED, f"the loss on the held-out data is {loss}")
        found = self._keras_model.get_metrics_result() if metrics else {}
        evaluation = Evaluation(loss, {name: float(v) for name, v in found.items() if name != "loss"})
        if kept:
            evaluation.y_true, evaluation.y_pred = (np.concatenate(part) for part in zip(*kept, strict=True))
        return evaluation

    def _compiled_metrics(self) -> bool:
        if not self._metrics:
            return False
        self._keras_model.compile("sgd", loss=None, metrics=self._metrics)
        self._keras_model.reset_metrics()
        return True

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

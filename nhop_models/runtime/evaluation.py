"""The chief's look at the held-out data: loss, metrics, and predictions beside the truth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nhop_models.base import DataError
from nhop_models.contract import FailureKind
from nhop_models.runtime.failures import TaskError, first_line
from nhop_models.runtime.graph import HeldOut

KEPT_PREDICTIONS = 10_000
"""Held-out samples whose predictions are kept, at most."""
Parameters = Sequence[Any]
"""The shards as they were pulled."""


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


class Evaluator:
    """Evaluates in ``session``; ``metrics`` are what ``compile`` of a Keras model takes."""

    def __init__(
        self, session: tf.compat.v1.Session, held_out: HeldOut, keras_model: keras.Model, metrics: Any
    ) -> None:
        self._session, self._held_out, self._keras_model = session, held_out, keras_model
        self._metrics = [metrics] if isinstance(metrics, str) else metrics
        self.notes: list[str] = []

    def pull(self) -> Parameters:
        """All shards, at one moment; other workers may still push."""
        pulled: Parameters = self._session.run(self._held_out.pulled)
        return pulled

    def try_metrics(self) -> None:
        """Computes the metrics of one sample of zeros, so that what cannot be is said at the start.

        Raises whatever Keras or a user's metric does.
        """
        if not self._metrics:
            return
        tensors = (self._held_out.inputs.y, self._held_out.evaluated.outputs)
        if any(tensor.shape.rank is None for tensor in tf.nest.flatten(tensors)):
            return  # a pipeline that does not say what it gives
        samples = tf.nest.map_structure(_zeros, tensors)
        self._compile()
        self._keras_model.compute_metrics(None, *samples)
        self._results()

    def evaluate(self, pulled: Parameters) -> Evaluation:
        """Over all held-out samples. TaskError (DIVERGED) where the loss is not finite.

        A metric that cannot be computed is noted: the trial is as good without it.
        """
        simple = not tf.nest.is_nested(self._held_out.evaluated.outputs)
        simple = simple and not tf.nest.is_nested(self._held_out.inputs.y)
        measured = bool(self._metrics)
        if measured:
            self._compile()
        total, rows = 0.0, 0
        kept: list[tuple[Any, Any]] = []
        found: dict[str, float] = {}
        for loss, y, outputs in self._batches(pulled):
            number = len(tf.nest.flatten(y)[0])
            total += number * loss
            if simple and rows < KEPT_PREDICTIONS:
                left = KEPT_PREDICTIONS - rows
                kept.append((y[:left], outputs[:left]))
            rows += number
            measured = measured and self._noting(self._keras_model.compute_metrics, None, y, outputs)
        if not rows:
            raise DataError("load_data: the test dataset has no samples")
        if not math.isfinite(total):
            raise TaskError(FailureKind.DIVERGED, f"the loss on the held-out data is {total / rows}")
        if measured:
            self._noting(lambda: found.update(self._results()))
        evaluation = Evaluation(total / rows, found)
        if kept:
            evaluation.y_true, evaluation.y_pred = (np.concatenate(part) for part in zip(*kept, strict=True))
        return evaluation

    def _batches(self, pulled: Parameters) -> Iterator[tuple[float, Any, Any]]:
        """Loss, targets and outputs of each batch, all with the same parameters."""
        test, evaluated = self._held_out.inputs, self._held_out.evaluated
        feed = dict(zip(evaluated.parameters, pulled, strict=True))
        test.restart(self._session)
        for more in test.feeds():
            try:
                loss, y, outputs = self._session.run(
                    [evaluated.loss, test.y, evaluated.outputs], {**feed, **more}
                )
            except tf.errors.OutOfRangeError:
                return
            yield float(loss), y, outputs

    def _compile(self) -> None:
        self._keras_model.compile("sgd", loss=None, metrics=self._metrics)
        self._keras_model.reset_metrics()

    def _results(self) -> dict[str, float]:
        """Of a metric that gives several numbers ``name_0``, ``name_1`` and so on."""
        found: dict[str, float] = {}
        for name, value in self._keras_model.get_metrics_result().items():
            values = np.ravel(value)
            if name == "loss":
                continue
            found.update(
                {name if len(values) == 1 else f"{name}_{i}": float(one) for i, one in enumerate(values)}
            )
        return found

    def _noting(self, function: Any, *arguments: Any) -> bool:
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001  (whatever a user's metric raises)
            self.notes.append(
                f"the metrics could not be computed ({type(error).__name__}: {first_line(error)})"
            )
            return False
        return True


def _zeros(tensor: Any) -> Any:
    """One sample (or one of whatever else the graph does not know) of a tensor's shape and type."""
    return np.zeros([size or 1 for size in tensor.shape], tensor.dtype.as_numpy_dtype)

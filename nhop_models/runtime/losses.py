"""The loss that is minimised: what a model class says of it, as one number of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from nhop_models.base import DataError, NNModel

_OF_ANOTHER_SHAPE = ("sparse", "ctc", "circle")
"""Beginnings of the names of Keras losses whose targets are not shaped as the outputs."""


def loss_of(model: NNModel) -> Any:
    """The model's loss. A function that is a class's attribute is not taken for a method by mistake."""
    loss = model.loss
    if inspect.ismethod(loss) and "self" not in inspect.signature(loss.__func__).parameters:
        return loss.__func__
    return loss


def mean_loss(loss: Any, y: Any, outputs: Any) -> Any:
    """The mean over the batch of a Keras loss, or the sum over a dict or list of them, one an output.

    A float32 tensor. Raises DataError where targets and outputs do not go together.
    """
    if isinstance(loss, Mapping):
        return tf.add_n([mean_loss(loss[name], y[name], outputs[name]) for name in loss])
    if isinstance(loss, (list, tuple)):
        return tf.add_n([mean_loss(one, *both) for one, *both in zip(loss, y, outputs, strict=True)])
    if isinstance(loss, str) and not loss.lower().startswith(_OF_ANOTHER_SHAPE):
        _check_shapes(loss, y, outputs)
    elif inspect.isroutine(loss):
        y = _like(y, outputs)
    return tf.cast(tf.reduce_mean(keras.losses.get(loss)(y, outputs)), tf.float32)


def _check_shapes(loss: str, y: Any, outputs: Any) -> None:
    """Other shapes would be broadcast, and the loss be one of numbers that do not belong together."""
    if tf.nest.is_nested(y) or tf.nest.is_nested(outputs):
        return
    target, output = _without_last_one(y.shape), _without_last_one(outputs.shape)
    if not target.is_compatible_with(output):
        advice = "; for numbers of classes there is 'sparse_categorical_crossentropy'"
        raise DataError(
            f"the loss {loss!r} takes targets of the shape of the model's outputs; they have {_said(y.shape)}"
            f", the outputs {_said(outputs.shape)}{advice if loss == 'categorical_crossentropy' else ''}"
        )


def _without_last_one(shape: tf.TensorShape) -> tf.TensorShape:
    """Without the batch, and without a last dimension of 1."""
    shape = shape[1:]
    return shape[:-1] if shape.rank and shape[-1] == 1 else shape


def _said(shape: tf.TensorShape) -> str:
    return f"({', '.join(['batch', *map(str, shape[1:])])})"


def _like(y: Any, outputs: Any) -> Any:
    """Targets for a function of the user's, as Keras gives them: the outputs' type, and their rank."""
    if tf.nest.is_nested(y) or tf.nest.is_nested(outputs):
        return y
    y = tf.cast(y, outputs.dtype)
    if y.shape.rank is None or outputs.shape.rank is None:
        return y
    if y.shape.rank == outputs.shape.rank - 1 and outputs.shape[-1] == 1:
        return tf.expand_dims(y, -1)
    if y.shape.rank == outputs.shape.rank + 1 and y.shape[-1] == 1:
        return tf.squeeze(y, -1)
    return y

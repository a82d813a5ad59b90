"""What is minimised: losses of a batch, as Keras has them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from nhop_models import NNModel
from nhop_models.base import DataError
from nhop_models.runtime.losses import loss_of, mean_loss


def batch(*rows):
    return np.array(rows, np.float32)


def difference(y, outputs):
    return tf.abs(y - outputs)


@pytest.mark.parametrize(
    ("loss", "y", "outputs", "expected"),
    [
        ("mse", batch([1], [2]), batch([0], [0]), 2.5),
        ("mse", batch(1, 2), batch([0], [0]), 2.5),
        ("mse", np.array([[1], [2]]), batch([0], [0]), 2.5),
        (
            {"a": "mse", "b": "mae"},
            {"a": batch([2]), "b": batch([3])},
            {"a": batch([0]), "b": batch([0])},
            7.0,
        ),
        (["mae", "mae"], (batch([1]), batch([1])), (batch([0]), batch([3])), 3.0),
        (difference, batch([5]), batch([1]), 4.0),
        (difference, np.array([[5]]), batch([1]), 4.0),
        (difference, batch(1, 2), batch([0], [0]), 1.5),
        (difference, batch([1], [2]), batch(0, 0), 1.5),
        (keras.losses.MeanSquaredError(), batch(1, 2), batch([0], [0]), 2.5),
        ("sparse_categorical_crossentropy", np.array([0, 1]), batch([1, 0], [0, 1]), 0.0),
        ("sparse_categorical_crossentropy", np.array([[0], [1]]), batch([1, 0], [0, 1]), 0.0),
    ],
)
def test_losses(loss, y, outputs, expected):
    tensors = tf.nest.map_structure(tf.constant, (y, outputs))
    assert float(mean_loss(loss, *tensors)) == pytest.approx(expected, abs=1e-6)


def test_a_loss_of_half_precision_is_added_up_in_single():
    half = tf.constant([[1.0], [2.0]], tf.bfloat16)
    assert mean_loss("mse", tf.constant([[0.0], [0.0]]), half).dtype == tf.float32


@pytest.mark.parametrize(
    ("loss", "y", "outputs", "said"),
    [
        ("mse", batch([1, 2]), batch([0]), r"\(batch, 2\).*\(batch, 1\)"),
        ("mse", batch(1, 2), batch([0, 1], [0, 1]), r"\(batch\).*\(batch, 2\)"),
        ("categorical_crossentropy", np.array([0, 1]), batch([1, 0], [0, 1]), "sparse_categorical"),
    ],
)
def test_shapes_that_do_not_go_together(loss, y, outputs, said):
    with pytest.raises(DataError, match=said):
        mean_loss(loss, tf.constant(y), tf.constant(outputs))


def test_a_function_and_a_method_may_be_a_models_loss():
    class Function(NNModel):
        loss = difference

    class Method(NNModel):
        def loss(self, y_true, y_pred):
            return y_true - y_pred

    class Name(NNModel):
        pass

    assert loss_of(Function()) is difference
    assert loss_of(Method())(3, 1) == 2
    assert loss_of(Name()) == "mse"

"""Losses of several outputs, and what belongs to each worker alone."""

from __future__ import annotations

import numpy as np
import pytest

from nhop_models.runtime.replica import _own_seed, mean_loss


def batch(*rows):
    return np.array(rows, np.float32)


@pytest.mark.parametrize(
    ("loss", "y", "outputs", "expected"),
    [
        ("mse", batch([1], [2]), batch([0], [0]), 2.5),
        (
            {"a": "mse", "b": "mae"},
            {"a": batch([2]), "b": batch([3])},
            {"a": batch([0]), "b": batch([0])},
            7.0,
        ),
        (["mae", "mae"], (batch([1]), batch([1])), (batch([0]), batch([3])), 3.0),
        (lambda y, outputs: y - outputs, batch([5]), batch([1]), 4.0),
    ],
)
def test_losses(loss, y, outputs, expected):
    assert float(mean_loss(loss, y, outputs)) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [np.uint32, np.int64])
def test_workers_have_seeds_of_their_own(dtype):
    seed = np.array([3, 0], dtype)
    assert [_own_seed(seed, index).tolist() for index in range(3)] == [[3, 0], [4, 0], [5, 0]]
    count = np.array([3], np.int32)
    assert _own_seed(count, 2) is count


def test_keras_seeds_have_the_form_that_is_looked_for():
    import keras

    state = np.asarray(keras.random.SeedGenerator(3).state)
    assert not np.array_equal(_own_seed(state, 1), state)

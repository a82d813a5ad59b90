"""What belongs to each worker alone."""

from __future__ import annotations

import numpy as np
import pytest

from nhop_models.runtime.replica import _own_seed


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

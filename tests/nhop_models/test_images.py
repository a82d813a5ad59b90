"""Images: files and synthetic ones."""

from __future__ import annotations

import numpy as np
import pytest

from nhop_models import DataError
from nhop_models.images import load_images, synthetic_images


def saved(tmp_path, x, y):
    np.savez(tmp_path / "i.npz", X=x, y=y)
    return str(tmp_path / "i.npz")


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (np.full((2, 3, 4), 255, np.uint8), np.uint8),
        (np.full((2, 3, 4), 255), np.uint8),
        (np.full((2, 3, 4), 0.5), np.float32),
    ],
)
def test_images_get_a_channel_and_few_types(tmp_path, x, dtype):
    images, labels, _ = load_images(saved(tmp_path, x, [0, 1]))
    assert (images.shape, images.dtype) == ((2, 3, 4, 1), dtype)
    np.testing.assert_array_equal(images[..., 0], x)
    np.testing.assert_array_equal(labels, [0, 1])


def test_channels_stay(tmp_path):
    assert load_images(saved(tmp_path, np.zeros((2, 3, 4, 3)), ["a", "b"]))[0].shape == (2, 3, 4, 3)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((2, 3)), "(images, height, width)"),
        (np.zeros((2, 0, 3)), "(images, height, width)"),
        (np.full((2, 3, 3), 256), "X[0, 0, 0] is 256, which is not within 0 to 255"),
        (np.array([[[0.0]], [[np.nan]]]), "X[1, 0, 0] is nan, which is not a finite number"),
        (np.full((2, 3, 3), "x"), "must be numbers"),
    ],
)
def test_images_that_are_none(tmp_path, x, words):
    with pytest.raises(DataError) as caught:
        load_images(saved(tmp_path, x, [0, 1]))
    assert words in str(caught.value)
    assert "i.npz" in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.npz does not exist"):
        load_images(str(tmp_path / "none.npz"))


def test_synthetic_images_are_of_equal_classes_and_the_seeds():
    x, y = synthetic_images(100, seed=1)
    assert (x.shape, x.dtype) == ((100, 16, 16, 1), np.uint8)
    assert set(np.bincount(y)) == {25}
    np.testing.assert_array_equal(x, synthetic_images(100, seed=1)[0])
    assert not np.array_equal(x, synthetic_images(100, seed=2)[0])


def test_horizontal_and_vertical_stripes_differ_in_their_direction():
    x, y = synthetic_images(400, seed=1)
    rows, columns = (x[..., 0].mean(axis=axis).std(axis=1) for axis in (2, 1))
    assert (rows > columns)[y == 0].mean() > 0.9
    assert (rows < columns)[y == 1].mean() > 0.9

"""What ``load_data`` returned, checked before anything is built on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nhop_models.base import DataError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Data:
    """Training and held-out samples: features and targets, samples along the first axis."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array


def check_data(loaded: Any, model: str) -> Data:
    """Raises DataError, in the user's words, where ``loaded`` is not two pairs of matching arrays."""
    try:
        (x_train, y_train), (x_test, y_test) = loaded
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{model}.load_data must return (x_train, y_train), (x_test, y_test), not {type(loaded).__name__}"
        ) from error
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    arrays = {name: _as_array(values, name, model) for name, values in arrays.items()}
    for x, y in (("x_train", "y_train"), ("x_test", "y_test")):
        if len(arrays[x]) != len(arrays[y]):
            raise DataError(f"{model}.load_data: {x} has {len(arrays[x])} samples, {y} {len(arrays[y])}")
        if not len(arrays[x]):
            raise DataError(f"{model}.load_data: {x} has no samples")
    return Data(**arrays)


def _as_array(values: Any, name: str, model: str) -> Array:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{model}.load_data: {name} is not an array: {error}") from error
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        raise DataError(
            f"{model}.load_data: {name} must be an array of numbers, not {array.dtype} {array.shape}"
        )
    return array.astype(np.float32) if array.dtype == np.float64 else array

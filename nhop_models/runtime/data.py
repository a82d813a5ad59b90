"""What ``load_data`` returned, checked before anything is built on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from nhop_models.base import DataError


@dataclass(frozen=True, slots=True)
class Arrays:
    """Samples in memory: arrays, or dicts and tuples of them, with ``rows`` samples along the first axis."""

    x: Any
    y: Any
    rows: int


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A ``tf.data.Dataset`` whose elements are pairs of features and targets."""

    dataset: Any


Source = Arrays | Pipeline


@dataclass(frozen=True, slots=True)
class Data:
    """What a model is trained on, and what is held out."""

    train: Source
    test: Source


def check_data(loaded: Any, model: str) -> Data:
    """Raises DataError, in the user's words, where ``loaded`` is not two sets of samples."""
    try:
        train, test = loaded
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{model}.load_data must return (x_train, y_train), (x_test, y_test), or two tf.data.Datasets, "
            f"not {type(loaded).__name__}"
        ) from error
    return Data(_check(train, "train", model), _check(test, "test", model))


def _check(part: Any, name: str, model: str) -> Source:
    if isinstance(part, tf.data.Dataset):
        return _check_pipeline(part, name, model)
    try:
        x, y = part
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{model}.load_data: the {name} data must be a pair (x_{name}, y_{name}) or a tf.data.Dataset, "
            f"not {type(part).__name__}"
        ) from error
    x, y = _check_arrays(x, f"x_{name}", model), _check_arrays(y, f"y_{name}", model)
    rows = {len(array) for array in tf.nest.flatten((x, y))}
    if len(rows) > 1:
        x_rows, y_rows = len(tf.nest.flatten(x)[0]), len(tf.nest.flatten(y)[0])
        raise DataError(f"{model}.load_data: x_{name} has {x_rows} samples, y_{name} {y_rows}")
    if not (number := rows.pop()):
        raise DataError(f"{model}.load_data: x_{name} has no samples")
    return Arrays(x, y, number)


def _check_arrays(values: Any, name: str, model: str) -> Any:
    if isinstance(values, dict):
        return {key: _check_arrays(value, f"{name}[{key!r}]", model) for key, value in values.items()}
    if isinstance(values, tuple):
        return tuple(_check_arrays(value, f"{name}[{place}]", model) for place, value in enumerate(values))
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{model}.load_data: {name} is not an array: {error}") from error
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        raise DataError(
            f"{model}.load_data: {name} must be an array of numbers, not {array.dtype} {array.shape}"
        )
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _check_pipeline(dataset: tf.data.Dataset, name: str, model: str) -> Pipeline:
    spec = dataset.element_spec
    if not (isinstance(spec, tuple) and len(spec) == 2):
        raise DataError(
            f"{model}.load_data: each element of the {name} dataset must be a pair of features and target, "
            f"not {spec}"
        )
    if name == "test" and int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise DataError(
            f"{model}.load_data: the test dataset never ends: leave repeat() out, or take() a part of it"
        )
    return Pipeline(dataset)

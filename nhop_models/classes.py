"""Data for classifiers: labels to numbers, a split that keeps every class, tables with a class column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from nhop_models import datasets
from nhop_models.base import DataError

Array = np.ndarray[Any, Any]
Where: TypeAlias = Callable[[int], str]
"""Says where a row stands, for messages: file and line."""

_SPLIT_STREAM = 3  # apart from the draws of data and of the split of regressions
_SHOWN = 20


def encode(labels: Array, where: Where) -> tuple[Array, tuple[str, ...]]:
    """Numbers the classes in their order: whole numbers by value, texts by their characters.

    Returns y (rows,), int32, and the classes' names. Raises DataError where there is one class
    only, or a class that has a single row: it could not be both trained on and held out.
    """
    names, first, y, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise DataError(f"{where(0)}: every row is of the same class, {str(names[0])!r}; two are needed")
    single = np.flatnonzero(counts < 2)
    if len(single):
        more = f" ({len(single)} of {len(names)} classes have one row: is this a class?)"
        raise DataError(
            f"{where(int(first[single[0]]))}: the only row of class {str(names[single[0]])[:40]!r}; at least "
            f"two are needed, one to train on and one to hold out{more if len(single) > 1 else ''}"
        )
    return y.reshape(-1).astype(np.int32), tuple(str(name) for name in names)


def split(y: Array, *, seed: int) -> tuple[Array, Array]:
    """Row numbers to train on and to hold out: of each class a random fifth, and at least one row."""
    rng = np.random.default_rng([seed, _SPLIT_STREAM])
    train: list[Array] = []
    test: list[Array] = []
    for number in range(int(y.max()) + 1):
        rows = rng.permutation(np.flatnonzero(y == number))
        held_out = max(1, round(len(rows) * datasets.TEST_FRACTION))
        train.append(rows[held_out:])
        test.append(rows[:held_out])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))


def describe(names: Sequence[str], y: Array) -> str:
    """The mapping in words: ``0 = setosa (50), 1 = ...``, with the number of rows of each."""
    counts = np.bincount(y, minlength=len(names))
    shown = [f"{place} = {name} ({counts[place]})" for place, name in enumerate(names[:_SHOWN])]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def load_labelled_table(location: str) -> tuple[Array, Array, Where]:
    """Reads a CSV whose last column is the class, or an NPZ with X and y.

    Returns x (rows, features), the labels (rows,), all whole numbers or all texts, and where each
    row stands. A first line of a CSV without any number is its header. Raises DataError that names
    file, line and column.
    """
    path = Path(location)
    if not path.is_file():
        raise DataError(f"load_data_dir: {path} does not exist or is not a file")
    try:
        if path.suffix.lower() == ".npz":
            x, labels = datasets.read_npz(path)
            _check_table(path, x)
            labels, lines = whole_or_text(path, labels), None
        else:
            x, labels, lines = _read_csv(path)
    except OSError as error:
        raise DataError(f"load_data_dir: {path} cannot be read: {error.strerror or error}") from error

    def where(row: int) -> str:
        return f"{path}, row {row + 1} of y" if lines is None else f"{path}:{lines[row]}"

    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, column = bad[0]
        raise DataError(f"{where(row)}: column {column + 1} of the features is not a finite number")
    return x, labels, where


def whole_or_text(path: Path, labels: Array) -> Array:
    """The labels of an NPZ as whole numbers or texts; DataError where they are neither."""
    labels = labels.reshape(-1)
    if labels.dtype.kind in "USiub":
        return labels.astype(str) if labels.dtype.kind in "US" else labels.astype(np.int64)
    wrong = np.flatnonzero(labels != np.round(labels)) if labels.dtype.kind == "f" else np.arange(1)
    if len(wrong):
        raise DataError(
            f"{path}, row {wrong[0] + 1} of y: {labels[wrong[0]]} is no class: "
            "a class is a whole number or a text"
        )
    return labels.astype(np.int64)


def _check_table(path: Path, x: Array) -> None:
    if x.ndim != 2 or x.dtype.kind not in "fiub":
        raise DataError(f"{path}: X must be numbers (rows, features), not {x.dtype} {x.shape}")


def _read_csv(path: Path) -> tuple[Array, Array, list[int]]:
    rows, lines, header = datasets.read_rows(path)
    texts = [row[-1].strip() for row in rows]
    x = datasets.to_numbers(path, [row[:-1] for row in rows], lines)
    empty = next((line for text, line in zip(texts, lines, strict=True) if not text), None)
    if empty is not None:
        raise DataError(f"{path}:{empty}: column {len(rows[0])}, the class, is empty")
    numbers = [datasets.number(text) for text in texts]
    if any(value is None for value in numbers):
        return x, np.array(texts), lines
    for value, line, text in zip(numbers, lines, texts, strict=True):
        if value is None or not value.is_integer():
            hint = f"; is the last column ({header[-1]!r}) the class?" if header else ""
            raise DataError(
                f"{path}:{line}: column {len(rows[0])}: {text[:40]} is no class: a class is a whole number "
                f"or a text{hint}"
            )
    return x, np.array(numbers).astype(np.int64), lines

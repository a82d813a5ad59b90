"""Tables: the paper's synthetic functions, and CSV or NPZ files."""

from __future__ import annotations

import csv
import itertools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nhop_models.base import Arrays, DataError

Array = np.ndarray[Any, Any]

TEST_FRACTION = 0.2
_DATA_STREAM, _SPLIT_STREAM = 1, 2  # keep the draws of data and split apart


def synthetic(
    instances: int,
    features: int,
    *,
    seed: int,
    power_method: bool = False,
    add_cosine: bool = False,
    add_noise: bool = False,
) -> Arrays:
    """The paper's "complex cosine function" (section IV): x (instances, features), y (instances, 1).

    ``y = cos(1 / (|x.c| + 0.75))`` for normal x of deviation 2 and a normal vector c. With
    ``power_method`` the features are the powers of one normal variable, and the cosine is taken
    only with ``add_cosine``. ``add_noise`` adds normal noise of deviation 2 to y.
    """
    rng = np.random.default_rng([seed, _DATA_STREAM])
    if power_method:
        x = rng.standard_normal((instances, 1)) ** np.arange(1, features + 1)
    else:
        x = 2.0 * rng.standard_normal((instances, features))
    y = x @ rng.standard_normal((features, 1))
    if add_cosine or not power_method:
        y = np.cos(1.0 / (np.abs(y) + 0.75))
    if add_noise:
        y += 2.0 * rng.standard_normal(y.shape)
    return x, y


def load_table(location: str) -> Arrays:
    """Reads a CSV whose last column is the target, or an NPZ with X and y.

    Returns x (rows, features) and y (rows, 1). A first line of a CSV that is not numeric is its
    header. Raises DataError that names file, line and column.
    """
    path = Path(location)
    if not path.is_file():
        raise DataError(f"load_data_dir: {path} does not exist or is not a file")
    try:
        x, y = _load_npz(path) if path.suffix.lower() == ".npz" else _load_csv(path)
    except OSError as error:
        raise DataError(f"load_data_dir: {path} cannot be read: {error.strerror or error}") from error
    if len(x) < 2:
        raise DataError(
            f"{path}: {len(x)} row{'s'[: len(x) != 1]} of data; at least 2 are needed to train and to test"
        )
    for name, values in (("features", x), ("target", y)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, column = bad[0]
            raise DataError(
                f"{path}: not a finite number in data row {row + 1}, column {column + 1} of the {name}"
            )
    return x, y


def split_and_standardise(x: Array, y: Array, *, seed: int) -> tuple[Arrays, Arrays]:
    """A random 80/20 split; features get mean 0 and deviation 1 over the training rows.

    The target is left as it is, so that losses are in its own unit, squared. Float32.
    """
    order = np.random.default_rng([seed, _SPLIT_STREAM]).permutation(len(x))
    tests = max(1, round(len(x) * TEST_FRACTION))
    train, test = order[tests:], order[:tests]
    scaled, targets = standardise(x, train), y.astype(np.float32)
    return (scaled[train], targets[train]), (scaled[test], targets[test])


def standardise(x: Array, train: Array) -> Array:
    """Features with mean 0 and deviation 1 over the rows ``train``; a constant one becomes 0. Float32."""
    mean, deviation = x[train].mean(axis=0), x[train].std(axis=0)
    return np.asarray((x - mean) / np.where(deviation > 0, deviation, 1.0), np.float32)


def read_npz(path: Path) -> Arrays:
    """The arrays X and y of an NPZ, as they are; y is (rows,) or (rows, 1).

    Raises DataError where they are not there, are objects, or do not have the same number of rows.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = {"X", "y"} - set(archive.files)
            if missing:
                raise DataError(
                    f"{path}: no array {' and '.join(sorted(missing))}; it has {', '.join(archive.files)}"
                )
            x, y = archive["X"], archive["y"]
    except DataError:
        raise
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path}: not an NPZ file with arrays X and y ({error})") from error
    if not x.ndim or y.shape not in {(len(x),), (len(x), 1)}:
        raise DataError(f"{path}: X must be (rows, ...) and y (rows,), not {x.shape} and {y.shape}")
    return x, y


def read_rows(path: Path) -> tuple[list[list[str]], list[int], list[str]]:
    """The cells of a CSV, the line of each row, and its header.

    A first line without any number is the header; it is empty where there is none. Raises
    DataError where there are no rows, or rows of different lengths.
    """
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for row in reader:
                if row:
                    rows.append(row)
                    lines.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file: {error}") from error
    if not rows:
        raise DataError(f"{path}: empty")
    header = [] if any(number(cell) is not None for cell in rows[0]) else rows[0]
    columns = len(rows[0])
    if header:
        del rows[0], lines[0]
    if not rows:
        raise DataError(f"{path}: a header, and no row of data")
    if columns < 2:
        raise DataError(f"{path}: one column; at least a feature and, last, the target are needed")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != columns:
            raise DataError(f"{path}:{line}: {len(row)} columns where the first line has {columns}")
    return rows, lines, header


def to_numbers(path: Path, rows: Sequence[Sequence[str]], lines: Sequence[int]) -> Array:
    """Cells as numbers (rows, columns); DataError with the place of the first that is none."""
    try:
        return np.array([[float(cell) for cell in row] for row in rows])
    except ValueError:
        for row, line in zip(rows, lines, strict=True):
            for column, cell in enumerate(row, 1):
                if number(cell) is None:
                    raise DataError(
                        f"{path}:{line}: column {column} is not a number: {cell[:40]!r}"
                    ) from None
        raise


def number(cell: str) -> float | None:
    """The number that a cell holds, or None."""
    try:
        return float(cell)
    except ValueError:
        return None


def _load_npz(path: Path) -> Arrays:
    x, y = read_npz(path)
    try:
        x, y = x.astype(np.float64), y.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: X and y must be numbers ({error})") from error
    if x.ndim != 2:
        raise DataError(f"{path}: X must be (rows, features) and y (rows,), not {x.shape} and {y.shape}")
    return x, y.reshape(-1, 1)


def _load_csv(path: Path) -> Arrays:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first, second = itertools.islice((row for row in csv.reader(file) if row), 2)
        header = not any(number(cell) is not None for cell in first)
        table = np.loadtxt(
            path, delimiter=",", skiprows=int(header), ndmin=2, encoding="utf-8-sig", comments=None
        )
        if table.shape[1] == len(second) > 1:
            return table[:, :-1], table[:, -1:]
    except (ValueError, csv.Error):
        pass  # numpy refuses more than we do: quoted numbers, blanks
    rows, lines, _ = read_rows(path)
    table = to_numbers(path, rows, lines)
    return table[:, :-1], table[:, -1:]

"""Images for classifiers: NPZ files, and synthetic stripes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nhop_models import classes, datasets
from nhop_models.base import DataError

Array = np.ndarray[Any, Any]

SYNTHETIC_CLASSES = ("horizontal", "vertical", "diagonal", "checked")
SYNTHETIC_SIZE = 16
"""Pixels of a side."""

_IMAGE_STREAM = 4
_BYTE = 255


def load_images(location: str) -> tuple[Array, Array, classes.Where]:
    """Reads an NPZ with images X (n, height, width[, channels]) and their classes y (n,).

    Returns X (n, height, width, channels), the labels (n,) and where each image stands. Whole
    numbers become bytes and must be 0 to 255; other numbers become float32, as they are. Raises
    DataError that says what does not fit.
    """
    path = Path(location)
    if not path.is_file():
        raise DataError(f"load_data_dir: {path} does not exist or is not a file")
    try:
        x, labels = datasets.read_npz(path)
    except OSError as error:
        raise DataError(f"load_data_dir: {path} cannot be read: {error.strerror or error}") from error
    if x.dtype.kind not in "fiu" or x.ndim not in (3, 4) or 0 in x.shape:
        raise DataError(
            f"{path}: X must be numbers (images, height, width) or (images, height, width, channels), "
            f"not {x.dtype} {x.shape}"
        )
    bad = np.isfinite(x) if x.dtype.kind == "f" else (x >= 0) & (x <= _BYTE)
    if not bad.all():
        place = np.argwhere(~bad)[0]
        wanted = "a finite number" if x.dtype.kind == "f" else f"within 0 to {_BYTE}"
        raise DataError(
            f"{path}: X[{', '.join(map(str, place))}] is {x[tuple(place)]}, which is not {wanted}"
        )
    x = x.astype(np.float32 if x.dtype.kind == "f" else np.uint8)
    labels = classes.whole_or_text(path, labels)
    return x.reshape(*x.shape[:3], -1), labels, lambda row: f"{path}, row {row + 1} of y"


def synthetic_images(number: int, *, seed: int) -> tuple[Array, Array]:
    """Noisy stripes of four directions: x (number, 16, 16, 1) bytes, y (number,) 0 to 3.

    Width, phase and contrast of the stripes are random; the noise is normal, with a deviation of
    40 where the contrast is 20 to 60. The classes are SYNTHETIC_CLASSES.
    """
    rng = np.random.default_rng([seed, _IMAGE_STREAM])
    y = rng.permutation(np.arange(number) % len(SYNTHETIC_CLASSES))
    period, phase = rng.uniform(3.0, 8.0, number), rng.uniform(0.0, 2 * np.pi, (2, number))
    row, column = np.mgrid[:SYNTHETIC_SIZE, :SYNTHETIC_SIZE].astype(np.float32)

    def stripes(direction: Array, phase: Array) -> Array:
        return np.asarray(
            np.sin(2 * np.pi * direction[None] / period[:, None, None] + phase[:, None, None]), np.float32
        )

    down, across = stripes(row, phase[0]), stripes(column, phase[1])
    sloping = stripes((row + column) / np.sqrt(2.0), phase[0])
    drawn = np.choose(y[:, None, None], [down, across, sloping, down * across])
    contrast = rng.uniform(20.0, 60.0, number)[:, None, None]
    noise = rng.normal(0.0, 40.0, drawn.shape)
    x = np.clip(np.round(128.0 + contrast * drawn + noise), 0, _BYTE).astype(np.uint8)
    return x[..., None], y

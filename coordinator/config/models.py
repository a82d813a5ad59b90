"""The models that come with NHOP, as far as a configuration must know them."""

from __future__ import annotations

import difflib
import enum
import os
import re
from dataclasses import dataclass
from pathlib import Path

from coordinator.config import values
from coordinator.config.source import describe
from coordinator.config.values import RefusedError
from nhop_models import urls

_CLASS_NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")


class DataKind(enum.Enum):
    """What ``load_data_dir`` is for a model; the value says it in words."""

    TABLE = "the CSV or NPZ file to read"
    IMAGES = "the NPZ file with X (n, height, width[, channels]) and y to read"
    FOLDER = "the folder to read, with one sub-folder of source files for each language"


@dataclass(frozen=True, slots=True)
class ShippedModel:
    """What holds for one of the shipped models.

    ``layers``: whether hidden_layers, nodes_per_layer and activation are searched without being
    named. ``outputs``: the number of outputs of a table's model where ``nn_dimensions`` is not given,
    and ``fewest`` and ``most`` that may be; None where ``nn_dimensions`` says nothing.
    ``synthetic``: whether there is data without ``load_data``.
    """

    data: DataKind
    layers: bool = False
    outputs: int | None = None
    fewest: int = 1
    most: int | None = None
    synthetic: bool = True


SHIPPED = {
    "Regressor": ShippedModel(DataKind.TABLE, layers=True, outputs=1, most=1),
    "Classifier": ShippedModel(DataKind.TABLE, layers=True, outputs=3, fewest=2),
    "CNN": ShippedModel(DataKind.IMAGES),
    "RNN": ShippedModel(DataKind.FOLDER, synthetic=False),
}
"""By the names that ``nn_model`` has for them."""

_CLASSES = {
    "regressornn": "Regressor",
    "classifiernn": "Classifier",
    "imagecnn": "CNN",
    "sourcecodernn": "RNN",
    "lstm": "RNN",
}


def model_name(value: object) -> str:
    """Returns ``package.module:Class``, or a shipped name, upper and lower case aside.

    Raises RefusedError for anything else, with the nearest name where there is one.
    """
    name = values.text(value).strip()
    shipped = {known.lower(): known for known in SHIPPED}
    if name.lower() in shipped:
        return shipped[name.lower()]
    if _CLASS_NAME.fullmatch(name):
        return name
    if name.lower() in ("custom", "customnn"):
        raise RefusedError(
            "name a class of yours as package.module:Class; derived from nhop_models.CustomNN, it needs "
            "build_model only"
        )
    near = difflib.get_close_matches(name.lower(), [*shipped, *_CLASSES], 1)
    meant = "".join(shipped.get(key) or _CLASSES[key] for key in near)
    hint = f"; did you mean {meant}?" if meant else ""
    raise RefusedError(f"must be {', '.join(SHIPPED)} or package.module:Class, not {describe(value)}{hint}")


def why_not_fetched(url: str, model: ShippedModel | None) -> str | None:
    """As ``why_unreadable`` for a URL, which the hosts fetch: not whether it is there."""
    problem = urls.why_not_opened(url)
    if problem is None and model is not None and model.data is not DataKind.FOLDER:
        problem = _why_not_its_suffix(urls.suffix(url), model)
    return problem


def why_unreadable(location: Path, model: ShippedModel | None) -> str | None:
    """Returns what is wrong with ``load_data_dir``; a class of the user's (None) reads what it likes."""
    try:
        if not location.exists():
            return "does not exist"
        if model is None:
            return None
        if model.data is DataKind.FOLDER:
            return _why_no_languages(location)
        if location.is_dir():
            return f"is a folder: name {model.data.value}"
        if (problem := _why_not_its_suffix(location.suffix.lower(), model)) is not None:
            return problem
        if not os.access(location, os.R_OK):
            return "cannot be read: permission denied"
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"
    return None


def _why_not_its_suffix(suffix: str, model: ShippedModel) -> str | None:
    suffixes = (".npz",) if model.data is DataKind.IMAGES else (".csv", ".npz")
    return None if suffix in suffixes else f"must be a {' or '.join(suffixes)} file"


def _why_no_languages(location: Path) -> str | None:
    if not location.is_dir():
        return f"is a file: name {DataKind.FOLDER.value}"
    if not os.access(location, os.R_OK | os.X_OK):
        return "cannot be read: permission denied"
    with os.scandir(location) as entries:
        languages = [e for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
    if len(languages) < 2:
        return (
            f"has {len(languages)} sub-folder{'s'[: len(languages) != 1]}, and two are the fewest: name "
            f"{DataKind.FOLDER.value}"
        )
    return None

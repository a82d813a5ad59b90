"""What the chief leaves of a trained model: the model itself, and predictions beside the truth."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from nhop_models.base import NNModel
from nhop_models.contract import ARTIFACTS_FOLDER, MODEL_FILE, PREDICTIONS_FILE, TASKS_FOLDER
from nhop_models.runtime.failures import first_line

if TYPE_CHECKING:
    from nhop_models.runtime.evaluation import Evaluation
    from nhop_models.runtime.task import Task


def save(
    task: Task, model: NNModel, keras_model: keras.Model, evaluation: Evaluation
) -> tuple[dict[str, int], list[str]]:
    """Saves the model, where the attempt's spec asks for it; the files' sizes, and notes for the user.

    A model that Keras cannot save is noted: the trial is as good without its file.
    """
    spec = task.spec
    below = spec.keep_model_below
    if not spec.keep_model or (below is not None and evaluation.loss >= below):
        return {}, []
    folder = task.directory / ARTIFACTS_FOLDER
    sizes, notes = {}, []
    try:
        folder.mkdir(mode=0o770, exist_ok=True)
        _compile(model, keras_model)
        with _temporary_files_in(task.directory / TASKS_FOLDER):
            keras_model.save(folder / MODEL_FILE)
        sizes[MODEL_FILE] = (folder / MODEL_FILE).stat().st_size
        if evaluation.y_pred is not None:
            np.savez(folder / PREDICTIONS_FILE, y_true=evaluation.y_true, y_pred=evaluation.y_pred)
            sizes[PREDICTIONS_FILE] = (folder / PREDICTIONS_FILE).stat().st_size
    except Exception as error:  # noqa: BLE001  (whatever a layer's get_config raises)
        for name in {MODEL_FILE, PREDICTIONS_FILE} - sizes.keys():
            (folder / name).unlink(missing_ok=True)
        notes.append(f"the model could not be saved ({type(error).__name__}: {first_line(error)})")
    return sizes, notes


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Keras makes a folder for a model's assets: that of a task that is killed goes with its attempt."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _compile(model: NNModel, keras_model: keras.Model) -> None:
    """So that ``evaluate`` works on the loaded model; functions of the user's would keep it from loading."""
    if isinstance(model.loss, str):
        keras_model.compile("sgd", loss=model.loss, metrics=_names(model.metrics))
    elif keras_model.compiled:
        keras_model.compiled = False


def _names(metrics: Any) -> Any:
    """Those of the metrics, which are of the form that ``compile`` takes, that are names."""
    if isinstance(metrics, Mapping):
        return {output: _names(of_output) for output, of_output in metrics.items()}
    if isinstance(metrics, str):
        return [metrics]
    return [
        metric if isinstance(metric, str) else _names(metric)
        for metric in metrics
        if isinstance(metric, (str, Sequence))
    ]

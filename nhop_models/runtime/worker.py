"""A worker: loads the data, builds the model, trains; the chief also evaluates and ends the training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras

from nhop_models.base import HyperParameters, NNModel
from nhop_models.contract import Outcome, TaskSpec, TaskStatus
from nhop_models.runtime import cluster, functions, saving
from nhop_models.runtime.data import check_data
from nhop_models.runtime.loading import check_model, load_model
from nhop_models.runtime.trainer import Training

if TYPE_CHECKING:
    from nhop_models.runtime.task import Task


def run(task: Task) -> Outcome:
    """Runs the worker to its end.

    The chief's outcome carries ``val_loss``; the others wait to be told once the steps are done,
    so that no one is left waiting for them.
    """
    spec = task.spec
    server = cluster.start_server(spec, task.identity) if spec.ps else None
    keras.utils.set_random_seed(spec.seed % 2**32)
    hp = HyperParameters(_located(spec), spec.parameters)
    with task.reporter.phase("data"):
        found = load_model(spec.model)
    if isinstance(found, type):
        return _train(task, found(), hp, server.target if server else "")
    return functions.run(task, found, hp, server)


def _located(spec: TaskSpec) -> Mapping[str, Any]:
    """The settings, with the place of data that was sent to this host."""
    if not spec.data_directory:
        return spec.settings
    settings = {**spec.settings, "data_dir": spec.data_directory}
    location = settings.get("load_data_dir")
    if location is not None and "://" not in location:
        settings["load_data_dir"] = os.path.normpath(os.path.join(spec.data_directory, location))  # noqa: PTH118
    return settings


def _train(task: Task, model: NNModel, hp: HyperParameters, target: str) -> Outcome:
    spec, reporter = task.spec, task.reporter
    with reporter.phase("data"):
        data = check_data(model.load_data(hp), spec.model)
    with reporter.phase("model"):
        keras_model = model.build_model(hp)
        check_model(keras_model, model, spec.model)
    training = Training(task, hp, model, keras_model, data, target)
    del data  # the graph's variables have it
    with reporter.phase("steps"):
        model.train_model(training)
    if not task.identity.is_chief:
        task.stop.wait()
    if task.stop.is_set():
        return task.outcome(TaskStatus.STOPPED, metrics=training.metrics)
    with reporter.phase("evaluation"):
        evaluation = training.finish()
    metrics = {**evaluation.metrics, **training.metrics}
    reporter.finish(evaluation.loss, metrics)
    with reporter.phase("saving"):
        artifacts, notes = saving.save(task, model, keras_model, evaluation)
    return task.outcome(
        TaskStatus.COMPLETED,
        val_loss=evaluation.loss,
        metrics=metrics,
        artifacts=artifacts,
        notes=(*training.notes(), *notes),
    )

"""A worker: loads the data, builds the model, trains; the chief also evaluates and ends the training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras

from nhop_models.base import HyperParameters
from nhop_models.contract import Outcome, TaskStatus
from nhop_models.runtime import cluster
from nhop_models.runtime.data import check_data
from nhop_models.runtime.loading import check_model, load_model_class
from nhop_models.runtime.trainer import Training

if TYPE_CHECKING:
    from nhop_models.runtime.task import Task


def run(task: Task) -> Outcome:
    """Runs the worker to its end.

    The chief's outcome carries ``val_loss``; the others wait to be told once the steps are done,
    so that no one is left waiting for them.
    """
    spec, reporter = task.spec, task.reporter
    server = cluster.start_server(spec, task.identity) if spec.ps else None
    keras.utils.set_random_seed(spec.seed % 2**32)
    hp = HyperParameters(spec.settings, spec.parameters)
    with reporter.phase("data"):
        model = load_model_class(spec.model)()
        data = check_data(model.load_data(hp), spec.model)
    with reporter.phase("model"):
        keras_model = model.build_model(hp)
        check_model(keras_model, spec.model)
    training = Training(task, hp, model, keras_model, data, server.target if server else "")
    with reporter.phase("steps"):
        model.train_model(training)
    if task.stop.is_set():
        return task.outcome(TaskStatus.STOPPED)
    if not task.identity.is_chief:
        task.stop.wait()
        return task.outcome(TaskStatus.STOPPED)
    with reporter.phase("evaluation"):
        val_loss = training.evaluate()
    reporter.finish(val_loss)
    return task.outcome(TaskStatus.COMPLETED, val_loss=val_loss)

"""Finds the class or function that ``nn_model`` names, and checks what a ``build_model`` returned."""

from __future__ import annotations

import importlib
from typing import Any

import keras

from nhop_models.base import NNModel
from nhop_models.contract import FailureKind
from nhop_models.runtime.failures import SHIPPED, TaskError
from nhop_models.runtime.functions import TrainFunction


def load_model(name: str) -> type[NNModel] | TrainFunction:
    """The class behind a shipped name or ``package.module:Class``, or the function that is there.

    Raises TaskError (USER_CODE) where there is no such module or name, or it is neither an NNModel
    nor a function; what the module itself raises while it is imported goes through.
    """
    module_name, _, class_name = SHIPPED.get(name, name).partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise TaskError(
            FailureKind.USER_CODE,
            f"nn_model: {name}: there is no module {error.name!r} beside the study file, in the current "
            "folder or in the environment",
        ) from error
    found = getattr(module, class_name, None)
    if found is None:
        raise TaskError(
            FailureKind.USER_CODE,
            f"nn_model: {name}: module {module_name} ({module.__file__}) has no {class_name}",
        )
    if isinstance(found, type) and issubclass(found, NNModel):
        return found
    if isinstance(found, type) or not callable(found):
        raise TaskError(
            FailureKind.USER_CODE,
            f"nn_model: {name} is neither a class derived from nhop_models.NNModel nor a function "
            "train(hp, context)",
        )
    function: TrainFunction = found
    return function


def check_model(built: Any, model: NNModel, name: str) -> None:
    """Raises TaskError (USER_CODE) where ``built`` is not a Keras model that can be trained as it says."""
    problem = None
    if not isinstance(built, keras.Model):
        problem = f"returned {type(built).__name__}; a keras.Model is expected"
    elif not built.trainable_variables:
        problem = "returned a model without trainable weights; is it built (give it an Input layer)?"
    elif any(variable.dtype != "float32" for variable in built.trainable_variables):
        problem = "returned a model with weights that are not float32"
    elif built.compiled and type(model).loss is NNModel.loss and built.loss not in (None, model.loss):
        problem = (
            f"compiles the model with the loss {built.loss!r}, which is not looked at: write it as the class "
            f"attribute 'loss' (it is {model.loss!r} now); the optimizer is the study's train_optimizer"
        )
    if problem:
        raise TaskError(FailureKind.USER_CODE, f"nn_model: {name}.build_model {problem}")

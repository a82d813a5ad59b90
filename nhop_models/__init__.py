"""Models and their training: all that runs inside the task processes of a trial.

Importing this package is cheap, for agents and coordinators do it, too: a shipped model's module is
imported with the first use of its class, TensorFlow with the first model that is built.
The package never imports grpc, nhop, coordinator or agent, so that a user's own modules of
these names cannot collide with ours inside a task.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nhop_models.base import DataError, HyperParameters, NNModel

if TYPE_CHECKING:
    from nhop_models.classifier import ClassifierNN
    from nhop_models.cnn import ImageCNN
    from nhop_models.custom import CustomNN
    from nhop_models.fetching import fetch
    from nhop_models.regressor import RegressorNN
    from nhop_models.source_code import SourceCodeRNN

__all__ = [
    "ClassifierNN",
    "CustomNN",
    "DataError",
    "HyperParameters",
    "ImageCNN",
    "NNModel",
    "RegressorNN",
    "SourceCodeRNN",
    "fetch",
]

_MODULES = {
    "ClassifierNN": "nhop_models.classifier",
    "CustomNN": "nhop_models.custom",
    "ImageCNN": "nhop_models.cnn",
    "RegressorNN": "nhop_models.regressor",
    "SourceCodeRNN": "nhop_models.source_code",
    "fetch": "nhop_models.fetching",
}


def __getattr__(name: str) -> Any:
    try:
        module = _MODULES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

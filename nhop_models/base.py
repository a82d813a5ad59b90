"""The contract of a model: what a class must offer so that NHOP can train it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import keras
    import numpy as np

    from nhop_models.runtime.trainer import Training

Arrays: TypeAlias = "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]"
"""Features and targets, the same number of rows in both."""


class HyperParameters(Mapping[str, Any]):
    """A trial's hyper-parameters and the configuration's keys, as ``hp["name"]`` or ``hp.name``."""

    def __init__(self, settings: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
        self._values = {**settings, **parameters}

    def __getitem__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise KeyError(
                f"{name!r} is neither a hyper-parameter of this trial nor a key of the configuration; "
                f"there are: {', '.join(sorted(self._values))}"
            ) from None

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"no hyper-parameter or key {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"HyperParameters({self._values!r})"


class DataError(ValueError):
    """The data cannot be read or does not fit the model; the message is for the user."""


class NNModel:
    """Base of all models; a subclass gives at least ``build_model`` and ``load_data``.

    One instance lives in each worker of a trial. The methods are called in the order
    ``load_data``, ``build_model``, ``train_model`` (paper, section II.E).
    """

    loss: Any = "mse"
    """A Keras loss: its name, or a function of ``(y_true, y_pred)``; the mean over the batch is minimised.

    For a model with several outputs a dict or list of losses, whose sum is minimised.
    """

    metrics: Sequence[Any] = ()
    """Names of Keras metrics such as ``"accuracy"``, or metrics and functions, of the held-out data."""

    def build_model(self, hp: HyperParameters) -> keras.Model:
        """Returns a built Keras model: the shapes of its inputs are known."""
        raise TypeError(f"{type(self).__name__} does not define build_model(self, hp)")

    def load_data(self, hp: HyperParameters) -> tuple[Any, Any]:
        """Returns ``(x_train, y_train), (x_test, y_test)``: arrays with samples along the first axis.

        A dict or tuple of arrays where the model has several inputs or outputs. Instead of a pair, a
        ``tf.data.Dataset`` of single samples ``(x, y)``: each worker takes its own part of it, over
        and over, in batches; shuffle it yourself, and leave repeat() and batch() to NHOP. The test
        dataset must end.

        Every worker of every trial calls it, and all must get the same data: draw random numbers
        from ``hp["seed"]``, which is the study's. Raise DataError with a message for the user
        where the data is not usable.
        """
        raise TypeError(f"{type(self).__name__} does not define load_data(self, hp)")

    def train_model(self, training: Training) -> None:
        """Trains until the end; may be overridden to see each step.

        The default runs ``while not training.ended: training.advance()``, which makes many steps in a
        call; ``training.step()`` makes one and returns its loss. Where ``training.is_chief``,
        ``training.evaluate()`` gives loss and metrics on the held-out data.
        """
        while not training.ended:
            training.advance()

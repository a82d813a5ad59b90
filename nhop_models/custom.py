"""The generic base of models whose data NHOP reads: the shipped ones, and a user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nhop_models import datasets
from nhop_models.base import Arrays, DataError, HyperParameters, NNModel
from nhop_models.fetching import fetch

if TYPE_CHECKING:
    import keras


class CustomNN(NNModel):
    """A model of which only ``build_model`` has to be written (paper, section II.E).

    The data is what the configuration names, as for the Regressor. ClassifierNN, ImageCNN and
    SourceCodeRNN read other data in the same way, so a class may be derived from them, too.
    """

    input_shape: tuple[int, ...]
    """Shape of one sample, such as (features,); known in ``build_model``."""

    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the model's outputs; empty for a regression."""

    def load_data(self, hp: HyperParameters) -> tuple[Arrays, Arrays]:
        """Synthetic data, or with ``load_data: true`` the table at ``load_data_dir``.

        Shapes: x (rows, features), y (rows, 1), float32. A random fifth of the rows is held out;
        features are standardised.
        """
        if hp.get("load_data"):
            x, y = datasets.load_table(data_location(hp))
        else:
            x, y = datasets.synthetic(
                hp["data_instances"],
                hp["data_features"],
                seed=hp["seed"],
                power_method=hp.get("power_method", False),
                add_cosine=hp.get("add_cosine", False),
                add_noise=hp.get("add_noise", False),
            )
        check_inputs(hp, x.shape[1])
        self.input_shape = x.shape[1:]
        return datasets.split_and_standardise(x, y, seed=hp["seed"])

    def build_model(self, hp: HyperParameters) -> keras.Model:
        """Returns a built Keras model for inputs of ``input_shape``; to be written in a subclass."""
        raise TypeError(f"{type(self).__name__} does not define build_model(self, hp)")


def data_location(hp: HyperParameters) -> str:
    """The path of ``load_data_dir``, of a URL that of its local copy.

    DataError where the key is not given, and as ``nhop_models.fetch``.
    """
    location = hp.get("load_data_dir")
    if location is None:
        raise DataError("load_data is true, and load_data_dir does not say what to read: give it")
    return str(fetch(str(location)))


def check_inputs(hp: HyperParameters, features: int) -> None:
    """Raises DataError where ``nn_dimensions`` asks for another number of inputs."""
    dimensions = hp.get("nn_dimensions")
    if dimensions is not None and dimensions[0] != features:
        raise DataError(
            f"nn_dimensions: {list(dimensions)} asks for {dimensions[0]} inputs, the data has "
            f"{features} features; correct nn_dimensions or leave it out"
        )

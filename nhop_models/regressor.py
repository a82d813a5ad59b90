"""The paper's regressor: a stack of dense layers, trained on synthetic or real tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nhop_models import datasets
from nhop_models.base import Arrays, DataError, HyperParameters, NNModel

if TYPE_CHECKING:
    import keras


class RegressorNN(NNModel):
    """``hidden_layers`` dense layers with ``activation``, then one linear output (paper, section III)."""

    loss = "mse"

    def __init__(self) -> None:
        self._width: int | None = None

    def load_data(self, hp: HyperParameters) -> tuple[Arrays, Arrays]:
        """Synthetic data, or with ``load_data: true`` the table at ``load_data_dir``.

        Shapes: x (rows, features), y (rows, 1), float32.
        """
        if hp.get("load_data"):
            x, y = datasets.load_table(hp["load_data_dir"])
        else:
            x, y = datasets.synthetic(
                hp["data_instances"],
                hp["data_features"],
                seed=hp["seed"],
                power_method=hp.get("power_method", False),
                add_cosine=hp.get("add_cosine", False),
                add_noise=hp.get("add_noise", False),
            )
        dimensions = hp.get("nn_dimensions")
        if dimensions is not None and dimensions[0] != x.shape[1]:
            raise DataError(
                f"nn_dimensions: {list(dimensions)} asks for {dimensions[0]} inputs, the data has "
                f"{x.shape[1]} features; correct nn_dimensions or leave it out"
            )
        self._width = x.shape[1]
        return datasets.split_and_standardise(x, y, seed=hp["seed"])

    def build_model(self, hp: HyperParameters) -> keras.Model:
        """Dense layers of ``hp["hidden_layers"]`` nodes each, and one linear output."""
        import keras

        assert self._width is not None, "load_data comes first"
        layers = [keras.layers.Input((self._width,))]
        layers += [keras.layers.Dense(nodes, activation=hp["activation"]) for nodes in hp["hidden_layers"]]
        layers.append(keras.layers.Dense(1))
        return keras.Sequential(layers)

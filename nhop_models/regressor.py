"""The paper's regressor: a stack of dense layers, trained on synthetic or real tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nhop_models.base import HyperParameters
from nhop_models.custom import CustomNN

if TYPE_CHECKING:
    import keras


class RegressorNN(CustomNN):
    """``hidden_layers`` dense layers with ``activation``, then one linear output (paper, section III)."""

    loss = "mse"

    def build_model(self, hp: HyperParameters) -> keras.Model:
        """Dense layers of ``hp["hidden_layers"]`` nodes each, and one linear output."""
        import keras

        layers = [keras.layers.Input(self.input_shape)]
        layers += [keras.layers.Dense(nodes, activation=hp["activation"]) for nodes in hp["hidden_layers"]]
        layers.append(keras.layers.Dense(1))
        return keras.Sequential(layers)

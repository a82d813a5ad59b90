"""A classifier of table rows: a stack of dense layers with one output a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nhop_models import classes, datasets
from nhop_models.base import Arrays, DataError, HyperParameters
from nhop_models.custom import CustomNN, check_inputs, data_location
from nhop_models.layers import dense_block

if TYPE_CHECKING:
    import keras

DEFAULT_CLASSES = 3
"""Of synthetic data, where ``nn_dimensions`` does not say."""


class ClassifierNN(CustomNN):
    """``hidden_layers`` dense layers with ``activation``, then a softmax over the classes.

    The cross-entropy is computed from the logits, which TensorFlow finds behind the softmax, so a
    confident wrong answer has its full loss and gradient; the saved model gives probabilities all
    the same. ``dropout`` (a fraction) and ``batch_norm`` (true or false) of ``search_space`` put
    these layers behind each hidden one; without them there are none.
    """

    loss = "sparse_categorical_crossentropy"
    metrics = ("accuracy",)

    def load_data(self, hp: HyperParameters) -> tuple[Arrays, Arrays]:
        """Synthetic data, or with ``load_data: true`` the table at ``load_data_dir``.

        Shapes: x (rows, features) float32, y (rows,) int32, the place of the class in ``classes``.
        Of every class a random fifth of the rows is held out, at least one; features are
        standardised. Synthetic classes are equal parts of the values of the paper's function,
        lowest first: as many as ``nn_dimensions`` says, or DEFAULT_CLASSES.
        """
        dimensions = hp.get("nn_dimensions")
        if hp.get("load_data"):
            x, labels, where = classes.load_labelled_table(data_location(hp))
        else:
            x, labels, where = _synthetic(hp, dimensions[1] if dimensions else DEFAULT_CLASSES)
        check_inputs(hp, x.shape[1])
        y, self.classes = classes.encode(labels, where)
        if dimensions is not None and dimensions[1] != len(self.classes):
            raise DataError(
                f"nn_dimensions: {list(dimensions)} asks for {dimensions[1]} outputs, the data has "
                f"{len(self.classes)} classes; correct nn_dimensions or leave it out"
            )
        print(f"classes: {classes.describe(self.classes, y)}", flush=True)
        self.input_shape = x.shape[1:]
        train, test = classes.split(y, seed=hp["seed"])
        x = datasets.standardise(x, train)
        return (x[train], y[train]), (x[test], y[test])

    def build_model(self, hp: HyperParameters) -> keras.Model:
        """Dense layers of ``hp["hidden_layers"]`` nodes each, and the probability of each class."""
        import keras

        layers: list[Any] = [keras.layers.Input(self.input_shape)]
        for nodes in hp["hidden_layers"]:
            layers += dense_block(nodes, hp)
        layers.append(keras.layers.Dense(len(self.classes), activation="softmax"))
        return keras.Sequential(layers)


def _synthetic(hp: HyperParameters, number: int) -> tuple[classes.Array, classes.Array, classes.Where]:
    x, y = datasets.synthetic(
        hp["data_instances"],
        hp["data_features"],
        seed=hp["seed"],
        power_method=hp.get("power_method", False),
        add_cosine=hp.get("add_cosine", False),
        add_noise=hp.get("add_noise", False),
    )
    rank = np.argsort(np.argsort(y[:, 0], kind="stable"), kind="stable")
    return x, rank * number // len(x), lambda row: f"synthetic data, row {row + 1}"

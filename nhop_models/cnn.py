"""A small convolutional classifier of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nhop_models import classes, images
from nhop_models.base import Arrays, HyperParameters
from nhop_models.custom import CustomNN, data_location
from nhop_models.layers import BATCH_NORM_MOMENTUM, as_list, dense_block

if TYPE_CHECKING:
    import keras


class ImageCNN(CustomNN):
    """Blocks of convolution, batch normalisation, ReLU and pooling, then a softmax over the classes.

    Hyper-parameters, where ``search_space`` names them: ``conv_filters`` (a number or a list, one
    for each block; [8, 16]), ``kernel_size`` (3), ``dropout`` before the last layer (0.2), and
    ``hidden_layers`` with ``activation`` for dense layers before it (none).
    """

    loss = "sparse_categorical_crossentropy"
    metrics = ("accuracy",)

    def load_data(self, hp: HyperParameters) -> tuple[Arrays, Arrays]:
        """Synthetic stripes, or with ``load_data: true`` the NPZ at ``load_data_dir``.

        Shapes: x (images, height, width, channels), bytes or float32, y (images,) int32, the place
        of the class in ``classes``. Of every class a random fifth of the images is held out.
        """
        if hp.get("load_data"):
            x, labels, where = images.load_images(data_location(hp))
            y, self.classes = classes.encode(labels, where)
        else:
            # Enough images for every class, however few rows a study asks for.
            number = max(hp["data_instances"], 2 * len(images.SYNTHETIC_CLASSES))
            x, labels = images.synthetic_images(number, seed=hp["seed"])
            y, self.classes = labels.astype(np.int32), images.SYNTHETIC_CLASSES
        print(f"classes: {classes.describe(self.classes, y)}", flush=True)
        self.input_shape = x.shape[1:]
        self._bytes = x.dtype == np.uint8
        train, test = classes.split(y, seed=hp["seed"])
        return (x[train], y[train]), (x[test], y[test])

    def build_model(self, hp: HyperParameters) -> keras.Model:
        """The blocks of ``conv_filters``; bytes are scaled to -1..1 by the model itself."""
        import keras

        layers: list[Any] = [keras.layers.Input(self.input_shape, dtype="uint8" if self._bytes else None)]
        if self._bytes:
            # Around 0: an offset that is large beside the contrast would make the averages of the batch
            # normalisation lag behind the weights, and held-out images be judged by them.
            layers.append(keras.layers.Rescaling(1 / 127.5, offset=-1.0))
        side = min(self.input_shape[:2])
        for filters in as_list(hp.get("conv_filters", (8, 16))):
            layers += [
                keras.layers.Conv2D(filters, hp.get("kernel_size", 3), padding="same", use_bias=False),
                keras.layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM),
                keras.layers.ReLU(),
            ]
            if side >= 2:  # a small image is not pooled away
                layers.append(keras.layers.MaxPooling2D())
                side //= 2
        layers.append(keras.layers.GlobalAveragePooling2D())
        for nodes in hp.get("hidden_layers", ()):
            layers += dense_block(nodes, hp)
        layers.append(keras.layers.Dropout(hp.get("dropout", 0.2)))
        layers.append(keras.layers.Dense(len(self.classes), activation="softmax"))
        return keras.Sequential(layers)

"""A model of one's own on data that NHOP reads; own_model.yaml searches its hyper-parameters."""

import keras

from nhop_models import CustomNN


class Wide(CustomNN):
    """A linear model beside a small network, summed."""

    def build_model(self, hp):
        """Returns the Keras model of one trial."""
        inputs = keras.layers.Input(self.input_shape)
        hidden = keras.layers.Dense(hp["width"], hp["activation"])(inputs)
        outputs = keras.layers.add([keras.layers.Dense(1)(inputs), keras.layers.Dense(1)(hidden)])
        return keras.Model(inputs, outputs)

"""Layers that several of the shipped models have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nhop_models.base import HyperParameters

BATCH_NORM_MOMENTUM = 0.9
"""Trials have hundreds of steps: Keras's 0.99 would judge held-out data by the averages of the start."""


def dense_block(nodes: int, hp: HyperParameters) -> list[Any]:
    """A dense layer with the trial's ``activation``, ``batch_norm`` and ``dropout``, where there are any."""
    import keras

    layers: list[Any] = [keras.layers.Dense(nodes)]
    if hp.get("batch_norm"):
        layers.append(keras.layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM))
    layers.append(keras.layers.Activation(hp.get("activation", "relu")))
    if hp.get("dropout"):
        layers.append(keras.layers.Dropout(hp["dropout"]))
    return layers


def as_list(value: int | Iterable[int]) -> list[int]:
    """A hyper-parameter that is a number or a list of them, as a list."""
    return [value] if isinstance(value, int) else list(value)

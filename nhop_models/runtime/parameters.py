"""Parameters as one flat variable per shard, so that a step costs one pull and one push per PS.

The weights of a model, one behind the other, are cut into shards of equal size, one for each
parameter server (one shard where there is none). A worker pulls the shards, cuts the weights out
of them, and pushes the gradient with respect to each shard. The optimizers work element by element,
so training is the same as with a variable per weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
Array = np.ndarray[Any, Any]


def shard_sizes(size: int, shards: int) -> list[int]:
    """Cuts ``size`` elements into ``shards`` parts that differ by one element at most; none is empty."""
    shards = min(shards, size)
    return [size // shards + (number < size % shards) for number in range(shards)]


class FlatVariables:
    """Flat float32 variables of the current graph that hold ``values``, and what is cut out of them.

    ``devices`` has one device per shard ("" is the default one). Made outside of loops; ``pull``,
    ``cut`` and ``join`` may be called inside.
    """

    def __init__(self, name: str, values: Sequence[Array], devices: Sequence[str]) -> None:
        self._shapes = [value.shape for value in values]
        self._sizes = [value.size for value in values]
        flat = np.concatenate([value.ravel() for value in values]).astype(np.float32)
        self._shards = shard_sizes(flat.size, len(devices))
        self.devices = list(devices[: len(self._shards)])
        self.variables: list[Any] = []
        self.initial_feed: dict[Any, Array] = {}
        begin = 0
        for number, (size, device) in enumerate(zip(self._shards, self.devices, strict=True)):
            with tf.device(device):
                # Fed, not a constant: a graph must stay below 2 GB whatever the model's size.
                initial = v1.placeholder(tf.float32, [size])
                self.variables.append(
                    v1.Variable(initial, trainable=False, name=f"{name}_{number}", use_resource=True)
                )
            self.initial_feed[initial] = flat[begin : begin + size]
            begin += size

    def pull(self, turns: Sequence[Any] = ()) -> list[Any]:
        """The shards as they are now, a tensor each, on the caller's device.

        With ``turns``, tensors on the shards' devices, each is read after the one on its device.
        """
        pulled = []
        for number, (variable, device) in enumerate(zip(self.variables, self.devices, strict=True)):
            with tf.device(device), tf.control_dependencies(turns[number : number + 1]):
                value = variable.read_value()
            pulled.append(tf.identity(value))
        return pulled

    def cut(self, shards: Sequence[Any]) -> list[Any]:
        """The values in their order and shapes, out of the shards (tensors)."""
        flat = shards[0] if len(shards) == 1 else tf.concat(shards, 0)
        pieces = tf.split(flat, self._sizes)
        return [tf.reshape(piece, shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def join(self, tensors: Sequence[Any]) -> list[Any]:
        """The shards that hold ``tensors``, which have the values' order and sizes."""
        flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)
        return tf.split(flat, self._shards) if len(self._shards) > 1 else [flat]

    def arrays(self, shards: Sequence[Array]) -> list[Array]:
        """As ``cut``, for numpy's arrays."""
        pieces = np.split(np.concatenate(shards), np.cumsum(self._sizes)[:-1])
        return [piece.reshape(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

"""Parameters as one flat variable per shard, so that a step costs one pull and one push per PS.

The trainable weights of a model are shared out over the parameter servers by size (one shard
where there is none). A worker pulls each flat vector once, cuts the weights out of it, and pushes
the gradient with respect to the flat vector. The optimizer works element by element, so training
is the same as with a variable per weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
Array = np.ndarray[Any, Any]


def assign_shards(sizes: Sequence[int], shards: int) -> list[list[int]]:
    """Shares out weights over shards, the largest first, each to the emptiest shard.

    Returns the indices of the weights of each shard, in their order; with fewer weights than
    shards, only as many shards as there are weights.
    """
    members: list[list[int]] = [[] for _ in range(min(shards, len(sizes)))]
    loads = [0] * len(members)
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        emptiest = loads.index(min(loads))
        members[emptiest].append(index)
        loads[emptiest] += sizes[index]
    return [sorted(indices) for indices in members]


class FlatParameters:
    """The flat variables of a model's weights in the current graph, and what is cut out of them.

    ``values`` are the initial weights; ``devices`` one device per shard ("" is the default one).
    """

    def __init__(self, values: Sequence[Array], devices: Sequence[str]) -> None:
        self._initial: dict[Any, Array] = {}
        self.variables: list[Any] = []
        self.pulled: list[Any] = []
        weights: dict[int, Any] = {}
        shards = assign_shards([value.size for value in values], len(devices))
        for number, (members, device) in enumerate(zip(shards, devices, strict=False)):
            flat = np.concatenate([values[index].ravel() for index in members]).astype(np.float32)
            with tf.device(device):
                # Fed, not a constant: a graph must stay below 2 GB whatever the model's size.
                initial = v1.placeholder(tf.float32, flat.shape)
                variable = v1.Variable(initial, name=f"parameters_{number}", use_resource=True)
            self._initial[initial] = flat
            pulled = tf.identity(variable)
            pieces = tf.split(pulled, [values[index].size for index in members])
            for index, piece in zip(members, pieces, strict=True):
                weights[index] = tf.reshape(piece, values[index].shape)
            self.variables.append(variable)
            self.pulled.append(pulled)
        self.weights = [weights[index] for index in range(len(values))]

    @property
    def initial_feed(self) -> dict[Any, Array]:
        """What to feed to the variables' initializers."""
        return self._initial

    def apply(self, make_optimizer: Any, loss: Any, devices: Sequence[str]) -> Any:
        """An operation that pushes the gradient of ``loss`` to each shard and applies it there.

        Each shard has an optimizer of its own: a shared one would chain the shards' updates.
        """
        gradients = tf.gradients(loss, self.pulled)
        updates = []
        for variable, gradient, device in zip(self.variables, gradients, devices, strict=False):
            with tf.device(device):
                updates.append(make_optimizer().apply_gradients([(gradient, variable)]))
        return tf.group(*updates)

"""One worker's copy of the model in the graph: from parameters and a batch to loss and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nhop_models.runtime.inputs import LocalVariables, TrainingInput
from nhop_models.runtime.losses import mean_loss
from nhop_models.runtime.optimizers import Update
from nhop_models.runtime.parameters import FlatVariables

v1 = tf.compat.v1


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a step computed: the loss of its batch, and for each shard a gradient.

    ``changes`` are what the step adds to the shards of the layers' state; ``kept`` is the operation
    that keeps what belongs to this worker alone.
    """

    loss: Any
    gradients: Sequence[Any]
    changes: Sequence[Any]
    kept: Any


class Replica:
    """The model in the current graph.

    Weights live in flat variables, and so does the layers' state of floating point (the moving
    averages of batch normalisation): every worker adds what its batches change. State of whole
    numbers (the seeds of dropout) and the weights of frozen layers belong to each worker alone.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Any,
        weights: Sequence[Any],
        state: Sequence[Any],
        devices: Sequence[str],
        local: LocalVariables,
        index: int,
    ) -> None:
        """``weights`` and ``state`` are the values of the model's variables as arrays.

        They must be taken before the graph is entered, where reading them would be an operation.
        """
        self._model = model
        self._loss = loss
        self._index = index
        self.weights = FlatVariables("parameters", weights, devices)
        frozen = _frozen(model)
        self._is_shared = [
            value.dtype == np.float32 and id(variable) not in frozen
            for value, variable in zip(state, model.non_trainable_variables, strict=True)
        ]
        shared = [value for value, is_shared in zip(state, self._is_shared, strict=True) if is_shared]
        self.state = FlatVariables("layer_state", shared, self.weights.devices) if shared else None
        self._own = [
            local.add(_own_seed(value, index))
            for value, is_shared in zip(state, self._is_shared, strict=True)
            if not is_shared
        ]

    @property
    def shared(self) -> list[FlatVariables]:
        """All flat variables of the replica."""
        return [self.weights, *([self.state] if self.state else [])]

    def step(self, inputs: TrainingInput, number: Any, turns: Sequence[Any]) -> Pushed:
        """Pulls, and computes on the batch of step ``number``; may be called in loops.

        ``number`` and ``turns``, one on the device of each shard, are tensors: nothing is read before them.
        """
        pulled = self.weights.pull(turns)
        pulled_state = self.state.pull(turns) if self.state else []
        with tf.control_dependencies([number]):
            own = [variable.read_value() for variable in self._own]
        x, y = inputs.batch(number)
        state = self._merge(self.state.cut(pulled_state) if self.state else [], own)
        outputs, new_state, penalties = self._model.stateless_call(
            self.weights.cut(pulled), state, x, training=True, return_losses=True
        )
        penalties = [tf.cast(penalty, tf.float32) for penalty in penalties]
        loss = tf.add_n([mean_loss(self._loss, y, outputs), *penalties])
        gradients = tf.gradients(loss, pulled, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        new_shared = [new for new, shared in zip(new_state, self._is_shared, strict=True) if shared]
        new_own = [new for new, shared in zip(new_state, self._is_shared, strict=True) if not shared]
        changes: list[Any] = []
        if self.state:
            changes = [new - old for new, old in zip(self.state.join(new_shared), pulled_state, strict=True)]
        kept = [
            variable.assign(new, read_value=False)
            for variable, old, new in zip(self._own, own, new_own, strict=True)
            if new is not old
        ]
        return Pushed(loss, gradients, changes, tf.group(*kept))

    def evaluate(self, x: Any, y: Any) -> Evaluated:
        """Loss and outputs for a batch, with parameters that are fed."""
        weights = [v1.placeholder(tf.float32, v.shape) for v in self.weights.variables]
        state = [v1.placeholder(tf.float32, v.shape) for v in self.state.variables] if self.state else []
        own = [variable.read_value() for variable in self._own]
        merged = self._merge(self.state.cut(state) if self.state else [], own)
        outputs, _ = self._model.stateless_call(self.weights.cut(weights), merged, x, training=False)
        return Evaluated(mean_loss(self._loss, y, outputs), outputs, [*weights, *state])

    def apply(self, updates: Sequence[Update], pushed: Pushed) -> list[Any]:
        """The operations that apply gradients and changes, one on the device of each shard."""
        applied = []
        for number, device in enumerate(self.weights.devices):
            with tf.device(device):
                operations = [updates[number].apply(pushed.gradients[number])]
                if self.state and number < len(self.state.variables):
                    change = pushed.changes[number]
                    operations.append(self.state.variables[number].assign_add(change, read_value=False))
                applied.append(tf.group(*operations))
        return applied

    def turns(self) -> list[Any]:
        """A tensor on the device of each shard, to be handed from step to step."""
        turns = []
        for device in self.weights.devices:
            with tf.device(device):
                turns.append(tf.constant(0))
        return turns

    def next_turns(self, turns: Sequence[Any], done: Sequence[Any]) -> list[Any]:
        """The turns after the operations ``done``, one on the device of each shard."""
        after = []
        for turn, operation, device in zip(turns, done, self.weights.devices, strict=True):
            with tf.device(device), tf.control_dependencies([operation]):
                after.append(tf.identity(turn))
        return after

    def store(self, pulled: Sequence[Any]) -> None:
        """Gives the Keras model the values of all shards, which are arrays; outside of the graph."""
        number = len(self.weights.variables)
        values = [(self._model.trainable_variables, self.weights.arrays(pulled[:number]))]
        if self.state:
            state = zip(self._model.non_trainable_variables, self._is_shared, strict=True)
            shared = [variable for variable, is_shared in state if is_shared]
            values.append((shared, self.state.arrays(pulled[number:])))
        for variables, arrays in values:
            for variable, array in zip(variables, arrays, strict=True):
                variable.assign(array)

    def _merge(self, shared: Sequence[Any], own: Sequence[Any]) -> list[Any]:
        parts = (iter(own), iter(shared))
        return [next(parts[is_shared]) for is_shared in self._is_shared]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """``loss`` and ``outputs`` of a batch, once ``parameters`` (placeholders) are fed with all shards."""

    loss: Any
    outputs: Any
    parameters: Sequence[Any]


def _frozen(layer: Any) -> set[int]:
    """The ids of the weights of all layers that are not trained: they stay what they are."""
    found: set[int] = set()
    for inner in getattr(layer, "layers", ()):
        found |= _frozen(inner) if inner.trainable else {id(variable) for variable in inner.weights}
    return found


def _own_seed(value: Any, index: int) -> Any:
    """State of whole numbers as worker ``index`` has it: workers draw different random numbers."""
    if value.dtype.kind in "iu" and value.shape == (2,):  # a keras.random.SeedGenerator's
        return value + np.array([index, 0], value.dtype)
    return value

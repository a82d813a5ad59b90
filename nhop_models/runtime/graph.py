"""The whole graph of a worker's training: made once, run many times.

A call makes many steps where they are short: the loop over them is in the graph, and ends early
where the training does (budget, tolerance, a loss that is no number).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nhop_models.contract import TaskId, TaskSpec
from nhop_models.runtime.data import Data
from nhop_models.runtime.inputs import (
    LocalVariables,
    Prepared,
    Share,
    TestInput,
    prepare_test,
    prepare_training,
    test_input,
    training_input,
    unbatched,
)
from nhop_models.runtime.loops import loop
from nhop_models.runtime.optimizers import Update
from nhop_models.runtime.replica import Evaluated, Replica
from nhop_models.runtime.synchronous import SynchronousGraph

v1 = tf.compat.v1
_NO_LOSS = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Steps:
    """Placeholders and results of a call that makes steps.

    Fed: ``limit``, the most steps; ``first``, the worker's own number of the first one (asynchronous
    batches are drawn by it); ``after``, the global step as the worker knows it. Results: steps made,
    loss of the last one, the smallest loss, the global step, and how many updates of others came
    between two of this worker's, at most and in all.
    """

    limit: Any
    first: Any
    after: Any
    results: Any


@dataclass(frozen=True, slots=True)
class Lead:
    """What the chief of a synchronous training runs beside its steps.

    ``watched``: the step that is under way, and the last one that each worker has pushed. ``adjusted`` is
    fed with ``adjustment``: notices needed, who takes part and who does so again (0 and 1 for each
    worker), notices that wake a wait.
    """

    watched: Any
    adjusted: Any
    adjustment: Any


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What the chief evaluates: held-out samples, loss and outputs for them, and the shards as they are."""

    inputs: TestInput
    evaluated: Evaluated
    pulled: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that lives in variables of the cluster, by name: ``values``, and ``restore``, which is fed."""

    values: Mapping[str, Any]
    restore: Any
    placeholders: Mapping[str, Any]

    def feed(self, values: Mapping[str, Any]) -> dict[Any, Any]:
        """What to feed to ``restore``; KeyError or ValueError where the values are those of another model."""
        feed = {}
        for name, placeholder in self.placeholders.items():
            if tuple(values[name].shape) != tuple(placeholder.shape):
                raise ValueError(f"{name} has the shape {values[name].shape}, not {placeholder.shape}")
            feed[placeholder] = values[name]
        return feed


class TrainingGraph:
    """The graph of one worker; ``hp`` are the trial's hyper-parameters."""

    def __init__(
        self,
        spec: TaskSpec,
        task: TaskId,
        hp: Mapping[str, Any],
        loss: Any,
        keras_model: keras.Model,
        data: Data,
    ) -> None:
        # The values must be taken before the graph is entered, where reading them would be an operation.
        weights = [np.asarray(variable) for variable in keras_model.trainable_variables]
        state = [np.asarray(variable) for variable in keras_model.non_trainable_variables]
        self._spec = spec
        self._chief = task.is_chief
        self._workers = max(len(spec.workers), 1)
        self._together = spec.sync_replicas and bool(spec.ps)
        self.synchronous: SynchronousGraph | None = None
        self.lead: Lead | None = None
        self.held_out: HeldOut | None = None
        self.snapshot: Snapshot | None = None
        rank = _input_rank(keras_model)
        data = Data(unbatched(data.train, rank, "train"), unbatched(data.test, rank, "test"))
        share = self._share(hp, data, task)
        train, test = prepare_training(data.train, share), prepare_test(data.test) if self._chief else None
        devices = [f"/job:ps/task:{i}/cpu:0" for i in range(len(spec.ps))] or [""]
        self._here = f"/job:worker/task:{task.index}" if spec.ps else ""
        self._local = LocalVariables()
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.device(self._here):
            v1.set_random_seed(_seed(spec.seed, task.index))
            self.replica = Replica(keras_model, loss, weights, state, devices, self._local, task.index)
            with tf.device(f"{self._here}/cpu:0"):
                self._inputs = training_input(train, share, self._local)
            self._updates = []
            for number, variable in enumerate(self.replica.weights.variables):
                with tf.device(self.replica.weights.devices[number]):
                    self._updates.append(Update(hp["train_optimizer"], hp, variable, number))
            with tf.device(devices[0]):
                self.global_step = v1.Variable(
                    0, dtype=tf.int64, trainable=False, name="global_step", use_resource=True
                )
                self._initialised = v1.Variable(False, trainable=False, name="initialised", use_resource=True)
            if self._together:
                self.synchronous = SynchronousGraph(
                    self.replica,
                    self._updates,
                    self._inputs,
                    self.global_step,
                    task.index,
                    self._workers,
                    spec.sync_backup_workers,
                    self._local,
                )
                self.steps = self._steps(self.synchronous.lead if self._chief else self.synchronous.follow)
                if self._chief:
                    self.lead = self._lead(self.synchronous)
            else:
                self.steps = self._steps(self._step_alone)
            if test is not None:
                self.held_out = self._held_out(test)
            self._finish()
            if self._chief and spec.checkpoint_every:
                self.snapshot = self._snapshot()
        self.graph.finalize()

    def _share(self, hp: Mapping[str, Any], data: Data, task: TaskId) -> Share:
        batch = int(hp["batch_size"])
        rows = getattr(data.train, "rows", batch)
        seed = _seed(self._spec.seed, 0 if self._together else task.index)
        return Share(min(batch, rows), task.index, self._workers, self._together, seed)

    def _steps(self, step: Callable[[Any, Any], tuple[Any, Any, Any]]) -> Steps:
        """A loop over ``step``.

        It takes the number of a step and a replica's turns, and gives its loss, the next number and turns.
        """
        limit, number, known = (v1.placeholder(dtype, []) for dtype in (tf.int32, tf.int64, tf.int64))
        together = self.synchronous is not None
        tolerance = self._spec.train_tolerance if self._chief else 0.0
        enough = tf.constant(tolerance or -_NO_LOSS, tf.float32)

        def going_on(made: Any, loss: Any, smallest: Any, after: Any, *others: Any) -> Any:
            going = tf.logical_and(made < limit, after < self._spec.train_epoch)
            return tf.logical_and(going, tf.logical_and(loss > enough, tf.math.is_finite(loss)))

        def body(made: Any, loss: Any, smallest: Any, after: Any, most: Any, total: Any, *turns: Any) -> Any:
            loss, now, turns = step(after if together else number + tf.cast(made, tf.int64), turns)
            stale = now - after - 1
            with tf.control_dependencies([now]):
                made = made + 1
            return made, loss, tf.minimum(smallest, loss), now, tf.maximum(most, stale), total + stale, *turns

        nothing = tf.constant(0, tf.int64)
        none = tf.constant(_NO_LOSS)
        first = [tf.constant(0), none, none, known, nothing, nothing]
        results = loop(going_on, body, [*first, *self.replica.turns()])
        return Steps(limit, number, known, results[: len(first)])

    def _lead(self, synchronous: SynchronousGraph) -> Lead:
        needed, woken = v1.placeholder(tf.int32, []), v1.placeholder(tf.int32, [])
        present, returned = (v1.placeholder(tf.int32, [self._workers]) for _ in range(2))
        adjusted = synchronous.adjust(needed, present, returned, woken)
        return Lead(synchronous.watch(), adjusted, [needed, present, returned, woken])

    def _step_alone(self, number: Any, turns: Any) -> tuple[Any, Any, Any]:
        pushed = self.replica.step(self._inputs, number, turns)
        applied = self.replica.apply(self._updates, pushed)
        # Counted where the first shard is, and not after those elsewhere: each has its next turn after
        # its own update.
        with tf.control_dependencies([applied[0]]), tf.device(self.replica.weights.devices[0]):
            after = self.global_step.assign_add(1, read_value=True)
        with tf.control_dependencies([pushed.kept]):
            loss = tf.identity(pushed.loss)
        return loss, tf.identity(after), self.replica.next_turns(turns, applied)

    # --- the rest ---------------------------------------------------------------------------

    def _finish(self) -> None:
        self.step_now = self.global_step.read_value()
        shared = [v for v in v1.global_variables() if v is not self._initialised]
        self.initializer = v1.variables_initializer(shared)
        self.initial_feed = {
            tensor: value for flat in self.replica.shared for tensor, value in flat.initial_feed.items()
        }
        self.announce = self._initialised.initializer
        self.chief_is_done = self._initialised.is_initialized()
        self.local_initializer = self._local.initializer
        self.local_feed = self._local.feed

    def _held_out(self, test: Prepared) -> HeldOut:
        with tf.device(f"{self._here}/cpu:0"):
            inputs = test_input(test, self._local)
        pulled = [tensor for flat in self.replica.shared for tensor in flat.pull()]
        return HeldOut(inputs, self.replica.evaluate(inputs.x, inputs.y), pulled)

    def _snapshot(self) -> Snapshot:
        saved = [v for flat in self.replica.shared for v in flat.variables]
        saved += [slot for update in self._updates for slot in update.slots]
        named = {v.op.name: v for v in [*saved, self.global_step]}
        placeholders = {name: v1.placeholder(v.dtype, v.shape) for name, v in named.items()}
        restores = []
        for name, variable in named.items():
            with tf.device(variable.device):
                restores.append(variable.assign(placeholders[name], read_value=False))
        if self.synchronous is not None:
            restores.append(self.synchronous.set_step(placeholders[self.global_step.op.name]))
        values = {name: variable.read_value() for name, variable in named.items()}
        return Snapshot(values, tf.group(*restores), placeholders)

    def forget_initial_values(self) -> None:
        """Lets go of the data, which is in variables once they are initialised."""
        self.initial_feed, self.local_feed = {}, {}
        self._local.feed.clear()
        for flat in self.replica.shared:
            flat.initial_feed.clear()


def _input_rank(model: keras.Model) -> int | None:
    """Dimensions of the model's first input, batch included; None where it does not say."""
    inputs = getattr(model, "inputs", None)
    return len(inputs[0].shape) if inputs else None


def _seed(seed: int, index: int) -> int:
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0]) // 2

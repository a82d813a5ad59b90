"""Training in TensorFlow graph mode: one process, or between-graph replication over PS and workers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from nhop_models.base import HyperParameters, NNModel
from nhop_models.contract import FailureKind
from nhop_models.runtime import cluster
from nhop_models.runtime.data import Data
from nhop_models.runtime.failures import TaskError
from nhop_models.runtime.parameters import FlatParameters

if TYPE_CHECKING:
    from nhop_models.runtime.task import Task

v1 = tf.compat.v1
_CHIEF_POLL_SECONDS = 0.01
_EVALUATION_ROWS = 8192

OPTIMIZERS: dict[str, Callable[[float], Any]] = {
    "Adam": v1.train.AdamOptimizer,
    "sgd": v1.train.GradientDescentOptimizer,
    "Adagrad": v1.train.AdagradOptimizer,
}


class Training:
    """One worker's part in the training of a trial.

    ``step()`` makes one step, ``ended`` says when to stop making them. Only the chief ends the
    training: other workers pause when the step budget is used up.
    """

    def __init__(
        self,
        task: Task,
        hp: HyperParameters,
        model: NNModel,
        keras_model: keras.Model,
        data: Data,
        target: str,
    ) -> None:
        self._spec = task.spec
        self._task = task
        self._chief = task.identity.is_chief
        self._ended = False
        reporter = task.reporter
        # The values must be taken before the graph is entered, where reading them would be an operation.
        weights = [np.asarray(variable) for variable in keras_model.trainable_variables]
        state = [np.asarray(variable) for variable in keras_model.non_trainable_variables]
        with reporter.phase("graph"):
            graph = tf.Graph()
            with graph.as_default():
                self._build(hp, model, keras_model, weights, state, data)
            graph.finalize()
        with reporter.phase("session"):
            if self._spec.ps:
                cluster.wait_for_parameter_servers(self._spec)
            self._session = v1.Session(
                target, graph=graph, config=cluster.session_config(self._spec, task.identity)
            )
            self._session.run(self._local_initializer, self._local_feed)
            if self._chief:
                self._session.run(self._initializer, self._parameters.initial_feed)
                self._session.run(self._announce)
            else:
                self._wait_for_chief()
            self._step = self._session.make_callable([self._loss, self._global_step_after])
        reporter.ready()

    @property
    def ended(self) -> bool:
        """Whether the training is over for this worker: by budget, tolerance, or because it is told so."""
        return self._ended or self._task.stop.is_set()

    def step(self) -> float:
        """Makes one step and returns the training loss of its batch.

        Raises TaskError (DIVERGED) where the loss is not finite.
        """
        values = self._step()
        loss, step = float(values[0]), int(values[1])
        if not math.isfinite(loss):
            self._task.reporter.finish()
            raise TaskError(
                FailureKind.DIVERGED,
                f"the training loss became {loss} at global step {step} of {self._spec.train_epoch}",
            )
        self._task.reporter.report(step, loss)
        tolerance = self._spec.train_tolerance
        converged = self._chief and loss <= tolerance and tolerance > 0
        self._ended = converged or step >= self._spec.train_epoch
        return loss

    def evaluate(self) -> float:
        """The loss on the held-out data, over all its samples, with the parameters as they are now."""
        # Other workers may still push: one set of parameters is taken and used for every batch.
        now = self._session.run(self._parameters.pulled)
        feed = dict(zip(self._parameters.pulled, now, strict=True))
        total = 0.0
        for first in range(0, self._test_rows, _EVALUATION_ROWS):
            rows = min(_EVALUATION_ROWS, self._test_rows - first)
            total += rows * self._session.run(self._test_loss, {**feed, self._first: first, self._rows: rows})
        loss = float(total / self._test_rows)
        if not math.isfinite(loss):
            raise TaskError(FailureKind.DIVERGED, f"the loss on the held-out data is {loss}")
        return loss

    def _build(
        self,
        hp: HyperParameters,
        model: NNModel,
        keras_model: keras.Model,
        weights: list[Any],
        state: list[Any],
        data: Data,
    ) -> None:
        spec, task = self._spec, self._task.identity
        v1.set_random_seed(int(np.random.SeedSequence([spec.seed, task.index]).generate_state(1)[0]) // 2)
        devices = [f"/job:ps/task:{i}/cpu:0" for i in range(len(spec.ps))] or [""]
        here = f"/job:worker/task:{task.index}" if spec.ps else ""
        loss_function = keras.losses.get(model.loss)
        with tf.device(here):
            self._parameters = FlatParameters(weights, devices)
            local = _LocalVariables()
            layer_state = [local.add(value) for value in state]
            x, y = (local.add(data.x_train), local.add(data.y_train))
            batch = min(hp["batch_size"], len(data.x_train))
            rows = tf.random.uniform([batch], 0, len(data.x_train), tf.int32)
            outputs, new_state, penalties = keras_model.stateless_call(
                self._parameters.weights,
                layer_state,
                tf.gather(x, rows),
                training=True,
                return_losses=True,
            )
            self._loss = tf.add_n([tf.reduce_mean(loss_function(tf.gather(y, rows), outputs)), *penalties])
            keep_state = [v1.assign(old, new) for old, new in zip(layer_state, new_state, strict=True)]

            x_test, y_test = (local.add(data.x_test), local.add(data.y_test))
            self._test_rows = len(data.x_test)
            self._first, self._rows = v1.placeholder(tf.int32, []), v1.placeholder(tf.int32, [])
            test_rows = tf.range(self._first, self._first + self._rows)
            test_outputs, _ = keras_model.stateless_call(
                self._parameters.weights, layer_state, tf.gather(x_test, test_rows), training=False
            )
            self._test_loss = tf.reduce_mean(loss_function(tf.gather(y_test, test_rows), test_outputs))
        with tf.device(devices[0]):
            global_step = v1.Variable(0, dtype=tf.int64, name="global_step", use_resource=True)
            self._initialised = v1.Variable(False, name="initialised", use_resource=True)
        update = self._parameters.apply(
            lambda: OPTIMIZERS[hp["train_optimizer"]](hp["learning_rate"]), self._loss, devices
        )
        with tf.control_dependencies([update, *keep_state]), tf.device(devices[0]):
            self._global_step_after = tf.identity(global_step.assign_add(1))
        shared = [v for v in v1.global_variables() if v is not self._initialised]
        self._initializer = v1.variables_initializer(shared)
        self._announce = self._initialised.initializer
        self._chief_is_done = self._initialised.is_initialized()
        self._local_initializer = local.initializer
        self._local_feed = local.feed

    def _wait_for_chief(self) -> None:
        deadline = time.monotonic() + self._spec.start_limit
        while not self._session.run(self._chief_is_done):
            if time.monotonic() > deadline:
                raise TaskError(
                    FailureKind.START_TIMEOUT,
                    f"the chief has not initialised the parameters within {self._spec.start_limit:g} s",
                )
            if self._task.stop.wait(_CHIEF_POLL_SECONDS):
                return


class _LocalVariables:
    """Variables of this worker alone, filled from arrays by feeding, so that graphs stay small."""

    def __init__(self) -> None:
        self.feed: dict[Any, Any] = {}
        self._initializers: list[Any] = []

    def add(self, value: Any) -> Any:
        initial = v1.placeholder(value.dtype, value.shape)
        variable = v1.Variable(
            initial, trainable=False, collections=[v1.GraphKeys.LOCAL_VARIABLES], use_resource=True
        )
        self.feed[initial] = value
        self._initializers.append(variable.initializer)
        return variable

    @property
    def initializer(self) -> Any:
        return tf.group(*self._initializers)

"""The graph's part of synchronous training.

A step: every worker pulls, computes, and pushes to an accumulator beside each shard, which refuses
gradients of earlier steps; then it leaves a notice for the chief. The chief waits for the notices that
it needs, applies the mean of what was pushed, begins the next step, and gives a token with its number
to each worker that takes part. Notices and tokens are queues on ``ps/0``, and so are the numbers that say
how many notices are needed and who takes part: whoever waits is woken by changing these, never by
cutting it off, so nothing is left half done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nhop_models.runtime.inputs import LocalVariables, TrainingInput
from nhop_models.runtime.optimizers import Update
from nhop_models.runtime.replica import Pushed, Replica

v1 = tf.compat.v1
ops = tf.raw_ops


class SynchronousGraph:
    """One worker's side, in the current graph; ``index`` 0 is the chief."""

    def __init__(
        self,
        replica: Replica,
        updates: Sequence[Update],
        inputs: TrainingInput,
        global_step: Any,
        index: int,
        workers: int,
        backup: int,
        local: LocalVariables,
    ) -> None:
        self._replica, self._updates, self._inputs = replica, updates, inputs
        self._step, self._index = global_step, index
        self._last = local.add(np.array(-1, np.int64))  # the last step that this worker pushed
        self._first = replica.weights.devices[0]
        self._sums = [
            [_accumulator(*both) for both in zip(flat.variables, flat.devices, strict=True)]
            for flat in replica.shared
        ]
        with tf.device(self._first):
            self._pushed = _shared(tf.fill([workers], tf.constant(-1, tf.int64)), "pushed")
            self._needed = _shared(tf.constant(max(workers - backup, 1) - 1), "needed")
            self._present = _shared(tf.ones([workers], tf.int32), "present")
            self._notices = _queue(tf.int32, "notices")
            self._tokens = {worker: _queue(tf.int64, f"tokens_{worker}") for worker in range(1, workers)}

    def lead(self, number: Any, turns: Any) -> tuple[Any, Any, Any]:
        """The chief's part of step ``number``: the loss of its batch, the number of the next step, and turns.

        May be called in loops, as ``follow``.
        """
        pushed = self._replica.step(self._inputs, number, turns)
        added = self._push(pushed, number)
        with tf.control_dependencies(added), tf.device(self._first):
            noted = _raise(self._pushed, self._index, number)
            with tf.control_dependencies([noted]):
                arrived = self._notices.dequeue_many(self._needed.read_value())
        with tf.control_dependencies([arrived]):
            mean = self._take()
        with tf.control_dependencies(self._replica.apply(self._updates, mean)), tf.device(self._first):
            # What came beyond the need must not count for the next step.
            emptied = self._notices.dequeue_many(self._notices.size())
            with tf.control_dependencies([emptied]):
                after = self._step.assign_add(1, read_value=True)
            with tf.control_dependencies([after]):
                present = self._present.read_value()
            given = [self._give(queue, present[worker], after) for worker, queue in self._tokens.items()]
            with tf.control_dependencies(given):
                after = tf.identity(after)
        return self._loss(pushed), tf.identity(after), self._next_turns(turns, added)

    def follow(self, number: Any, turns: Any) -> tuple[Any, Any, Any]:
        """Another worker's part of step ``number``: the loss, the next step that it is to do, and turns."""
        pushed = self._replica.step(self._inputs, number, turns)
        with tf.control_dependencies([number]):
            # Called twice to a step, a worker pushes once: gradients of step -1 are refused.
            label = tf.where(number > self._last.read_value(), number, -1)
        with tf.control_dependencies([label]):
            known = self._last.assign(number, read_value=False)
        added = self._push(pushed, label)
        # What stays on this worker is waited for at the end: here it would have to be told to ps/0.
        with tf.control_dependencies(added), tf.device(self._first):
            noted = _raise(self._pushed, self._index, label)
            with tf.control_dependencies([noted]):
                # A notice of a step that is over would count for the next one.
                in_time = tf.cast(tf.equal(self._step.read_value(), label), tf.int32)
                noticed = self._notices.enqueue_many([tf.fill([in_time], self._index)])
            with tf.control_dependencies([noticed]):
                token = self._tokens[self._index].dequeue()
            with tf.control_dependencies([token]):
                # The token may have lain there for some steps: it is a call, the number is read.
                after = tf.maximum(token, self._step.read_value())
        return self._loss(pushed, known), tf.identity(after), self._next_turns(turns, added)

    def watch(self) -> Any:
        """The step that is under way, and the last one that each worker has pushed."""
        with tf.device(self._first):
            return self._step.read_value(), self._pushed.read_value()

    def adjust(self, needed: Any, present: Any, returned: Any, woken: Any) -> Any:
        """Sets how many notices are needed and who takes part.

        Those who have ``returned`` (0 and 1, as ``present``) are called to the step that is under way,
        where they have not pushed for it; ``woken`` notices more let a wait end.
        """
        with tf.device(self._first):
            changed = [
                self._needed.assign(needed, read_value=False),
                self._present.assign(present, read_value=False),
            ]
            with tf.control_dependencies(changed):
                now = self._step.read_value()
                behind = tf.cast(self._pushed.read_value() < now, tf.int32)
                called = [
                    self._give(queue, returned[worker] * behind[worker], now)
                    for worker, queue in self._tokens.items()
                ]
            with tf.control_dependencies(called):
                return self._notices.enqueue_many([tf.fill([woken], 0)])

    def set_step(self, step: Any) -> Any:
        """Makes the accumulators refuse gradients of steps before ``step``, after a restore."""
        set_steps = []
        for flat, sums in zip(self._replica.shared, self._sums, strict=True):
            for handle, device in zip(sums, flat.devices, strict=True):
                with tf.device(device):
                    set_steps.append(
                        ops.ResourceAccumulatorSetGlobalStep(handle=handle, new_global_step=step)
                    )
        return tf.group(*set_steps)

    def _push(self, pushed: Pushed, number: Any) -> list[Any]:
        added = []
        parts = (pushed.gradients, pushed.changes)
        for flat, sums, values in zip(self._replica.shared, self._sums, parts, strict=False):
            for handle, value, device in zip(sums, values, flat.devices, strict=True):
                with tf.device(device):
                    added.append(
                        ops.ResourceAccumulatorApplyGradient(handle=handle, local_step=number, gradient=value)
                    )
        return added

    @staticmethod
    def _loss(pushed: Pushed, *others: Any) -> Any:
        with tf.control_dependencies([pushed.kept, *others]):
            return tf.identity(pushed.loss)

    def _next_turns(self, turns: Any, added: Sequence[Any]) -> list[Any]:
        """The next step is known only when this one is over: its turns need no more than to be told apart."""
        return self._replica.next_turns(turns, added[: len(turns)])

    def _take(self) -> Pushed:
        taken: list[list[Any]] = [[], []]
        for part, flat, sums in zip(taken, self._replica.shared, self._sums, strict=False):
            for handle, device in zip(sums, flat.devices, strict=True):
                with tf.device(device):
                    part.append(
                        ops.ResourceAccumulatorTakeGradient(handle=handle, num_required=1, dtype=tf.float32)
                    )
        return Pushed(None, taken[0], taken[1], None)

    @staticmethod
    def _give(queue: Any, present: Any, number: Any) -> Any:
        """A token for a worker that takes part and has none."""
        wanted = present * tf.cast(tf.equal(queue.size(), 0), tf.int32)
        return queue.enqueue_many([tf.fill([wanted], number)])


def _shared(initial: Any, name: str) -> Any:
    return v1.Variable(initial, trainable=False, name=name, use_resource=True)


def _raise(vector: Any, index: int, value: Any) -> Any:
    return ops.ResourceScatterMax(resource=vector.handle, indices=[index], updates=tf.reshape(value, [1]))


def _queue(dtype: Any, name: str) -> Any:
    return tf.queue.FIFOQueue(-1, [dtype], [[]], shared_name=name, name=name)


def _accumulator(variable: Any, device: str) -> Any:
    with tf.device(device):
        name = f"sum_of_{variable.op.name}"
        return ops.ResourceConditionalAccumulator(
            dtype=tf.float32, shape=variable.shape, shared_name=name, name=name
        )

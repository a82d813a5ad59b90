"""The baseline of steps: a plain loop of ``session.run``, with a variable for each weight and bias.

A function that NHOP runs as it would a user's, so that nothing but the loop differs.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.original import per_variable_loss
from nhop_models.datasets import split_and_standardise, synthetic


def train(hp: Any, context: Any) -> dict[str, float]:
    """Trains the standard trial on ``context``'s cluster with one worker; its rate is a metric."""
    import tensorflow as tf

    v1 = tf.compat.v1
    data = synthetic(hp["data_instances"], hp["data_features"], seed=1)
    (x_train, y_train), _ = split_and_standardise(*data, seed=1)
    make = {
        "Adam": v1.train.AdamOptimizer,
        "sgd": v1.train.GradientDescentOptimizer,
        "Adagrad": v1.train.AdagradOptimizer,
    }
    with tf.Graph().as_default():
        setter = v1.train.replica_device_setter(worker_device="/job:worker/task:0", cluster=context.cluster)
        with v1.device(setter):
            x, y = (v1.Variable(part, trainable=False, collections=["data"]) for part in (x_train, y_train))
            rows = tf.random.uniform([hp["batch_size"]], 0, len(x_train), tf.int32)
            loss, step = per_variable_loss(tf.gather(x, rows), tf.gather(y, rows), hp)
            update = make[hp["train_optimizer"]](hp["learning_rate"]).minimize(loss, global_step=step)
            start = tf.group(v1.global_variables_initializer(), v1.variables_initializer([x, y]))
        with v1.Session(context.server.target) as session:
            session.run(start)
            last = session.run([update, loss])[1]
            begin = time.monotonic()
            for _ in range(context.train_epoch):
                last = session.run([update, loss])[1]
            seconds = time.monotonic() - begin
    context.report(context.train_epoch, loss=float(last))
    return {"val_loss": float(last), "steps_per_second": context.train_epoch / seconds}

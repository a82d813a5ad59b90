"""A training loop of your own on a TensorFlow cluster: a plain function instead of a model class.

    nhop-coordinator examples/own_loop.yaml

Every worker calls ``train``. The parameter servers run already; ``context`` has the cluster and this worker's
server. The chief (worker 0) makes the variables, the others wait for it; its result is the trial's.
"""

import time

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1


def data(seed):
    """A plane in three dimensions."""
    x = np.random.default_rng(seed).normal(size=(1000, 3)).astype("float32")
    return x, (x @ [[1.0], [-2.0], [0.5]]).astype("float32")


def train(hp, context):
    """Asynchronous gradient descent; returns the loss on the held-out rows."""
    x, y = data(hp["seed"])
    here = f"/job:worker/task:{context.task_index}"
    with tf.Graph().as_default():
        with tf.device("/job:ps/task:0"):
            weights = v1.Variable(tf.zeros([3, 1]), use_resource=True, name="weights")
            step = v1.Variable(0, use_resource=True, name="step")
            ready = weights.is_initialized()
        with tf.device(here):
            rows = tf.random.uniform([hp["batch_size"]], 0, 800, tf.int32)
            loss = tf.reduce_mean(tf.square(tf.gather(x, rows) @ weights - tf.gather(y, rows)))
            update = v1.train.GradientDescentOptimizer(hp["learning_rate"]).minimize(loss)
            with tf.control_dependencies([update]):
                after = step.assign_add(1)
            held_out = tf.reduce_mean(tf.square(x[800:] @ weights - y[800:]))
        # Without filters a session would wait for the other workers, and fail with them.
        filters = v1.ConfigProto(device_filters=["/job:ps", here])
        with v1.Session(context.server.target, config=filters) as session:
            if context.is_chief:
                session.run(step.initializer)
                session.run(weights.initializer)
            while not session.run(ready):
                time.sleep(0.01)
            now = 0
            while now < context.train_epoch and not context.should_stop():
                batch_loss, now = session.run([loss, after])
                context.report(now, loss=float(batch_loss))
            return {"val_loss": float(session.run(held_out))}

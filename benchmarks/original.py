"""The baseline: a trial the way the original runs it.

A fresh interpreter for every process, a variable per layer under ``replica_device_setter``, a
``MonitoredTrainingSession``, a feed for every step; the PS are ended with SIGUSR1 once the workers
are through. Written from the paper's section II, for measuring only.

    python -m benchmarks.original --ps 1 --workers 1 --trials 3
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from typing import Any

from benchmarks import standard

HUNG_SECONDS = 120


def free_port() -> int:
    while True:
        port = random.randrange(32000, 32700)
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def seconds_of_trial(trial: int, ps: int, workers: int) -> float:
    """Runs one trial in fresh processes; returns its wall time in seconds.

    This way of training can hang at its end, when a worker looks for a session while the others
    leave: infinity after HUNG_SECONDS.
    """
    cluster = {
        "ps": [f"127.0.0.1:{free_port()}" for _ in range(ps)],
        "worker": [f"127.0.0.1:{free_port()}" for _ in range(workers)],
    }
    start = time.monotonic()
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
    processes: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    for role, count in (("ps", ps), ("worker", workers)):
        for index in range(count):
            task = json.dumps({"role": role, "index": index, "trial": trial, "cluster": cluster})
            command = [sys.executable, "-m", "benchmarks.original", "--task", task]
            processes[role, index] = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        for index in range(workers):
            if processes["worker", index].wait(timeout=HUNG_SECONDS):
                raise RuntimeError(f"worker {index} of the baseline failed")
    except subprocess.TimeoutExpired:
        return math.inf
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGUSR1)
            process.wait(timeout=30)
    return time.monotonic() - start


def run_task(role: str, index: int, trial: int, cluster: dict[str, list[str]]) -> None:
    import numpy as np
    import tensorflow as tf

    from nhop_models.datasets import split_and_standardise, synthetic

    v1 = tf.compat.v1
    v1.disable_eager_execution()
    server = tf.distribute.Server(cluster, job_name=role, task_index=index)
    if role == "ps":
        signal.pause()
    hp = standard.parameters(trial)
    data = synthetic(standard.SETTINGS["data_instances"], standard.SETTINGS["data_features"], seed=1)
    (x_train, y_train), _ = split_and_standardise(*data, seed=1)
    with v1.device(
        v1.train.replica_device_setter(worker_device=f"/job:worker/task:{index}", cluster=cluster)
    ):
        x, y = v1.placeholder(tf.float32, [None, x_train.shape[1]]), v1.placeholder(tf.float32, [None, 1])
        loss, step = per_variable_loss(x, y, hp)
        make = {
            "Adam": v1.train.AdamOptimizer,
            "sgd": v1.train.GradientDescentOptimizer,
            "Adagrad": v1.train.AdagradOptimizer,
        }
        train = make[hp["train_optimizer"]](hp["learning_rate"]).minimize(loss, global_step=step)
    hooks = [v1.train.StopAtStepHook(last_step=standard.TRAIN_EPOCH)]
    rng = np.random.default_rng(index)
    with v1.train.MonitoredTrainingSession(master=server.target, is_chief=index == 0, hooks=hooks) as session:
        while not session.should_stop():
            rows = rng.integers(0, len(x_train), hp["batch_size"])
            session.run([train, loss], {x: x_train[rows], y: y_train[rows]})


def per_variable_loss(x: Any, y: Any, hp: dict[str, Any]) -> tuple[Any, Any]:
    """The regressor with a weight and a bias variable per layer; returns its loss and a global step."""
    import tensorflow as tf

    v1 = tf.compat.v1
    activation = {"relu": tf.nn.relu, "tanh": tf.nn.tanh}[hp["activation"]]
    last = x
    for number, nodes in enumerate([*hp["hidden_layers"], 1]):
        weight = v1.get_variable(f"w{number}", [last.shape[1], nodes])
        bias = v1.get_variable(f"b{number}", [nodes], initializer=v1.zeros_initializer())
        last = tf.matmul(last, weight) + bias
        if number < len(hp["hidden_layers"]):
            last = activation(last)
    return tf.reduce_mean(tf.square(last - y)), v1.train.get_or_create_global_step()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ps", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--task", type=json.loads)
    arguments = parser.parse_args()
    if arguments.task:
        # The default action of SIGUSR1 ends the process: enough for a baseline.
        run_task(**arguments.task)
        sys.stdout.flush()
        os._exit(0)
    for trial in range(arguments.trials):
        print(f"{seconds_of_trial(trial, arguments.ps, arguments.workers):.1f} s", flush=True)


if __name__ == "__main__":
    main()

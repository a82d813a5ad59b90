"""The TensorFlow server of a task, its devices and threads, and its peers."""

from __future__ import annotations

import os
import socket
import time

import tensorflow as tf

from nhop_models.contract import GPU_SHARE_VARIABLE, FailureKind, TaskId, TaskRole, TaskSpec
from nhop_models.runtime.failures import TaskError

_PEER_POLL_SECONDS = 0.01
_OF_A_SHARE = 0.9
"""The part of a share of a GPU that TensorFlow's allocator may have: CUDA itself and its libraries need
some hundred MB for each process, outside of it."""


def set_up(spec: TaskSpec, task: TaskId) -> None:
    """Gives this process its threads and its GPU memory; to be called before anything makes a device.

    Whatever makes the first device of a process, eager code of a model included, settles the size of
    its pool of threads and how its memory on a GPU is allotted.
    """
    tf.config.threading.set_intra_op_parallelism_threads(spec.threads)
    tf.config.threading.set_inter_op_parallelism_threads(spec.threads)
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        config = session_config(spec, task)
        config.ClearField("device_filters")  # they name tasks, which a session without a server has not
        tf.compat.v1.Session(graph=tf.Graph(), config=config).close()


def session_config(spec: TaskSpec, task: TaskId) -> tf.compat.v1.ConfigProto:
    """Threads, devices and filters of a task's server and session.

    A server takes them from its own config, never from a session's. The filters leave the other
    workers out: a session then neither waits for them nor notices when one of them is gone.
    """
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=spec.threads,
        inter_op_parallelism_threads=spec.threads,
        allow_soft_placement=True,
    )
    if spec.ps and task.role is TaskRole.WORKER:
        config.device_filters.extend(["/job:ps", f"/job:worker/task:{task.index}"])
    share = os.environ.get(GPU_SHARE_VARIABLE)
    if share:
        # At once, and never more: what a task is promised is there until its end, whatever its
        # neighbours do.
        config.gpu_options.per_process_gpu_memory_fraction = float(share) * _OF_A_SHARE
    else:
        config.gpu_options.allow_growth = True
    return config


def start_server(spec: TaskSpec, task: TaskId) -> tf.distribute.Server:
    """Starts this task's server; TaskError (PORT_TAKEN) where its port is in use."""
    try:
        return tf.distribute.Server(
            {"ps": list(spec.ps), "worker": list(spec.workers)},
            job_name=task.role.value,
            task_index=task.index,
            config=session_config(spec, task),
        )
    except tf.errors.UnknownError as error:
        addresses = spec.ps if task.role is TaskRole.PS else spec.workers
        raise TaskError(
            FailureKind.PORT_TAKEN, f"{task} could not listen on {addresses[task.index]}: {error.message}"
        ) from error


def wait_for_parameter_servers(spec: TaskSpec) -> None:
    """Returns once every parameter server accepts connections.

    A session that is created earlier would wait for them without an end. Raises TaskError
    (START_TIMEOUT) after ``spec.start_limit`` seconds.
    """
    deadline = time.monotonic() + spec.start_limit
    for index, address in enumerate(spec.ps):
        while not answers(address, 1.0):
            if time.monotonic() > deadline:
                raise TaskError(
                    FailureKind.START_TIMEOUT,
                    f"ps/{index} at {address} did not answer within {spec.start_limit:g} s",
                )
            time.sleep(_PEER_POLL_SECONDS)


def answers(address: str, timeout: float) -> bool:
    """Whether the server at ``host:port`` accepts a connection within ``timeout`` seconds."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout).close()
    except OSError:
        return False
    return True

"""The zygote: imports TensorFlow once, then forks a task whenever its agent asks.

One thread, no TensorFlow operation, no device list: a child must find the runtime as untouched
as after an import. Messages are JSON on a SOCK_SEQPACKET socket; the agent's side and the list of
messages are in ``agent/zygote.py``. Ends when the socket does.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import select
import signal
import socket
import sys
from typing import Any

from nhop_models.contract import EXIT_NO_TASK, TASK_SIGNALS, TaskId

MAX_MESSAGE_BYTES = 1 << 16
_PR_SET_DUMPABLE = 4


def import_frameworks() -> str:
    """Imports all that a task will need; returns TensorFlow's version."""
    # Threads of BLAS would not survive a fork, and every task is to keep to its own share of cores.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    # What matters of TensorFlow's own errors comes as an exception; the rest (a host without a GPU
    # "fails" to find one) would only alarm who reads a task's log.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    gc.disable()  # a collection during the imports would only scatter pages that children share
    import tensorflow as tf  # noqa: I001  (keras wants to find tensorflow imported)
    import keras
    import nhop_models.classifier
    import nhop_models.cnn
    import nhop_models.regressor
    import nhop_models.runtime.ps
    import nhop_models.runtime.task
    import nhop_models.runtime.worker
    import nhop_models.source_code  # noqa: F401

    _ = tf.compat.v1.Session, keras.layers.Dense, keras.losses.get  # load what is loaded lazily
    gc.collect()
    gc.freeze()
    return str(tf.__version__)


class Zygote:
    """Answers fork requests and says which of its children have ended."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._wakeup, self._notify = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self, tensorflow_version: str) -> None:
        """Serves until the agent's end of the socket is closed."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._notify, warn_on_full_buffer=False)
        self._send(op="ready", tensorflow=tensorflow_version, python=platform.python_version())
        channel = self._channel.fileno()
        while True:
            readable, _, _ = select.select([channel, self._wakeup], [], [])
            if self._wakeup in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)
                self._reap()
            if channel in readable:
                message = self._channel.recv(MAX_MESSAGE_BYTES)
                if not message:
                    return
                self._fork(json.loads(message))

    def _fork(self, request: dict[str, Any]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._send(op="fork_failed", id=request["id"], error=str(error))
            return
        if pid == 0:
            self._become_task(request)
        self._send(op="forked", id=request["id"], pid=pid, start_ticks=start_ticks(pid))

    def _become_task(self, request: dict[str, Any]) -> None:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (self._channel.detach(), self._wakeup, self._notify):
                os.close(descriptor)
            make_traceable(True)
            from nhop_models.runtime import task

            task.run(request["directory"], TaskId.parse(request["task"]), request["environment"])
        finally:
            os._exit(EXIT_NO_TASK)  # only reached where the task's frame itself failed: it never returns

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._send(op="exited", pid=pid, status=status)

    def _send(self, **message: Any) -> None:
        try:
            self._channel.send(json.dumps(message).encode())
        except (BrokenPipeError, ConnectionResetError):
            sys.exit(0)  # the agent is gone; the tasks live on until their leases end


def make_traceable(traceable: bool) -> None:
    """Whether processes of this user may trace this one, and read and write its memory."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, int(traceable))


def start_ticks(pid: int) -> int:
    """When the process started, in clock ticks since boot: with the pid it names a process for good."""
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123  (on the fork path)
        return int(file.read().rpartition(b")")[2].split()[19])


def main() -> None:
    """Entry point: ``python -m nhop_models.runtime.zygote --fd N``."""
    parser = argparse.ArgumentParser(prog="nhop-zygote")
    parser.add_argument("--fd", type=int, required=True, help="SOCK_SEQPACKET socket of the agent")
    arguments = parser.parse_args()
    channel = socket.socket(fileno=arguments.fd)
    channel.set_inheritable(False)
    make_traceable(False)  # tasks run as the same user, and the agent listens to what this process says
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the agent decides when to end
    # Tasks are born with their signals blocked: one that comes before they can take it waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, TASK_SIGNALS)
    version = import_frameworks()
    from nhop_models.runtime.task import name_process

    name_process("nhop-zygote")
    Zygote(channel).serve(version)


if __name__ == "__main__":
    main()

"""The frame of every task process: session, log, signals, lease, and the last word.

SIGUSR1 asks the task to end at its next step; SIGTERM ends it now. Both are taken by a thread of
their own, through the interpreter's wakeup pipe, since the main thread may be inside TensorFlow,
where Python's handlers never run. A task that does not come to its next step in time is ended by
that thread, its outcome written. Processes that the user's code starts have the usual signals.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import random
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nhop_models.contract import (
    EXIT_NO_OUTCOME,
    TASK_SIGNALS,
    TASKS_FOLDER,
    Outcome,
    SpoolWriter,
    TaskId,
    TaskRole,
    TaskSpec,
    TaskStatus,
    lease_expired,
    log_path,
    outcome_path,
)
from nhop_models.runtime import failures
from nhop_models.runtime.reporter import Reporter

_PR_SET_NAME = 15
LEASE_CHECK_SECONDS = 1.0
GENERATED = "__autograph_generated_file"
"""How the modules begin that TensorFlow makes of a user's functions (autograph/pyct/loader.py)."""
NEXT_STEP_SECONDS = 0.1
"""How long a task that is asked to end may take to come to its next step."""


class Task:
    """A task's place, its stop flag, and its outcome, which is written once."""

    def __init__(self, directory: Path, identity: TaskId, spec: TaskSpec) -> None:
        self.directory = directory
        self.identity = identity
        self.spec = spec
        self.stop = threading.Event()
        self.reporter = Reporter(SpoolWriter(directory, identity), spec.report_interval)
        self._ending = threading.Lock()
        self._umask = os.umask(0)
        os.umask(self._umask)

    def end(self, outcome: Outcome) -> None:
        """Writes the outcome and leaves the process; the first caller wins, and none returns."""
        self._ending.acquire()
        status = 0
        try:
            os.umask(self._umask)  # the user's code may have changed it, and the agent is to read the outcome
            self.reporter.finish()
            outcome.write(outcome_path(self.directory, self.identity))
            _remove_generated_files()
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError as error:
            status = EXIT_NO_OUTCOME
            os.write(2, f"{self.identity} could not write its outcome: {error}\n".encode())
        finally:
            os._exit(status)  # TensorFlow's own teardown can hang on peers that are gone

    def outcome(self, status: TaskStatus, message: str = "", **more: Any) -> Outcome:
        """The outcome of a task that did not fail, as its reporter knows; ``more``: fields of Outcome."""
        reporter = self.reporter
        return Outcome(
            status,
            message=message,
            step=reporter.step,
            train_loss=more.pop("train_loss", reporter.train_loss),
            phase_seconds=dict(reporter.phase_seconds),
            **more,
        )

    def watch(self, wakeup: int) -> None:
        """Takes the signals from the wakeup pipe, and looks after the lease (a thread)."""
        while (received := _next_signal(wakeup, TASK_SIGNALS, LEASE_CHECK_SECONDS)) is None:
            if lease_expired(self.directory):
                self.end(self.outcome(TaskStatus.STOPPED, "no agent has renewed the lease in time"))
        if received == signal.SIGUSR1:
            self.stop.set()
            _next_signal(wakeup, (signal.SIGTERM,), NEXT_STEP_SECONDS)
        self.end(self.outcome(TaskStatus.STOPPED))


def take_signals() -> int:
    """Unblocks the task's signals; returns a descriptor that gives the number of each, a byte each."""
    wakeup, notify = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(notify, warn_on_full_buffer=False)
    for number in TASK_SIGNALS:
        signal.signal(number, lambda *_: None)
    os.register_at_fork(after_in_child=_give_back_signals)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TASK_SIGNALS)
    return wakeup


def _give_back_signals() -> None:
    """For children that the user's code forks: theirs are not the task's signals."""
    signal.set_wakeup_fd(-1)
    for number in TASK_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _next_signal(wakeup: int, wanted: Collection[int], seconds: float) -> int | None:
    """The next of the wanted signals; None where none comes in time."""
    deadline = time.monotonic() + seconds
    while select.select([wakeup], [], [], max(deadline - time.monotonic(), 0.0))[0]:
        number = os.read(wakeup, 1)[0]
        if number in wanted:
            return number
    return None


def run(directory: str, identity: TaskId, environment: Mapping[str, str]) -> None:
    """Makes the forked process a task and runs it to its end; never returns.

    ``directory`` is the attempt directory, ``environment`` is set on top of the zygote's.
    """
    os.setsid()
    name_process(f"nhop-{identity.file_stem}")
    folder = Path(directory)
    log = os.open(log_path(folder, identity), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o660)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(null)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a text stream, always
    faulthandler.enable()  # a crash in native code says where, in the log
    os.environ.update(environment)
    tempfile.tempdir = None  # the zygote's choice: a task has its own
    gc.enable()
    spec = TaskSpec.read(folder)
    seed = np.random.SeedSequence([spec.seed, identity.index, int(identity.role is TaskRole.PS)])
    np.random.seed(seed.generate_state(1))
    random.seed(int(seed.generate_state(2)[1]))
    sys.path[:0] = spec.python_path
    os.chdir(spec.working_directory or folder / TASKS_FOLDER)

    task = Task(folder, identity, spec)
    threading.Thread(target=task.watch, args=(take_signals(),), name="nhop-watch", daemon=True).start()
    try:
        task.end(_work(task))
    except BaseException as error:  # noqa: BLE001  (whatever ended the task is its outcome)
        if task.stop.is_set():
            task.end(task.outcome(TaskStatus.STOPPED))
        outcome = failures.outcome_of(error, task)
        _log(outcome.detail or outcome.message)
        task.end(outcome)


def _remove_generated_files() -> None:
    """Does what TensorFlow would at exit: it writes a file for each function in a ``tf.data`` pipeline."""
    for name, module in list(sys.modules.items()):
        if name.startswith(GENERATED) and module.__file__:
            with contextlib.suppress(OSError):
                Path(module.__file__).unlink()


def _log(text: str) -> None:
    """Ends the log with what ended the task, for those who read that alone."""
    with contextlib.suppress(OSError, ValueError):  # no room, or the user's code has closed it
        sys.stdout.flush()
        os.write(2, text.rstrip("\n").encode(errors="replace") + b"\n")


def name_process(name: str) -> None:
    """Sets what ``ps -o comm`` and ``top`` show; 15 characters at most."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())


def _work(task: Task) -> Outcome:
    if task.identity.role is TaskRole.PS:
        from nhop_models.runtime import ps

        return ps.run(task)
    from nhop_models.runtime import cluster, worker

    cluster.set_up(task.spec, task.identity)
    return worker.run(task)

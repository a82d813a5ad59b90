"""A zygote without TensorFlow: forks tasks whose behaviour stands in the attempt's settings.

Speaks the protocol of ``agent/zygote.py``. ``settings["script"]`` maps a task's name to what it does;
see ``Script``. A task that is not named does what the default of its role says: the chief completes,
the others run until they are stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nhop_models.contract import (
    ARTIFACTS_FOLDER,
    CHECKPOINT_FILE,
    RESTORE_FILE,
    TASK_SIGNALS,
    TASKS_FOLDER,
    FailureKind,
    Outcome,
    RecordKind,
    SpoolWriter,
    TaskId,
    TaskSpec,
    TaskStatus,
    lease_expired,
    log_path,
    outcome_path,
    spool_path,
    write_atomically,
)


@dataclass(frozen=True)
class Script:
    """What a task does: the entries of ``settings["script"][task]``."""

    reports: int = 3
    runs_for: float | None = 0.0  # seconds; None: until it is told to end
    ends_with: str = "COMPLETED"  # or a failure kind
    ready: bool = True
    log: str = ""
    ignores: tuple[str, ...] = ()  # names of signals
    dies_of: str = ""  # name of the signal that it sends itself at the end
    exits: int | None = None  # exit code at the end, without an outcome
    leaves: str = ""  # "daemon": a process in a session of its own; "child": one in its group
    damages: bool = False  # writes garbage to its spool after the reports
    checkpoint: str = ""  # what it saves as its checkpoint, after the reports
    artifacts: dict[str, str] = field(default_factory=dict)  # files that it leaves, by name
    metrics: int = 0  # how many of them are in its last word
    closes: bool = False  # leaves folders, with files, that are closed to all others


def run_task(directory: Path, task: TaskId, environment: dict[str, str]) -> None:
    """The life of a task; never returns."""
    os.setsid()
    log = os.open(log_path(directory, task), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o660)
    for target in (1, 2):
        os.dup2(log, target)
    signal.pthread_sigmask(signal.SIG_BLOCK, TASK_SIGNALS)
    spec = TaskSpec.read(directory)
    chief_or = {} if task.is_chief else {"runs_for": None, "reports": 0}
    script = Script(**{**chief_or, **spec.settings.get("script", {}).get(str(task), {})})
    if script.log:
        print(script.log, flush=True)
    _leave(script.leaves, directory)
    if script.closes:
        _close(directory / TASKS_FOLDER / f"closed-{task.file_stem}", 0o700)
        _close(Path(environment["TMPDIR"]) / f"closed-{task.file_stem}", 0)
    spool = SpoolWriter(directory, task)
    step, best = 0, None
    told = False
    if script.ready:
        spool.append(RecordKind.READY, {})
        pause = (script.runs_for or 0.0) / max(1, script.reports)
        for number in range(1, script.reports + 1):
            told = told or _wait(directory, script, pause)
            if told:
                break
            step = spec.train_epoch * number // script.reports
            loss = 1.0 / (1 + step)
            best = loss if best is None else min(best, loss)
            values = {"step": step, "train_loss": loss, "val_loss": None, "metrics": {"m": 0.5}}
            spool.append(RecordKind.REPORT, values)
    if script.checkpoint:
        _save(directory, CHECKPOINT_FILE, script.checkpoint)
        spool.append(RecordKind.CHECKPOINT, {"step": step, "size": len(script.checkpoint)})
    if script.damages:
        with spool_path(directory, task).open("ab") as file:
            file.write(b"\x05\x00\x00\x00garbage-garbage")
    if script.runs_for is None or not script.ready:
        while not told:
            told = _wait(directory, script, None)
    if not told and script.dies_of:
        os.kill(os.getpid(), signal.Signals[script.dies_of])
        time.sleep(60)
    if not told and script.exits is not None:
        os._exit(script.exits)
    status, kind, message = TaskStatus.COMPLETED, None, ""
    if told:
        status = TaskStatus.STOPPED
    elif script.ends_with != "COMPLETED":
        status, kind, message = TaskStatus.FAILED, FailureKind[script.ends_with], "scripted failure"
    val_loss = best if task.is_chief and not told else None
    for name, text in script.artifacts.items():
        _save(directory, name, text)
    sizes = {name: len(text) for name, text in script.artifacts.items()}
    restore = directory / RESTORE_FILE
    notes = (f"went on from {restore.read_text()}",) if restore.exists() else ()
    metrics = {f"metric-{number}": 0.5 for number in range(script.metrics)}
    outcome = Outcome(status, kind, message, "", step, best, val_loss, metrics, artifacts=sizes, notes=notes)
    outcome.write(outcome_path(directory, task))
    os._exit(0)


def _save(directory: Path, name: str, text: str) -> None:
    folder = directory / ARTIFACTS_FOLDER
    folder.mkdir(exist_ok=True)
    write_atomically(folder / name, text)


def _wait(directory: Path, script: Script, seconds: float | None) -> bool:
    """Waits for a signal that is not ignored, or for the end of the lease; whether it came."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        rest = 0.2 if end is None else max(0.0, end - time.monotonic())
        received = signal.sigtimedwait(TASK_SIGNALS, min(rest, 0.2))
        # Where it was stopped and continued too late, Python's sigtimedwait returns what is no signal.
        number = 0 if received is None else received.si_signo
        if number in TASK_SIGNALS and signal.Signals(number).name not in script.ignores:
            return True
        if lease_expired(directory):
            return True
        if end is not None and time.monotonic() >= end:
            return False


def _close(folder: Path, mode: int) -> None:
    inner = folder / "deeper"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    inner.chmod(mode)
    inner.parent.chmod(mode)


def _leave(what: str, directory: Path) -> None:
    if not what:
        return
    ready, written = os.pipe()
    if os.fork() == 0:
        if what == "daemon":
            os.setsid()
            if os.fork():
                os._exit(0)
        (directory / TASKS_FOLDER / "left").write_text(str(os.getpid()))
        os.write(written, b"x")
        time.sleep(120)
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(written)


def serve(channel: socket.socket, lose_fork: Path | None, names: int | None = None) -> None:
    """Serves until the socket ends; with ``lose_fork``, dies in the middle of its first fork, once.

    ``names``: the process that it says to have forked, and to have reaped, each time.
    """
    wakeup, notify = os.pipe2(os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(notify)

    def send(**message: Any) -> None:
        channel.send(json.dumps(message).encode())

    send(op="ready", tensorflow="0.0.0", python="0.0.0")
    while True:
        readable, _, _ = select.select([channel, wakeup], [], [])
        if wakeup in readable:
            os.read(wakeup, 4096)
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if pid == 0:
                    break
                send(op="exited", pid=pid, status=status)
        if channel not in readable:
            continue
        data = channel.recv(1 << 16)
        if not data:
            return
        request = json.loads(data)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            channel.close()
            try:
                task = TaskId.parse(request["task"])
                run_task(Path(request["directory"]), task, request["environment"])
            finally:
                os._exit(70)
        if lose_fork is not None and not lose_fork.exists():
            while not spool_path(Path(request["directory"]), TaskId.parse(request["task"])).exists():
                time.sleep(0.005)  # the child lives, and speaks
            lose_fork.write_text(str(pid))
            os._exit(9)
        if names is not None:
            os.kill(pid, signal.SIGKILL)
            pid = names
        send(op="forked", id=request["id"], pid=pid, start_ticks=_start_ticks(pid))
        if names is not None:
            send(op="exited", pid=pid, status=0)


def _start_ticks(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except FileNotFoundError:  # one that it was told to name
        return 0


def main() -> None:
    """Entry point, as the real zygote's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--broken", action="store_true", help="die at once")
    parser.add_argument("--lose-fork", type=Path, help="die during the first fork; the file marks it")
    parser.add_argument("--names", type=int, help="the process that it says to have forked, each time")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if arguments.broken:
        sys.exit("this zygote is broken on purpose")
    channel = socket.socket(fileno=arguments.fd)
    channel.set_inheritable(False)
    serve(channel, arguments.lose_fork, arguments.names)


if __name__ == "__main__":
    main()

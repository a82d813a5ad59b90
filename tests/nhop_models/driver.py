"""A real zygote, driven as an agent would."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nhop_models.contract import (
    CACHE_VARIABLE,
    TASKS_FOLDER,
    Outcome,
    Record,
    TaskId,
    TaskSpec,
    decode_records,
    log_path,
    outcome_path,
    spool_path,
    write_lease,
)

DEADLINE = 60.0

SETTINGS = {"data_instances": 2000, "data_features": 4, "nn_dimensions": [4, 1], "seed": 1}
PARAMETERS = {
    "learning_rate": 0.001,
    "batch_size": 100,
    "hidden_layers": [6, 5],
    "activation": "relu",
    "train_optimizer": "Adam",
}


def make_spec(**changes: Any) -> TaskSpec:
    values: dict[str, Any] = {
        "study_id": "s",
        "trial": 1,
        "attempt": 1,
        "model": "Regressor",
        "parameters": PARAMETERS,
        "settings": SETTINGS,
        "train_epoch": 200,
        "train_tolerance": 0.0,
        "seed": 7,
        "report_interval": 0.02,
        "start_limit": 20.0,
    }
    return TaskSpec(**{**values, **changes})


def free_addresses(count: int) -> tuple[str, ...]:
    """Loopback ports below the ephemeral range that nobody listens on."""
    found: list[str] = []
    for port in random.sample(range(30000, 32000), 200):
        with contextlib.closing(socket.socket()) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(f"127.0.0.1:{port}")
        if len(found) == count:
            return tuple(found)
    raise AssertionError("no free ports")


def cluster(ps: int, workers: int) -> dict[str, tuple[str, ...]]:
    """Addresses of a cluster, for ``make_spec``."""
    addresses = free_addresses(ps + workers)
    return {"ps": addresses[:ps], "workers": addresses[ps:]}


class Attempt:
    """Tasks of one attempt directory."""

    def __init__(self, zygote: ZygoteDriver, directory: Path, spec: TaskSpec) -> None:
        self.zygote, self.directory = zygote, directory
        self.pids: dict[str, int] = {}
        (directory / TASKS_FOLDER).mkdir(exist_ok=True)
        spec.write(directory)
        write_lease(directory, 100.0)

    def start(self, *tasks: str) -> None:
        for task in tasks:
            self.pids[task] = self.zygote.fork(self.directory, task)

    def signal(self, task: str, number: signal.Signals) -> float:
        """Signals a task and waits until it is gone; returns the seconds that this took."""
        start = time.monotonic()
        with contextlib.suppress(ProcessLookupError):  # it has ended, and the zygote has not said so yet
            os.kill(self.pids[task], number)
        self.zygote.wait_for_exit(self.pids[task])
        return time.monotonic() - start

    def kill(self, task: str, number: signal.Signals) -> None:
        """Signals a task, without waiting."""
        os.kill(self.pids[task], number)

    def stop(self) -> None:
        for task in sorted(self.pids, reverse=True):  # workers before parameter servers
            if self.pids[task] not in self.zygote.exits:
                self.signal(task, signal.SIGUSR1)

    def wait(self, task: str) -> Outcome:
        self.zygote.wait_for_exit(self.pids[task])
        outcome = self.outcome(task)
        assert outcome is not None, self.log(task)
        return outcome

    def outcome(self, task: str) -> Outcome | None:
        return Outcome.read(outcome_path(self.directory, TaskId.parse(task)))

    def log(self, task: str) -> str:
        path = log_path(self.directory, TaskId.parse(task))
        return path.read_text() if path.exists() else ""

    def records(self, task: str) -> list[Record]:
        path = spool_path(self.directory, TaskId.parse(task))
        return [record for record, _ in decode_records(path.read_bytes(), path)] if path.exists() else []

    def wait_for_records(self, task: str, count: int) -> list[Record]:
        deadline = time.monotonic() + DEADLINE
        while len(records := self.records(task)) < count:
            assert time.monotonic() < deadline, self.log(task)
            assert self.pids[task] not in self.zygote.exits, self.outcome(task)
            self.zygote.receive(0.01)
        return records

    def gather(self, *workers: str) -> None:
        """Waits until each of the workers, which train asynchronously, has reported losses.

        Those that have are stopped meanwhile: they would use up the steps before a slower one has begun.
        """
        missing, deadline = set(workers), time.monotonic() + DEADLINE
        try:
            while missing:
                for task in [task for task in missing if len(self.records(task)) >= 3]:
                    self.kill(task, signal.SIGSTOP)
                    missing.remove(task)
                assert time.monotonic() < deadline, "\n".join(self.log(task) for task in missing)
                self.zygote.receive(0.01)
        finally:
            for task in set(workers) - missing:
                self.kill(task, signal.SIGCONT)


class ZygoteDriver:
    """The agent's end of the zygote's socket."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "nhop_models.runtime.zygote", "--fd", str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
        theirs.close()
        self.exits: dict[int, int] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._requests = 0
        self.live: set[int] = set()
        self.ready: dict[str, Any] = {}
        while not self.ready:
            self.receive(DEADLINE)

    def receive(self, timeout: float) -> None:
        self._channel.settimeout(timeout)
        try:
            data = self._channel.recv(1 << 16)
        except TimeoutError:
            return
        assert data, "the zygote is gone"
        message = json.loads(data)
        match message["op"]:
            case "ready":
                self.ready = message
            case "exited":
                self.exits[message["pid"]] = message["status"]
                self.live.discard(message["pid"])
            case _:
                self._answers[message["id"]] = message

    def fork(self, directory: Path, task: str) -> int:
        self._requests += 1
        request = {
            "op": "fork",
            "id": self._requests,
            "directory": str(directory),
            "task": task,
            "environment": {
                "CUDA_VISIBLE_DEVICES": "",
                "NHOP_TEST": "seen",
                CACHE_VARIABLE: str(directory.parent / "fetched"),
            },
        }
        self._channel.send(json.dumps(request).encode())
        deadline = time.monotonic() + DEADLINE
        while self._requests not in self._answers:
            assert time.monotonic() < deadline
            self.receive(1.0)
        pid = int(self._answers[self._requests]["pid"])
        self.exits.pop(pid, None)  # of an earlier process: numbers come round again
        self.live.add(pid)
        return pid

    def wait_for_exit(self, pid: int) -> None:
        deadline = time.monotonic() + DEADLINE
        while pid not in self.exits:
            assert time.monotonic() < deadline, f"pid {pid} does not end"
            self.receive(1.0)

    def close(self) -> None:
        for pid in list(self.live):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.wait_for_exit(pid)
        self._channel.close()
        self.process.wait(DEADLINE)

"""Latencies of single tasks, measured at the zygote's socket: command to user code, SIGUSR1 to gone."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import standard
from tests.nhop_models.driver import Attempt, ZygoteDriver, free_addresses, make_spec

MODEL = """
import time
started = time.monotonic()
from nhop_models.regressor import RegressorNN

class Stamped(RegressorNN):
    def load_data(self, hp):
        print(started, flush=True)
        return super().load_data(hp)
"""


def fork_seconds(repetitions: int = 40) -> list[float]:
    """From the command on the zygote's socket to the first line of user code, in seconds."""
    found = []
    with zygote() as driver, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "stamped.py").write_text(MODEL)
        for number in range(repetitions):
            directory = Path(folder) / str(number)
            directory.mkdir()
            spec = make_spec(model="stamped:Stamped", python_path=(folder,), train_epoch=1)
            attempt = Attempt(driver, directory, spec)
            start = time.monotonic()
            attempt.start("worker/0")
            attempt.wait("worker/0")
            stamp = next(
                line for line in attempt.log("worker/0").splitlines() if line.replace(".", "").isdigit()
            )
            found.append(float(stamp) - start)
    return found


def teardown_seconds(ps: int, workers: int, repetitions: int = 20) -> list[float]:
    """From the first SIGUSR1 until every process of a training attempt is gone, in seconds."""
    found = []
    with zygote() as driver, tempfile.TemporaryDirectory() as folder:
        for number in range(repetitions):
            directory = Path(folder) / str(number)
            directory.mkdir()
            addresses = free_addresses(ps + workers) if ps else ()
            spec = make_spec(
                ps=addresses[:ps],
                workers=addresses[ps:],
                train_epoch=10_000_000,
                settings=standard.SETTINGS,
                parameters=standard.parameters(number),
            )
            attempt = Attempt(driver, directory, spec)
            attempt.start(*[f"ps/{i}" for i in range(ps)], *[f"worker/{i}" for i in range(workers)])
            for index in range(workers):
                attempt.wait_for_records(f"worker/{index}", 2)
            start = time.monotonic()
            for role in ("worker", "ps"):
                pids = [pid for task, pid in attempt.pids.items() if task.startswith(role)]
                for pid in pids:
                    os.kill(pid, signal.SIGUSR1)
                for pid in pids:
                    driver.wait_for_exit(pid)
            found.append(time.monotonic() - start)
    return found


def steps_per_second(
    threads: Sequence[int], ps: int, workers: int, repetitions: int = 5
) -> list[list[float]]:
    """Global steps a second of standard attempts, for each number of threads a pool (0: one for each core).

    Taken in turns, so that noise of the machine meets all alike.
    """
    found: list[list[float]] = [[] for _ in threads]
    with zygote() as driver, tempfile.TemporaryDirectory() as folder:
        for number in range(repetitions * len(threads)):
            directory = Path(folder) / str(number)
            directory.mkdir()
            addresses = free_addresses(ps + workers)
            spec = make_spec(
                ps=addresses[:ps],
                workers=addresses[ps:],
                train_epoch=standard.TRAIN_EPOCH,
                settings=standard.SETTINGS,
                parameters=standard.parameters(number // len(threads)),
                threads=threads[number % len(threads)],
                start_limit=60.0,
            )
            attempt = Attempt(driver, directory, spec)
            attempt.start(*[f"ps/{i}" for i in range(ps)], *[f"worker/{i}" for i in range(workers)])
            outcome = attempt.wait("worker/0")
            attempt.stop()
            found[number % len(threads)].append(outcome.step / outcome.phase_seconds["steps"])
    return found


@contextlib.contextmanager
def zygote() -> Iterator[ZygoteDriver]:
    driver = ZygoteDriver()
    try:
        yield driver
    finally:
        driver.close()


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]

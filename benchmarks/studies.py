"""Whole studies through ``nhop-coordinator``, as a user starts them."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks import standard

COORDINATOR = str(Path(sysconfig.get_path("scripts")) / "nhop-coordinator")


def run_study(ps: int, workers: int, trials: int) -> dict[str, Any]:
    """Runs standard trials to the end; returns the study's ``summary.json``."""
    with tempfile.TemporaryDirectory() as folder:
        config, out = Path(folder) / "study.yaml", Path(folder) / "out"
        config.write_text(yaml.safe_dump(standard.study(ps, workers, trials)))
        subprocess.run(
            [COORDINATOR, config, "--output", out],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    if summary["trials"]["completed"] != trials:
        raise RuntimeError(f"not every trial completed: {summary['trials']}")
    return summary


def seconds_to_first_loss() -> float:
    """From the command to the first loss of a task on standard output, caches of files warm."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "study.yaml"
        config.write_text(yaml.safe_dump(standard.study(1, 1, 1)))
        start = time.monotonic()
        process = subprocess.Popen(
            [COORDINATOR, config, "--output", f"{folder}/out"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            assert process.stdout is not None
            seen = b""
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                while b"train_loss" not in seen:
                    if not selector.select(timeout=60):
                        raise RuntimeError(f"no loss within 60 s: {seen.decode()}")
                    data = os.read(process.stdout.fileno(), 65536)
                    if not data:
                        raise RuntimeError(f"ended without a loss: {seen.decode()}")
                    seen += data
            return time.monotonic() - start
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)


def import_seconds_and_megabytes() -> tuple[float, float]:
    """Time to import the coordinator's command in a new interpreter, and its resident memory then."""
    program = """
import time
start = time.perf_counter()
import coordinator.cli, coordinator.runtime, coordinator.service
end = time.perf_counter()
import psutil
print(end - start, psutil.Process().memory_info().rss / 1e6)
"""
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    seconds, megabytes = out.split()
    return float(seconds), float(megabytes)

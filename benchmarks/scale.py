"""One coordinator and many agents: trials and reports a second, commands, memory, CPU time."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import standard
from benchmarks.certificates import make_certificates

AGENTS_A_PROCESS = 500


@dataclass(frozen=True)
class Load:
    """A study of ``trials`` trials on ``agents`` agents of one slot; each trial says ``reports`` reports.

    A trial takes ``seconds`` on average; 0: as long as its coordinator takes. At most ``batch`` reports
    are in a message: an agent sends what there is, up to 500 events. ``tls``: between all of them.
    """

    agents: int
    trials: int
    reports: int
    seconds: float = 0.0
    batch: int = 500
    tls: bool = False


@dataclass(frozen=True)
class Result:
    """What a load was answered with; times in seconds, memory in bytes."""

    load: Load
    seconds: float
    cpu_seconds: float
    command_p50: float
    command_p99: float
    connect_seconds: float
    rss_connected: int
    rss_ended: int

    @property
    def trials_per_second(self) -> float:
        return self.load.trials / self.seconds

    @property
    def reports_per_second(self) -> float:
        return self.load.trials * self.load.reports / self.seconds

    def __str__(self) -> str:
        return (
            f"{self.load}: {self.trials_per_second:.0f} trials/s, {self.reports_per_second:.0f} reports/s, "
            f"a command {1000 * self.command_p50:.1f} / {1000 * self.command_p99:.1f} ms, "
            f"{self.cpu_seconds:.1f} s of CPU in {self.seconds:.1f} s, {self.rss_ended / 1e6:.0f} MB"
        )


def run(load: Load) -> Result:
    """Runs a load; raises RuntimeError where a trial or a report is missing in the store at the end."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        certificates = make_certificates(folder / "certs") if load.tls else None
        ports = stack.enter_context(_agents(load, () if certificates is None else (certificates.agent,)))
        hosts, config, out = folder / "hosts.txt", folder / "study.yaml", folder / "out"
        hosts.write_text("".join(f"127.0.0.1:{port}\n" for port in ports))
        study = standard.study(0, 1, load.trials) | {"keep_model": False}
        config.write_text(yaml.safe_dump(study))
        measured_file = folder / "measured.json"
        command = [sys.executable, "-m", "benchmarks.timed_coordinator", measured_file, config]
        security = () if certificates is None else ("--tls", certificates.coordinator)
        command += ["--hosts", hosts, "--output", out, *security]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        _check(out / "study.db", load)
        measured: dict[str, Any] = json.loads(measured_file.read_text())
    percentiles = statistics.quantiles(measured["commands"], n=100, method="inclusive")
    return Result(
        load,
        measured["seconds"],
        measured["cpu_seconds"],
        percentiles[49],
        percentiles[98],
        measured["whole_seconds"] - measured["seconds"],
        measured["rss_connected"],
        measured["rss_ended"],
    )


def _check(database: Path, load: Load) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        (trials,) = connection.execute("SELECT count(*) FROM trials WHERE state = 'completed'").fetchone()
        (reports,) = connection.execute("SELECT count(*) FROM reports").fetchone()
    if (trials, reports) != (load.trials, load.trials * load.reports):
        raise RuntimeError(f"{load}: {trials} trials and {reports} reports are in the store")


@contextlib.contextmanager
def _agents(load: Load, folder: tuple[Path, ...]) -> Iterator[list[int]]:
    """Starts the agents, in as few processes as carry them; ``folder``: of their certificate."""
    with contextlib.ExitStack() as stack:
        processes = []
        for begin in range(0, load.agents, AGENTS_A_PROCESS):
            count = min(AGENTS_A_PROCESS, load.agents - begin)
            words = [sys.executable, "-m", "benchmarks.agents", str(count), str(load.reports)]
            process = subprocess.Popen(
                [*words, str(load.seconds), str(load.batch), *folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate, timeout=30)
            stack.callback(process.kill)
            processes.append(process)
        ports: list[int] = []
        for process in processes:
            assert process.stdout is not None
            ports += json.loads(process.stdout.readline())
        yield ports


if __name__ == "__main__":
    print(run(Load(*map(int, sys.argv[1:4]), *map(float, sys.argv[4:5]), *map(int, sys.argv[5:6]))))

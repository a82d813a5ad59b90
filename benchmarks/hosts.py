"""One trial on one host and spread over three, each host a network namespace of this machine."""

from __future__ import annotations

import csv
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.network import Network

SCRIPTS = Path(sysconfig.get_path("scripts"))
HOSTS = 3
TRIALS = 4


@dataclass(frozen=True)
class Trial:
    """``seconds`` of wall time, from its lease to its end; ``loss`` on held-out data."""

    seconds: float
    loss: float
    hosts: int


def measure(repetitions: int) -> tuple[list[Trial], list[Trial]]:
    """The same trials on one host and on three, in turns; ``repetitions`` studies of each.

    One parameter server and two workers, synchronous, so that both must give the same losses. The agents
    stay, as they would on real machines; all of them share the cores of this one.
    """
    alone: list[Trial] = []
    spread: list[Trial] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Network(HOSTS).made() as network,
        _agents(network, Path(folder)),
    ):
        for repetition in range(repetitions):
            for found, numbers in ((alone, [1]), (spread, list(range(1, HOSTS + 1)))):
                name = f"{len(found)}-{len(numbers)}"
                found.extend(_study(network, Path(folder), name, numbers, repetition))
    return alone, spread


@contextmanager
def _agents(network: Network, folder: Path) -> Iterator[None]:
    agents = []
    try:
        for number in range(1, HOSTS + 1):
            command = (
                *(*network.inside(number), SCRIPTS / "nhop-agent", "--listen", network.target(number)),
                *("--insecure", "--slots", "2", "--state-dir", folder / f"state-{number}"),
            )
            agents.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        yield
    finally:
        for agent in agents:
            agent.terminate()
        for agent in agents:
            agent.wait()


def _study(network: Network, folder: Path, name: str, numbers: Sequence[int], seed: int) -> list[Trial]:
    hosts = folder / f"{name}.txt"
    hosts.write_text("".join(f"{network.target(number)}\n" for number in numbers))
    output = folder / name
    command = (
        *(*network.inside(0), SCRIPTS / "nhop-coordinator", "with", f"opt_stages=[[1000,{TRIALS}]]"),
        *("cluster={ps: 1, workers: 2}", "sync_replicas=true", "placement=spread", "parallel_trials=1"),
        *(f"seed={seed}", "opt_tolerance=0", "train_tolerance=0", "keep_model=false"),
        *("--hosts", hosts, "--insecure", "--output", output),
    )
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    with (output / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [Trial(float(r["seconds"]), float(r["val_loss"]), len(r["hosts"].split())) for r in rows]

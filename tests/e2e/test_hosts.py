"""Studies on agents to which code and data have to be sent, with real TensorFlow processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.conftest import Commands, summary

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

MODEL = """
import pathlib
import agent, coordinator, proto
import keras
import numpy as np
from helpers.scale import times
from nhop_models import NNModel

class Line(NNModel):
    def load_data(self, hp):
        assert agent.MINE and coordinator.MINE and proto.MINE
        assert pathlib.Path("settings.txt").read_text() == "3"
        assert not any(pathlib.Path(name).exists() for name in ("runs", "results", "secret.txt", "numbers"))
        x = np.loadtxt(pathlib.Path(hp["data_dir"]) / "part" / "x.csv").reshape(-1, 1)
        assert pathlib.Path(hp["load_data_dir"]).samefile(pathlib.Path(hp["data_dir"]) / "part")
        return (x, times(x)), (x, times(x))

    def build_model(self, hp):
        return keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
"""
STUDY = """
nn_model: mine:Line
opt_stages: [[300, 2]]
opt_tolerance: 0
cluster: {ps: 1, workers: 2}
learning_rate: [0.05, 0.1]
train_optimizer: [Adam]
batch_size: [20, 40]
load_data: true
data: numbers
load_data_dir: part
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A study file with a model, a helper package, modules that are called as ours, and data beside it."""
    folder = tmp_path / "project"
    for path, text in {
        "study.yaml": STUDY,
        "mine.py": MODEL,
        "agent.py": "MINE = True\n",
        "coordinator.py": "MINE = True\n",
        "proto.py": "MINE = True\n",
        "helpers/__init__.py": "",
        "helpers/scale.py": "def times(x):\n    return 3 * x\n",
        "settings.txt": "3",
        "secret.txt": "",
        ".nhopignore": "secret.txt\n",
        "runs/old/study.db": "",
        "results/study.db": "",
        "results/config.yaml": "",
        "numbers/part/x.csv": "\n".join(str(i / 100) for i in range(-200, 200)),
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


@pytest.fixture
def hosts(commands: Commands) -> Path:
    """A hosts file with an agent that has started elsewhere."""
    address = f"127.0.0.1:{27100 + os.getpid() % 800}"
    commands.agent("--listen", address, "--slots", 2, "--state-dir", commands.folder / "state")
    path = commands.folder / "hosts.txt"
    path.write_text(address)
    return path


def test_code_and_data_travel_from_wherever_the_command_runs(
    commands: Commands, project: Path, hosts: Path
) -> None:
    run = commands.coordinator(project / "study.yaml", "--hosts", hosts, "--output", "out")
    assert run.returncode == 0, run.stdout + run.stderr
    result = summary(commands.folder / "out")
    assert result["trials"]["completed"] == 2, run.stdout + run.stderr
    assert result["best"]["loss"] < 1.0
    kept = sorted((commands.folder / "state" / "bundles").glob("[!.]*"))
    assert len(kept) == 2
    again = commands.coordinator(
        commands.folder / "out" / "best_config.yaml", "--hosts", hosts, "--output", "2"
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert sorted((commands.folder / "state" / "bundles").glob("[!.]*")) == kept, "sent again"


def test_a_table_beside_the_study_file_goes_along(commands: Commands, project: Path, hosts: Path) -> None:
    (project / "table.csv").write_text("\n".join(f"{i},{3 * i}" for i in range(100)))
    (project / "table.yaml").write_text(
        "load_data: true\nload_data_dir: table.csv\nopt_stages: [[50, 1]]\ncluster: {ps: 0, workers: 1}\n"
    )
    run = commands.coordinator(project / "table.yaml", "--hosts", hosts, "--output", "out")
    assert run.returncode == 0, run.stdout + run.stderr
    (kept,) = (commands.folder / "state" / "bundles").glob("[!.]*")
    assert [path.name for path in kept.iterdir()] == ["table.csv"]


def test_data_that_is_not_on_the_host_fails_with_its_path(
    commands: Commands, project: Path, hosts: Path
) -> None:
    study = [
        "load_data=true",
        "load_data_dir=/not/there.csv",
        "opt_stages=[[50,1]]",
        "cluster={ps: 0, workers: 1}",
    ]
    run = commands.coordinator("--hosts", hosts, "--output", "out", "with", *study)
    assert run.returncode == 1
    assert "load_data_dir: /not/there.csv does not exist" in run.stdout + run.stderr


def test_a_dry_run_says_what_would_be_sent_and_leaves_nothing(
    commands: Commands, project: Path, hosts: Path
) -> None:
    run = commands.coordinator("--dry-run", project / "study.yaml", "--hosts", hosts)
    assert run.returncode == 0, run.stderr
    assert f"code {project}: 9 files, " in run.stdout
    assert f"data {project / 'numbers'}: 1 file, " in run.stdout
    assert list((commands.folder / "state" / "bundles").glob("[!.]*")) == []


def test_a_code_folder_that_is_too_large_is_refused(commands: Commands, project: Path, hosts: Path) -> None:
    with (project / "big.bin").open("wb") as file:
        file.truncate(5 << 30)
    run = commands.coordinator(project / "study.yaml", "--hosts", hosts, "--output", "out")
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    for words in (str(project), "100.0 MiB", "big.bin 5.0 GiB", ".nhopignore"):
        assert words in line
    assert not (commands.folder / "out").exists()

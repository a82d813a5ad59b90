"""A task that dies at start-up or at the last step: the rest goes on, or a new attempt does."""

from __future__ import annotations

import csv

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

MODEL = """
import pathlib, time
from nhop_models.regressor import RegressorNN

LAST = pathlib.Path("last-step")

class Waits(RegressorNN):
    # Comes to a stand before the last steps, so that a test can end a task there.
    def train_model(self, training):
        while not training.ended:
            if training.global_step >= 270 and not LAST.exists():
                LAST.touch()
                time.sleep(1.0)
            training.step()
"""


@pytest.mark.parametrize("sync", ["false", pytest.param("true", marks=pytest.mark.faults)])
@pytest.mark.parametrize("moment", [pytest.param("start-up", marks=pytest.mark.faults), "last step"])
@pytest.mark.parametrize("victim", ["worker/1", "worker/0", "ps/0"])
def test_a_task_dies(commands, victim, moment, sync):
    (commands.folder / "waits.py").write_text(MODEL)
    process = commands.start(
        "nhop-coordinator",
        *("with", "nn_model=waits:Waits", "cluster={ps: 1, workers: 3}", f"sync_replicas={sync}"),
        *("hidden_layers=[2,2]", "nodes_per_layer=4", "activation=relu", "seed=5", "opt_tolerance=0"),
        *("train_tolerance=0", "data_instances=1000", "opt_stages=[[300,1]]", "--output", "out"),
    )
    name = f"nhop-{victim.replace('/', '-')}"
    if moment == "last step":
        commands.wait_for((commands.folder / "last-step").exists, "the last step")
    commands.wait_for(lambda: commands.processes(name), victim)
    commands.processes(name)[0].kill()
    said, err = process.communicate(timeout=120)
    assert process.returncode == 0, said + err
    with (commands.folder / "out" / "trials.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["state"] == "completed", row
    assert row["attempts"] == ("1" if victim == "worker/1" else "2")
    assert victim in row["notes"]

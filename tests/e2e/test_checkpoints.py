"""What is lost when a task dies in the middle of the training, and what is not."""

from __future__ import annotations

import csv
import re
import sqlite3

import pytest

from tests.e2e.conftest import summary

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

TRAINING = [
    *("data_instances=1000", "batch_size=50", "hidden_layers=[2,2]", "seed=5"),
    *("opt_tolerance=0", "train_tolerance=0", "opt_stages=[[6000,1]]"),
]


def trial(folder):
    """The only trial of the study, as trials.csv has it."""
    with (folder / "trials.csv").open() as file:
        (row,) = csv.DictReader(file)
    return row


@pytest.mark.parametrize(
    ("cluster", "victim"),
    [
        ("{ps: 0, workers: 1}", "nhop-worker-0"),
        ("{ps: 1, workers: 2}", "nhop-worker-0"),
        pytest.param("{ps: 2, workers: 2}", "nhop-ps-1", marks=pytest.mark.faults),
        pytest.param("{ps: 2, workers: 2}, sync_replicas: true", "nhop-ps-0", marks=pytest.mark.faults),
    ],
)
def test_a_new_attempt_goes_on_from_the_last_checkpoint(commands, cluster, victim):
    process = commands.start(
        "nhop-coordinator",
        *("with", f"cluster={cluster.partition('}')[0]}}}", "checkpoint_every=500", *TRAINING),
        *(f"sync_replicas={'true' if 'sync' in cluster else 'false'}", "--output", "out"),
    )
    out = commands.folder / "out"
    commands.wait_for((out / ".artifacts" / "trial-1" / "checkpoint.npz").exists, "a checkpoint")
    commands.processes(victim)[0].kill()
    said, err = process.communicate(timeout=120)
    assert process.returncode == 0, said + err
    row = trial(out)
    assert (row["state"], row["attempts"]) == ("completed", "2")
    goes_on = re.search(r"attempt 2 goes on from step (\d+) of attempt 1", row["notes"])
    assert goes_on, row["notes"]
    assert int(goes_on[1]) >= 500
    with sqlite3.connect(out / "study.db") as db:
        first, last = db.execute("SELECT min(step), max(step) FROM reports WHERE attempt = 2").fetchone()
    assert first >= int(goes_on[1])
    assert last >= 6000
    assert not (out / ".artifacts").exists()


def test_without_checkpoints_a_new_attempt_begins_anew(commands):
    process = commands.start(
        "nhop-coordinator", "with", "cluster={ps: 0, workers: 1}", *TRAINING, "--output", "out"
    )
    out = commands.folder / "out"
    commands.wait_for(lambda: reports(out), "a report")
    commands.processes("nhop-worker-0")[0].kill()
    said, err = process.communicate(timeout=120)
    assert process.returncode == 0, said + err
    row = trial(out)
    assert (row["state"], row["attempts"]) == ("completed", "2")
    assert "goes on" not in row["notes"]


@pytest.mark.parametrize("sync", ["true", pytest.param("false", marks=pytest.mark.faults)])
def test_training_goes_on_without_a_lost_worker_and_the_trial_says_so(commands, sync):
    process = commands.start(
        "nhop-coordinator",
        *("with", "cluster={ps: 1, workers: 3}", f"sync_replicas={sync}", *TRAINING, "--output", "out"),
    )
    out = commands.folder / "out"
    commands.wait_for(lambda: reports(out, "worker/1"), "a report of worker/1")
    commands.processes("nhop-worker-1")[0].kill()
    said, err = process.communicate(timeout=150)
    assert process.returncode == 0, said + err
    row = trial(out)
    assert (row["state"], row["attempts"]) == ("completed", "1")
    assert "worker/1" in row["notes"]
    assert summary(out)["trials"]["completed"] == 1


def reports(out, source="worker/0"):
    try:
        with sqlite3.connect(f"file:{out / 'study.db'}?mode=ro", uri=True) as db:
            return bool(db.execute("SELECT count(*) FROM reports WHERE source = ?", (source,)).fetchone()[0])
    except sqlite3.Error:
        return False

"""Whole studies on this machine."""

from __future__ import annotations

import csv
import os
import signal
import sqlite3
import time

import pytest
import yaml

from tests.e2e.conftest import ROOT, summary
from tests.nhop_models.languages import make_languages

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SMALL = ["data_instances=1000", "batch_size=[50,100]", "hidden_layers=[1,3]", "seed=5", "opt_tolerance=0"]
LONG = ["opt_stages=[[1000000,1]]", "train_tolerance=0"]


def test_stages_with_parameter_servers_leave_results_that_agree(commands):
    run = commands.coordinator(
        "with", "opt_stages=[[150,2],[80,2]]", "cluster={ps: 2, workers: 4}", *SMALL, "--output", "out"
    )
    assert run.returncode == 0, run.stderr
    out = commands.folder / "out"
    result = summary(out)
    assert result["status"] == "completed"
    assert result["trials"] == {"completed": 4, "pruned": 0, "failed": 0, "stopped": 0}
    assert [(s["train_epoch"], s["opt_epoch"], s["trials"]) for s in result["stages"]] == [
        (150, 2, 2),
        (80, 2, 2),
    ]
    with (out / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    losses = [float(row["loss"]) for row in rows]
    assert min(losses) == result["best"]["loss"]
    assert result["stages"][1]["best"]["loss"] <= result["stages"][0]["best"]["loss"]
    with sqlite3.connect(out / "study.db") as db:
        stored = dict(db.execute("SELECT number, loss FROM trials"))
        reports = db.execute("SELECT count(*) FROM reports").fetchone()[0]
        workers = db.execute("SELECT count(DISTINCT source) FROM reports").fetchone()[0]
    assert [stored[number] for number in sorted(stored)] == losses
    assert reports >= 4 * 4
    assert workers == 4
    best = yaml.safe_load((out / "best_config.yaml").read_text())
    again = commands.coordinator("--dry-run", out / "best_config.yaml")
    assert again.returncode == 0, again.stderr
    assert best["learning_rate"] == pytest.approx(result["best"]["params"]["learning_rate"])
    assert str(out / "summary.json") in run.stdout or "out" in run.stdout


def test_two_hosts_run_the_same_trials_as_one(commands):
    study = ["with", "opt_stages=[[100,4]]", "cluster={ps: 0, workers: 1}", *SMALL]
    alone = commands.coordinator(*study, "--output", "alone")
    assert alone.returncode == 0, alone.stderr
    addresses = [f"127.0.0.1:{28101 + offset + os.getpid() % 800}" for offset in (0, 900)]
    for number, address in enumerate(addresses):
        commands.agent("--listen", address, "--slots", 1, "--state-dir", commands.folder / f"agent{number}")
    (commands.folder / "hosts.txt").write_text("\n".join([*addresses, "# the end"]))
    spread = commands.coordinator(*study, "--output", "spread", "--hosts", "hosts.txt")
    assert spread.returncode == 0, spread.stderr
    rows = {}
    for name in ("alone", "spread"):
        with (commands.folder / name / "trials.csv").open() as file:
            rows[name] = list(csv.DictReader(file))
    for column in ("hidden_layers", "learning_rate", "batch_size", "train_optimizer", "activation", "loss"):
        assert [row[column] for row in rows["alone"]] == [row[column] for row in rows["spread"]], column
    assert {row["hosts"] for row in rows["spread"]} == set(addresses)


def test_a_users_own_model_beside_the_study_file(commands):
    (commands.folder / "agent.py").write_text("FACTOR = 3.0\n")
    (commands.folder / "proto.py").write_text("raise RuntimeError('not this one')\n")
    (commands.folder / "mine.py").write_text(
        "import agent, keras, numpy as np\n"
        "from nhop_models import NNModel\n"
        "class Line(NNModel):\n"
        "    def load_data(self, hp):\n"
        "        x = np.random.default_rng(hp['seed']).normal(size=(500, 1))\n"
        "        return (x, agent.FACTOR * x), (x, agent.FACTOR * x)\n"
        "    def build_model(self, hp):\n"
        "        return keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])\n"
    )
    (commands.folder / "study.yaml").write_text(
        "nn_model: mine:Line\nopt_stages: [[300, 2]]\ncluster: {ps: 0, workers: 1}\n"
        "learning_rate: [0.05, 0.1]\ntrain_optimizer: [Adam]\nbatch_size: [20, 40]\n"
    )
    run = commands.coordinator("study.yaml", "--output", "out")
    assert run.returncode == 0, run.stderr
    assert summary(commands.folder / "out")["best"]["loss"] < 1.0


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param("nhop-worker-1", marks=pytest.mark.faults),
        "nhop-ps-0",
        pytest.param("nhop-worker-0", marks=pytest.mark.faults),
        "nhop-zygote",
    ],
)
def test_a_killed_process_does_not_end_the_study(commands, victim):
    process = commands.start(
        "nhop-coordinator",
        *("with", "opt_stages=[[3000,2]]", "cluster={ps: 1, workers: 2}", "train_tolerance=0", *SMALL),
        *("--output", "out"),
    )
    commands.wait_for(lambda: commands.processes("nhop-worker-1"), "a worker")
    training = commands.folder / "out" / "study.db"

    def reports() -> bool:
        try:
            with sqlite3.connect(f"file:{training}?mode=ro", uri=True) as db:
                return bool(
                    db.execute("SELECT count(*) FROM reports WHERE source = 'worker/1'").fetchone()[0]
                )
        except sqlite3.Error:
            return False

    commands.wait_for(reports, "a report of worker/1")
    commands.processes(victim)[0].kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    result = summary(commands.folder / "out")
    assert result["trials"]["completed"] == 2, out + err
    with sqlite3.connect(training) as db:
        attempts = db.execute("SELECT count(*) FROM attempts").fetchone()[0]
    assert attempts == (3 if victim in ("nhop-ps-0", "nhop-worker-0") else 2)


@pytest.mark.parametrize("when", ["training", "starting"])
def test_ctrl_c_ends_cleanly_and_soon(commands, when):
    process = commands.start(
        "nhop-coordinator", "with", *LONG, "cluster={ps: 1, workers: 2}", *SMALL, "--output", "out"
    )
    if when == "training":
        commands.wait_for(lambda: commands.processes("nhop-worker-1"), "the last worker")
    else:
        commands.wait_for((commands.folder / "out" / "study.db").exists, "the store")
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    seconds = time.monotonic() - start
    assert process.returncode == 130, out + err
    assert seconds < 8.0, f"{seconds:.1f} s"
    assert "Traceback" not in out + err
    assert commands.processes() == []
    result = summary(commands.folder / "out")
    assert result["status"] == "stopped"
    assert result["trials"]["stopped"] <= 1


def test_nothing_survives_a_killed_coordinator(commands):
    process = commands.start(
        "nhop-coordinator", "with", *LONG, "cluster={ps: 1, workers: 1}", *SMALL, "--output", "out"
    )
    commands.wait_for(lambda: commands.processes("nhop-worker-0"), "a worker")
    process.kill()
    process.wait()
    commands.wait_for(lambda: commands.processes() == [], "the end of the private agent and its tasks", 20.0)


def test_the_examples_are_valid(commands):
    code = make_languages(commands.folder / "code", files=2)
    for example in sorted((ROOT / "examples").glob("*.yaml")):
        gathered = ["with", f"load_data_dir={code}"] if example.stem == "source_code_rnn" else []
        run = commands.coordinator("--dry-run", example, *gathered)
        assert run.returncode == 0, run.stderr


def test_the_rnn_trains_on_gathered_files(commands):
    code = make_languages(commands.folder / "code")
    run = commands.coordinator(
        *(ROOT / "examples" / "source_code_rnn.yaml", "with", f"load_data_dir={code}"),
        *("opt_stages=[[80,1],[80,1]]", "rnn_max_seq_length=20", "--output", "out"),
    )
    assert run.returncode == 0, run.stderr
    best = summary(commands.folder / "out")["best"]
    assert best["val_loss"] < 0.3, "guessing gives 0.69"
    again = commands.coordinator("--dry-run", commands.folder / "out" / "best_config.yaml")
    assert again.returncode == 0, again.stderr


def test_files_that_were_not_gathered(commands):
    (commands.folder / "study.yaml").write_text((ROOT / "examples" / "source_code_rnn.yaml").read_text())
    run = commands.coordinator("study.yaml")
    assert run.returncode == 2
    assert "source_code: does not exist" in run.stderr


def test_an_own_model_on_the_data_of_the_example(commands):
    run = commands.coordinator(
        ROOT / "examples" / "own_model.yaml", "with", "opt_stages=[[300,4]]", "--output", "out"
    )
    assert run.returncode == 0, run.stderr
    assert summary(commands.folder / "out")["best"]["val_loss"] < 0.8


def test_diabetes_beats_the_linear_model(commands):
    run = commands.coordinator(
        ROOT / "examples" / "diabetes.yaml", "with", "opt_stages=[[300,8],[600,4]]", "--output", "out"
    )
    assert run.returncode == 0, run.stderr
    import numpy as np

    from nhop_models.datasets import load_table, split_and_standardise

    seed = yaml.safe_load((commands.folder / "out" / "config.yaml").read_text())["seed"]
    (x, y), (x_test, y_test) = split_and_standardise(
        *load_table(str(ROOT / "examples" / "diabetes.csv")), seed=seed
    )
    weights, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)
    linear = float(np.mean((np.c_[x_test, np.ones(len(x_test))] @ weights - y_test) ** 2))
    assert summary(commands.folder / "out")["best"]["val_loss"] < linear


@pytest.mark.parametrize("example", ["forest", "own_loop"])
def test_plain_functions_train_with_any_framework(commands, example):
    run = commands.coordinator(
        ROOT / "examples" / f"{example}.yaml", "with", "opt_stages=[[100,2]]", "--output", "out"
    )
    assert run.returncode == 0, run.stderr
    assert summary(commands.folder / "out")["best"]["loss"] < 0.6

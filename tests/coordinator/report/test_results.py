"""The result files agree with the study, and the best configuration is one."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import yaml

from coordinator.domain import (
    Cluster,
    Failure,
    Stage,
    StageBudget,
    Study,
    StudySpec,
    StudyState,
    Training,
    Trial,
    TrialCounts,
    TrialState,
)
from coordinator.report import write_results
from coordinator.report.results import best_config
from coordinator.search.space import Choice, Float, Int, Layers
from nhop_models.contract import FailureKind

SPACE = {
    "learning_rate": Float(0.001, 0.1),
    "hidden_layers": Layers(Int(1, 3), Int(4, 8)),
    "activation": Choice(("relu", "tanh")),
    "width": Int(1, 9),
}
CONFIG = """
learning_rate: [0.001, 0.1]
hidden_layers: [1, 3]
nodes_per_layer: [4, 8]
activation: [relu, tanh]
search_space: {width: [1, 9]}
opt_stages: [[100, 1], [50, 1]]
"""


def parameters(rate):
    return {"learning_rate": rate, "hidden_layers": [4, 8], "activation": "relu", "width": 3}


@pytest.fixture
def study():
    budgets = (StageBudget(100, 1), StageBudget(50, 1))
    spec = StudySpec("s", 1, budgets, SPACE, Cluster(0, 1), Training("Regressor", {}, 0.0))
    best = Trial(
        1, 1, TrialState.COMPLETED, parameters(1 / 3), 0.1 + 0.2, 0.25, 0.1 + 0.2, seconds=1.5, hosts=("h",)
    )
    failure = Failure(FailureKind.DIVERGED, 'the loss, "it", is\nNaN')
    failed = Trial(2, 2, TrialState.FAILED, parameters(0.1), failure=failure, attempts=1, notes=("a", "b"))
    stages = (Stage(1, budgets[0], SPACE, best), Stage(2, budgets[1], SPACE, best))
    counts = TrialCounts(total=2, completed=1, failed=1)
    state = Study(
        "s", StudyState.COMPLETED, stages, 2, counts, best, late_messages=3, started_at=100.0, ended_at=160.0
    )
    return spec, state, (best, failed)


def test_the_files_agree(tmp_path, study):
    spec, state, trials = study
    write_results(tmp_path, state, trials, CONFIG, spec)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["wall_seconds"] == 60.0
    assert summary["late_messages"] == 3
    assert summary["trials_per_minute"] == 2.0
    assert summary["trials"] == {"completed": 1, "pruned": 0, "failed": 1, "stopped": 0}
    assert [(s["stage"], s["train_epoch"], s["opt_epoch"], s["trials"]) for s in summary["stages"]] == [
        (1, 100, 1, 1),
        (2, 50, 1, 1),
    ]
    assert summary["best"]["params"] == parameters(1 / 3)
    with (tmp_path / "trials.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert float(first["loss"]) == summary["best"]["loss"] == 0.1 + 0.2
    assert float(first["learning_rate"]) == 1 / 3
    assert first["hidden_layers"] == "4-8"
    assert (second["state"], second["loss"], second["failure_kind"]) == ("failed", "", "DIVERGED")
    assert second["failure"] == 'the loss, "it", is\nNaN'
    assert (tmp_path / "config.yaml").read_text() == CONFIG
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.yaml",
        "trials.csv",
        "best_config.yaml",
        "summary.json",
    }


def test_a_path_in_the_best_configuration_can_be_read(study):
    spec, state, _ = study
    assert "code: /home/zoë/größe" in best_config(f"{CONFIG}code: /home/zoë/größe\n", state.best, spec)


def test_the_best_configuration_trains_the_best_point_once(tmp_path, study):
    spec, state, trials = study
    write_results(tmp_path, state, trials, CONFIG, spec)
    best = yaml.safe_load((tmp_path / "best_config.yaml").read_text())
    assert best["learning_rate"] == 1 / 3
    assert best["hidden_layers"] == {"layers": [4, 8]}
    assert "nodes_per_layer" not in best
    assert best["opt_stages"] == [[100, 1]]

    from coordinator.config import load

    again = load(tmp_path / "best_config.yaml", []).to_spec("again")
    assert [stage.opt_epoch for stage in again.stages] == [1]
    from coordinator.search.random_search import propose

    drawn = propose(5, 1, again.space)
    assert {name: drawn[name] for name in parameters(0)} == parameters(1 / 3)


def test_a_study_without_a_completed_trial_has_no_best(tmp_path, study):
    spec, state, _ = study
    empty = Study(
        "s", StudyState.STOPPED, state.stages[:1], 2, TrialCounts(total=2), started_at=1.0, ended_at=1.0
    )
    write_results(tmp_path, empty, (), CONFIG, spec)
    assert not (tmp_path / "best_config.yaml").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["best"] is None


def test_metrics_have_columns_of_their_names(tmp_path, study):
    spec, state, (best, failed) = study
    best = replace(best, metrics={"mae": 0.25, "accuracy": 1 / 3, "width": 2.0, "loss": 9.0})
    write_results(tmp_path, replace(state, best=best), (best, failed), CONFIG, spec)
    with (tmp_path / "trials.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first)[5:10] == ["val_loss", "accuracy", "metric_loss", "mae", "metric_width"]
    assert (float(first["accuracy"]), first["metric_loss"], first["width"]) == (1 / 3, "9.0", "3")
    assert second["accuracy"] == ""
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best"]["metrics"]["accuracy"] == 1 / 3


def best_of(folder, spec, state, trials):
    write_results(folder, state, trials, CONFIG, spec)
    return json.loads((folder / "summary.json").read_text())["best"]


def test_the_summary_names_the_best_trials_files(tmp_path, study):
    spec, state, trials = study
    for name in ("best_model.keras", "best_predictions.npz"):
        (tmp_path / name).touch()
    best = best_of(tmp_path, spec, replace(state, model_trial=1), trials)
    assert (best["model"], best["predictions"]) == ("best_model.keras", "best_predictions.npz")
    assert best["model_problem"] is None


def test_a_model_without_predictions(tmp_path, study):
    spec, state, trials = study
    (tmp_path / "best_model.keras").touch()
    best = best_of(tmp_path, spec, replace(state, model_trial=1, model_problem="gone"), trials)
    assert (best["model"], best["predictions"], best["model_problem"]) == ("best_model.keras", None, "gone")


def test_a_model_of_another_trial_is_not_the_bests(tmp_path, study):
    spec, state, trials = study
    (tmp_path / "best_model.keras").touch()
    best = best_of(tmp_path, spec, replace(state, model_trial=2, model_problem="a: gone"), trials)
    assert (best["model"], best["model_problem"]) == (None, "a: gone")

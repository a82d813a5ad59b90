from __future__ import annotations

import math
import sys

import pytest

from coordinator.config import load
from coordinator.domain import Cluster, Limits, Objective, PlacementRule, StageBudget
from coordinator.errors import ConfigError
from coordinator.search.space import Choice, Float, Int, Layers


def problems(source, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load(source, overrides)
    return caught.value.problems


def message(source):
    (problem,) = problems(source)
    return f"{problem.key}: {problem.message}"


def test_the_defaults_are_the_papers():
    spec = load().to_spec("s")
    assert spec.space == {
        "learning_rate": Float(0.0001, 0.001),
        "batch_size": Int(100, 2000),
        "hidden_layers": Layers(Int(4, 10), Int(4, 10)),
        "activation": Choice(("relu", "tanh")),
        "train_optimizer": Choice(("Adam", "sgd", "Adagrad")),
    }
    assert spec.stages == (StageBudget(1000, 3),)
    assert (spec.cluster, spec.objective) == (Cluster(1, 2), Objective.VAL_LOSS)
    assert (spec.training.train_tolerance, spec.opt_tolerance) == (1e-8, 1e-5)
    settings = spec.training.settings
    assert (settings["data_instances"], settings["data_features"]) == (10000, 4)
    assert (settings["nn_dimensions"], settings["load_data"]) == ([4, 1], False)
    assert (settings["rnn_max_seq_length"], settings["rnn_state_dim"]) == (100, [50, 50, 50])


def test_all_keys_reach_the_study(tmp_path):
    spec = load(
        {
            "nn_model": "my.models:Net",
            "objective": "train_loss",
            "seed": 5,
            "opt_stages": [[100, 4], [200, 2]],
            "narrow_factor": 0.25,
            "opt_tolerance": 0.5,
            "train_tolerance": 0.25,
            "cluster": {"ps": 2, "workers": 3},
            "placement": "spread",
            "parallel_trials": 2,
            "max_attempts": 5,
            "time_budget": "1h30m",
            "start_limit": 7,
            "run_limit": 8,
            "stop_grace": 0.5,
            "terminate_grace": 0.25,
            "report_interval": 0.1,
            "add_noise": True,
            "python_path": [str(tmp_path)],
        }
    ).to_spec("s")
    assert (spec.study_id, spec.seed, spec.objective) == ("s", 5, Objective.TRAIN_LOSS)
    assert spec.stages == (StageBudget(100, 4), StageBudget(200, 2))
    assert (spec.narrow_factor, spec.opt_tolerance, spec.cluster) == (0.25, 0.5, Cluster(2, 3))
    assert spec.placement is PlacementRule.SPREAD
    assert (spec.parallel_trials, spec.max_attempts, spec.time_budget) == (2, 5, 5400.0)
    assert spec.limits == Limits(start=7.0, stop_grace=0.5, terminate_grace=0.25, run=8.0)
    training = spec.training
    assert (training.model, training.train_tolerance, training.report_interval) == (
        "my.models:Net",
        0.25,
        0.1,
    )
    assert training.python_path == (str(tmp_path),)
    assert (training.settings["add_noise"], training.settings["seed"]) == (True, 5)


def test_all_problems_at_once_by_line():
    found = problems(
        "opt_epoch: 0\ncluster:\n  workers: none\n  sp: 1\nbatch_size: [9, 3]\nlerning_rate: 1\n"
    )
    assert [(problem.key, problem.line) for problem in found] == [
        ("opt_epoch", 1),
        ("cluster.workers", 3),
        ("cluster.sp", 4),
        ("batch_size", 5),
        ("lerning_rate", 6),
    ]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("lerning_rate", "learning_rate"),
        ("optEpoch", "opt_epoch"),
        ("batchsize", "batch_size"),
        ("cluster_", "cluster"),
        ("opt_stage", "opt_stages"),
        ("load_data_directory", "load_data_dir"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, nearest):
    assert message({key: 1}) == f"{key}: unknown key; did you mean {nearest}?"


def test_an_unknown_key_that_is_near_to_none():
    assert "search_space" in message({"zzz": 1})


@pytest.mark.parametrize("value", [True, "3", "three", 1.5, None, [], {}, -1, 0, math.nan, math.inf, 2**60])
@pytest.mark.parametrize("key", ["opt_epoch", "train_epoch", "max_attempts", "data_features"])
def test_numbers_that_are_none(key, value):
    assert message({key: value, "nn_dimensions": None}).startswith(f"{key}: must be")


@pytest.mark.parametrize("value", [True, "3", -1, math.nan, math.inf, None, [1], 10**400])
def test_tolerances_that_are_none(value):
    assert message({"opt_tolerance": value}).startswith("opt_tolerance: must be")


@pytest.mark.parametrize("key", ["load_data", "add_noise", "sync_replicas"])
@pytest.mark.parametrize("value", [1, 0, "true", None])
def test_flags_that_are_none(key, value):
    assert message({key: value}).startswith(f"{key}: must be true or false")


def test_whole_numbers_may_be_written_as_floats():
    assert load("train_epoch: 1e3").stages[0].train_epoch == 1000


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (90, 90.0),
        (1.5, 1.5),
        ("90s", 90.0),
        ("2h30m", 9000.0),
        ("1d", 86400.0),
        ("1m 30s", 90.0),
        ("0.5s", 0.5),
    ],
)
def test_durations(written, seconds):
    assert load({"time_budget": written}).to_spec("s").time_budget == seconds


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"cluster": {"ps": 2**53}}, "cluster.ps: must be at most 1,000"),
        ({"cluster": {"workers": 1001}}, "cluster.workers: must be at most 1,000"),
        ({"cluster": {"ps": 500, "workers": 501}}, "cluster: 500 PS and 501 workers: 1,000 tasks are"),
        ({"worker_hosts": [f"a:{n}" for n in range(1000)]}, "worker_hosts: 1 PS and 1000 workers: 1,000"),
        ({"worker_hosts": [f"a:{n}" for n in range(1001)]}, "worker_hosts: must be at most 1,000 addresses"),
        ({"slots": 10_001}, "slots: must be at most 10,000"),
        ({"hidden_layers": [1, 1001]}, "hidden_layers[1]: must be at most 1,000"),
        ({"hidden_layers": {"layers": [1] * 1001}}, "hidden_layers.layers: must be at most 1,000"),
        ({"hidden_layers": {"layers": [10**6 + 1]}}, "hidden_layers.layers: must be at most 1,000,000"),
        ({"nodes_per_layer": 10**6 + 1}, "nodes_per_layer: must be at most 1,000,000"),
        (
            {"search_space": {"x": {"count": 10**8, "nodes": 1}}},
            "search_space.x.count: must be at most 1,000",
        ),
        ({"time_budget": 1e300}, "time_budget: must be at most 10 years"),
        ({"start_limit": "3651d"}, "start_limit: must be at most 10 years"),
        ({"report_interval": 1e12}, "report_interval: must be at most 10 years"),
    ],
)
def test_numbers_that_would_block_the_coordinator(source, words):
    assert message(source).startswith(words)


@pytest.mark.parametrize(
    "source",
    [
        {"cluster": {"ps": 500, "workers": 500}},
        {"slots": 10_000},
        {"hidden_layers": 1000},
        {"nodes_per_layer": 10**6},
        {"time_budget": "3650d"},
    ],
)
def test_the_largest_numbers(source):
    load(source)


@pytest.mark.parametrize("written", ["", "h", "2 hours", "30", 0, -1, "0s", True, "2:30"])
def test_durations_that_are_none(written):
    assert message({"time_budget": written}).startswith("time_budget: must be")


@pytest.mark.parametrize(
    "stages", [[[0, 3]], [[1000]], [[1, 2, 3]], [1000, 3], 7, [[1000, "x"]], [[True, 1]], [[]], "x"]
)
def test_stages_that_are_none(stages):
    assert message({"opt_stages": stages}).startswith("opt_stages: ")


def test_without_stages_there_is_one():
    assert load({"opt_stages": [], "train_epoch": 5, "opt_epoch": 2}).stages == (StageBudget(5, 2),)


def test_epochs_beside_stages_are_noted():
    assert load({"opt_stages": [[1, 1]], "opt_epoch": 2}).notes == (
        "opt_epoch has no effect: opt_stages is given",
    )


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("hyperparam_opt", "TPE", "only RS (random search) is in this version"),
        ("hyperparam_opt", "GA", "not the text 'GA'"),
        ("pruner", "median", "not in this version"),
        ("checkpoint", True, "did you mean checkpoint_every?"),
        ("search_space", {"x": {"low": 1, "high": 2, "conditions": []}}, "not in this version"),
    ],
)
def test_what_this_version_does_not_have_is_refused(key, value, words):
    assert words in message({key: value})


@pytest.mark.parametrize(
    ("key", "value"), [("sync_replicas", False), ("hyperparam_opt", "rs"), ("pruner", None)]
)
def test_what_this_version_does_not_have_may_be_switched_off(key, value):
    load({key: value})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"sync_backup_workers": 1}, "is for sync_replicas: true only"),
        ({"sync_replicas": True, "sync_backup_workers": 2}, "less than the number of workers, 2"),
        ({"sync_replicas": True, "sync_backup_workers": -1}, "must be at least 0"),
        ({"checkpoint_every": 0}, "must be at least 1"),
        ({"keep_model": 1}, "must be true or false"),
        ({"placement": "wide"}, "must be pack or spread, not the text 'wide'"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(keys, words):
    assert words in message(keys)


def test_synchronous_training_goes_to_the_tasks():
    training = load({"sync_replicas": True, "sync_backup_workers": 1}).to_spec("s").training
    assert (training.sync_replicas, training.sync_backup_workers) == (True, 1)


def test_what_is_kept_goes_to_the_tasks():
    training = load({"checkpoint_every": 500, "keep_model": False}).to_spec("s").training
    assert (training.checkpoint_every, training.keep_model) == (500, False)


def test_synchronous_training_of_one_worker_is_noted():
    (note,) = load({"sync_replicas": True, "cluster": {"ps": 1, "workers": 1}}).notes
    assert note == "sync_replicas has no effect: there is one worker only"


def test_checkpoints_that_nothing_goes_on_from_are_noted():
    (note,) = load({"checkpoint_every": 500, "max_attempts": 1}).notes
    assert "nothing is tried again" in note


# --- GPUs ------------------------------------------------------------------------------------


def gpus_of(config):
    return load({"cluster": {"ps": 1, "workers": 4}, **config}).cluster.gpus_per_worker


def test_no_gpus_where_none_are_asked_for():
    assert gpus_of({}) == 0
    assert gpus_of({"num_gpus": 0}) == 0


@pytest.mark.parametrize(
    ("num_gpus", "each"), [(1, 1 / 4), (2, 1 / 2), (3, 1 / 2), (4, 1), (8, 1)]
)  # 3: two workers meet on one of them
def test_workers_share_the_gpus_of_their_machine(num_gpus, each):
    assert gpus_of({"num_gpus": num_gpus}) == each


@pytest.mark.parametrize("each", [0, 1, 2, 0.5, 1 / 3])
def test_gpus_of_each_worker(each):
    assert gpus_of({"gpus_per_worker": each}) == each


@pytest.mark.parametrize("value", [-1, 1.5, 0.0001, "all", True, 100_000])
def test_gpus_that_cannot_be(value):
    assert "gpus_per_worker: must" in message({"gpus_per_worker": value})


def test_gpus_are_said_once():
    assert "leave one of them out" in message({"num_gpus": 1, "gpus_per_worker": 0.5})
    assert "leave one of them out" in message({"num_gpus": 0, "gpus_per_worker": 1})


def test_gpus_resolve_to_one_number():
    text = load({"cluster": {"ps": 1, "workers": 4}, "num_gpus": 1}).to_yaml()
    assert "gpus_per_worker: 0.25" in text
    assert "num_gpus" not in text
    assert load(text).cluster.gpus_per_worker == 0.25


def test_gpus_are_part_of_the_study():
    assert load({"gpus_per_worker": 1}).to_spec("s").cluster.gpus_per_worker == 1


@pytest.mark.parametrize("key", ["trainer", "file2distribute", "running_stage"])
def test_keys_without_effect_are_noted(key):
    (note,) = load({key: "x"}).notes
    assert note.startswith(f"{key} has no effect")


@pytest.mark.parametrize(
    "name", ["Net", "my:", ":Net", "my.mod:a b", "my..mod:Net", "my.mod:Net:x", "", 3, "../m:N"]
)
def test_models_that_cannot_be(name):
    assert message({"nn_model": name}).startswith("nn_model: must")


def test_hosts_give_the_number_of_tasks():
    config = load("ps_hosts: 'localhost:2222'\nworker_hosts: [a:1, b:2, c:3]")
    assert config.cluster == Cluster(1, 3)
    assert len(config.notes) == 2


def test_hosts_that_contradict_the_cluster():
    (problem,) = problems("worker_hosts: [a:1, b:2, c:3]\ncluster: {ps: 1, workers: 2}\n")
    assert (problem.key, problem.line) == ("worker_hosts", 1)
    load("worker_hosts: [a:1, b:2]\ncluster: {ps: 1, workers: 2}\n")
    load("worker_hosts: [a:1, b:2, c:3]\ncluster: {ps: 2}\n")


@pytest.mark.parametrize("hosts", [[1], 3, ["a:1", "a:1"], [""], {"a": 1}])
def test_hosts_that_are_none(hosts):
    assert message({"ps_hosts": hosts}).startswith("ps_hosts: ")


def test_one_process_without_a_parameter_server():
    assert load(None, ["cluster.ps=0"]).cluster == Cluster(0, 1)
    assert "cluster.ps" in message({"cluster": {"ps": 0, "workers": 2}})
    assert "cluster.ps" in message({"ps_hosts": [], "worker_hosts": ["a:1", "b:1"]})


@pytest.mark.parametrize("cluster", [3, [1, 2], "x", None, {"ps": -1}, {"workers": 0}, {"ps": 1.5}])
def test_clusters_that_are_none(cluster):
    assert message({"cluster": cluster}).startswith("cluster")


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "x", True])
def test_seeds_that_are_none(seed):
    assert message({"seed": seed}).startswith("seed: must be")


def test_a_seed_is_drawn_where_none_is_given():
    assert load().seed != load().seed


def test_inputs_follow_the_features_of_synthetic_data():
    assert load({"data_features": 6}).keys.nn_dimensions == (6, 1)
    assert load({"nn_dimensions": [6, 1]}).keys.data_features == 6
    assert "data_features is 5" in message({"nn_dimensions": [6, 1], "data_features": 5})


@pytest.mark.parametrize("dimensions", [[4], [4, 2], [0, 1], "4,1", [4, 1, 1], [4.5, 1]])
def test_dimensions_that_are_none(dimensions):
    assert message({"nn_dimensions": dimensions}).startswith("nn_dimensions: ")


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "data" / "table.csv"
    file.parent.mkdir()
    file.write_text("1,2\n3,4\n")
    return file


def test_data_is_found_beside_the_study_file(tmp_path, table):
    study = tmp_path / "study.yaml"
    study.write_text("load_data: true\nload_data_dir: data/table.csv\n")
    settings = load(study).to_spec("s").training.settings
    assert settings["load_data_dir"] == str(table)
    assert settings["nn_dimensions"] is None


def test_data_of_an_override_is_found_in_the_current_folder(tmp_path, table, monkeypatch):
    monkeypatch.chdir(table.parent)
    study = tmp_path / "study.yaml"
    study.write_text("load_data: true\nload_data_dir: none.csv\n")
    assert load(study, ["load_data_dir=table.csv"]).keys.load_data_dir == str(table)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.csv", "does not exist"),
        ("", "is a folder"),
        ("table.txt", ".csv or .npz"),
        ("x" * 500, "names of at most 255 bytes"),
    ],
)
def test_data_that_cannot_be_read(table, name, words):
    (table.parent / "table.txt").write_text("")
    assert words in message({"load_data": True, "load_data_dir": f"{table.parent}/{name}"})


def test_data_without_a_file():
    assert "load_data_dir" in message({"load_data": True})


def test_a_file_that_is_not_loaded_is_noted(table):
    assert len(load({"load_data_dir": str(table)}).notes) == 1


def test_modules_are_looked_for_beside_the_study_file_and_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    study = tmp_path / "study.yaml"
    study.write_text("seed: 1")
    assert load(study).to_spec("s").training.python_path == (str(tmp_path), str(tmp_path / "here"))


def test_modules_of_a_program_are_looked_for_beside_its_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scripts").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "scripts"), *sys.path])
    assert load({}).to_spec("s").training.python_path == (str(tmp_path), str(tmp_path / "scripts"))

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coordinator.config import load
from coordinator.config.keys import Keys

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"

STUDIES = [
    {},
    {"hidden_layers": {"layers": [5, 7, 4]}, "learning_rate": 0.1, "activation": "tanh"},
    {"hidden_layers": {"low": 2, "high": 8, "step": 2}, "nodes_per_layer": 3},
    {"nn_model": "my.mod:Net", "activation": ["snake", "1e-5", "yes", "ü: [x"]},
    {"search_space": {"a": [0.0, 1.0], "b": ["1e-5", "x"], "c": {"options": [1, True, [2, 3]]}, "d": False}},
    {"search_space": {"w": {"type": "layers", "count": [0, 2], "nodes": [1, 9]}}},
    {"time_budget": "2h", "run_limit": 0.5, "parallel_trials": 2, "slots": 4, "objective": "train_loss"},
    {"opt_stages": [[1000, 4], [700, 3]], "cluster": {"ps": 2, "workers": 4}, "seed": 0},
    {
        "batch_size": {"low": 1, "high": 64, "log": True},
        "learning_rate": {"low": 0.1, "high": 1, "step": 0.1},
    },
    {"worker_hosts": ["a:1", "b:1"], "ps_hosts": ["a:2"], "data_features": 7},
    {"nn_model": "Classifier", "data_features": 5, "activation": "gelu"},
    {"nn_model": "CNN", "search_space": {"conv_filters": {"options": [8, [8, 16]]}, "dropout": [0.0, 0.5]}},
    {"search_space": {"rnn_state_dim": {"count": [1, 2], "nodes": [8, 9]}, "rnn_max_seq_length": [20, 30]}},
]


@pytest.mark.parametrize("study", STUDIES)
def test_the_resolved_configuration_gives_the_same_study(study):
    config = load(study)
    again = load(config.to_yaml())
    assert again.to_spec("s") == config.to_spec("s")
    assert again.to_yaml() == config.to_yaml()
    assert again.notes == ()


@given(st.floats(1e-300, 1e300), st.floats(1e-300, 1e300))
def test_numbers_survive_to_the_last_digit(low, high):
    config = load({"learning_rate": [low, high], "seed": 1})
    assert load(config.to_yaml()).space == config.space


@pytest.mark.parametrize("study", STUDIES[:3])
def test_other_yaml_readers_agree(study):
    config = load(study)
    data = yaml.safe_load(config.to_yaml())
    assert data["train_tolerance"] == 1e-8
    assert data["seed"] == config.seed
    assert load(data).to_spec("s").space == config.space


def test_every_key_has_its_comment():
    undocumented = {
        "train_epoch",
        "opt_epoch",
    }
    text = load({"search_space": {"x": 1}}).to_yaml()
    shown = {line.split(":")[0]: line for line in text.splitlines() if not line.startswith(" ")}
    assert {name for name, line in shown.items() if "  # " not in line} <= undocumented
    assert set(shown) <= set(Keys.model_fields)


@pytest.mark.parametrize("name", ["demo", "diabetes", "own_model", "paper"])
def test_the_examples_are_valid_and_need_no_note(name):
    assert load(EXAMPLES / f"{name}.yaml").notes == ()

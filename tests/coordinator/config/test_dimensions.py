from __future__ import annotations

import math

import pytest

from coordinator.config import load
from coordinator.errors import ConfigError
from coordinator.search.space import Choice, Float, Int, Layers


def problem(source):
    with pytest.raises(ConfigError) as caught:
        load(source)
    (found,) = caught.value.problems
    return found


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("[0.001, 0.0001]", Float(0.0001, 0.001)),
        ("[1e-4, 1e-3]", Float(1e-4, 1e-3)),
        ("0.01", Float(0.01, 0.01)),
        ("[0.01]", Float(0.01, 0.01)),
        ("{low: 1e-4, high: 1, log: true}", Float(1e-4, 1.0, log=True)),
        ("{low: 0.1, high: 1, step: 0.1}", Float(0.1, 1.0, step=0.1)),
        ("{type: float, low: 1, high: 2}", Float(1.0, 2.0)),
    ],
)
def test_forms_of_a_range(written, read):
    assert load(f"learning_rate: {written}").space["learning_rate"] == read


@pytest.mark.parametrize(
    "written",
    ["[]", "[1, 2, 3]", "[1, x]", "yes", "x", "[.nan, 1]", "[1, .inf]", "{low: 1}",
     "{low: 1, high: 2, hi: 3}", "0", "[0, 1]", "[-1, 1]", "{low: 1, high: 2, log: 3}",
     "{low: 1, high: 2, step: 0}", "[[1, 2]]",
     "{low: 1, high: 2, step: 1, log: true}"],
)  # fmt: skip
def test_ranges_that_are_none(written):
    assert problem(f"learning_rate: {written}").key.startswith("learning_rate")


def test_only_the_learning_rate_may_have_reversed_bounds():
    assert problem("batch_size: [200, 100]").message == "the bounds are reversed: write [100, 200]"
    assert problem("hidden_layers: [9, 2]").key == "hidden_layers"
    assert problem("search_space: {x: [2.0, 1.0]}").key == "search_space.x"


def test_a_wrong_bound_is_named_with_its_line():
    found = problem("seed: 1\nbatch_size:\n  - 1\n  - many\n")
    assert (found.key, found.line) == ("batch_size[1]", 4)


@pytest.mark.parametrize("written", ["0", "[0, 9]", "1.5", "true", "[1, 2.5]"])
def test_batch_sizes_that_are_none(written):
    assert problem(f"batch_size: {written}").key.startswith("batch_size")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("hidden_layers: [2, 3]", Layers(Int(2, 3), Int(2, 3))),
        ("hidden_layers: [0, 3]", Layers(Int(0, 3), Int(1, 3))),
        ("hidden_layers: 0", Layers(Int(0, 0), Int(1, 1))),
        ("hidden_layers: [2, 3]\nnodes_per_layer: [8, 64]", Layers(Int(2, 3), Int(8, 64))),
        ("hidden_layers: 2\nnodes_per_layer: 16", Layers(Int(2, 2), Int(16, 16))),
        ("hidden_layers: {layers: [5, 7, 4]}", Choice(((5, 7, 4),))),
        ("hidden_layers: {layers: []}", Choice(((),))),
    ],
)
def test_forms_of_layers(written, read):
    assert load(written).space["hidden_layers"] == read


@pytest.mark.parametrize(
    "written",
    ["hidden_layers: [-1, 2]", "nodes_per_layer: [0, 4]", "hidden_layers: {layers: 3}",
     "hidden_layers: {layers: [0]}", "hidden_layers: {layers: [3], x: 1}", "hidden_layers: []",
     "hidden_layers: many"],
)  # fmt: skip
def test_layers_that_are_none(written):
    assert problem(written).key.startswith(written.split(":")[0])


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("train_optimizer: adam", ("Adam",)),
        ("train_optimizer: [SGD, adagrad]", ("sgd", "Adagrad")),
        ("activation: [ReLU]", ("relu",)),
        ("activation: {options: [gelu, tanh]}", ("gelu", "tanh")),
    ],
)
def test_forms_of_choices(written, read):
    assert load(written).space[written.split(":")[0]] == Choice(read)


def test_a_misspelt_choice_names_the_nearest():
    assert problem("activation: [relu, tahn]").message == "no such activation: 'tahn'; did you mean tanh?"
    assert "Adam, sgd, Adagrad" in problem("train_optimizer: LBFGS").message


def test_a_model_of_ones_own_may_have_activations_of_its_own():
    assert load("nn_model: my:Net\nactivation: [snake]").space["activation"] == Choice(("snake",))


@pytest.mark.parametrize(
    "written", ["[]", "[relu, relu]", "[3]", "7", "[[relu]]", "{}", "{options: []}", "''"]
)
def test_choices_that_are_none(written):
    assert problem(f"activation: {written}").key.startswith("activation")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("[1, 9]", Int(1, 9)),
        ("[1, 9.0]", Float(1.0, 9.0)),
        ("[0.0, 0.5]", Float(0.0, 0.5)),
        ("3", Int(3, 3)),
        ("0.5", Float(0.5, 0.5)),
        ("text", Choice(("text",))),
        ("true", Choice((True,))),
        ("[a, b]", Choice(("a", "b"))),
        ("[true, false]", Choice((True, False))),
        ("{options: [1, 2, 4]}", Choice((1, 2, 4))),
        ("{type: categorical, options: [1, true]}", Choice((1, True))),
        ("{type: choice, options: [[1, 2], [3]]}", Choice(((1, 2), (3,)))),
        ("{low: 1, high: 9}", Int(1, 9)),
        ("{low: 1, high: 9, step: 0.5}", Float(1.0, 9.0, step=0.5)),
        ("{type: int, low: 1, high: 64, log: true}", Int(1, 64, log=True)),
        ("{type: float, low: 1, high: 9}", Float(1.0, 9.0)),
        ("{type: layers, count: [1, 2], nodes: 8}", Layers(Int(1, 2), Int(8, 8))),
    ],
)
def test_forms_of_a_models_own_hyper_parameters(written, read):
    assert load(f"search_space: {{x: {written}}}").space["x"] == read


@pytest.mark.parametrize(
    "written",
    ["[]", "[1, 2, 3]", "[1, a]", "{type: complex}", "{}", "{low: 1}", "{type: layers, count: 1}", "[null]",
     "null", "{options: [1], low: 3}", "{type: choice}", "{options: [{a: 1}]}", "[.nan, .nan]"],
)  # fmt: skip
def test_own_hyper_parameters_that_are_none(written):
    with pytest.raises(ConfigError) as caught:
        load(f"search_space: {{x: {written}}}")
    assert all(found.key.startswith("search_space.x") for found in caught.value.problems)


@pytest.mark.parametrize("name", ["learning_rate", "seed", "cluster", "two words", "1x", "''"])
def test_names_that_own_hyper_parameters_cannot_have(name):
    assert problem(f"search_space: {{{name}: [1, 2]}}").key.startswith("search_space")


@pytest.mark.parametrize("space", [3, [1], "x"])
def test_a_search_space_that_is_none(space):
    assert problem({"search_space": space}).key == "search_space"


def test_numbers_beyond_what_can_be_carried():
    assert problem({"search_space": {"x": [0, 2**53 + 1]}}).key == "search_space.x[1]"
    assert problem({"learning_rate": [1, math.inf]}).key == "learning_rate[1]"


def test_a_model_of_the_users_has_layers_only_where_they_are_asked_for():
    trained = {"learning_rate", "batch_size", "train_optimizer"}
    assert set(load("nn_model: my:Net").space) == trained
    assert set(load("nn_model: my:Net\nnodes_per_layer: [2, 3]").space) == trained | {"hidden_layers"}
    assert set(load("nn_model: Regressor").space) == trained | {"hidden_layers", "activation"}


@pytest.mark.parametrize(("model", "searched"), [("Classifier", True), ("CNN", False)])
def test_shipped_models_have_layers_where_they_are_made_of_them(model, searched):
    layers = {"hidden_layers", "activation"}
    assert (layers <= set(load(f"nn_model: {model}").space)) is searched
    assert layers <= set(load(f"nn_model: {model}\nhidden_layers: [1, 2]\nactivation: relu").space)
    assert "did you mean relu" in problem(f"nn_model: {model}\nactivation: rleu").message


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("rnn_state_dim: [16, 64]", Int(16, 64)),
        ("rnn_state_dim: {count: [1, 2], nodes: [8, 32]}", Layers(Int(1, 2), Int(8, 32))),
        ("rnn_state_dim: {options: [16, [32, 32]]}", Choice((16, (32, 32)))),
        ("rnn_max_seq_length: [50, 200]", Int(50, 200)),
    ],
)
def test_keys_of_the_rnn_that_may_be_searched(written, read):
    space = load(f"search_space: {{{written}}}").space
    assert space[written.split(":")[0]] == read


@pytest.mark.parametrize(
    "written",
    ["rnn_state_dim: [0, 4]", "rnn_state_dim: [1.0, 4.0]", "rnn_state_dim: {options: [8, many]}",
     "rnn_state_dim: {options: [[8, 0]]}", "rnn_state_dim: {options: [true, 2]}",
     "rnn_state_dim: {count: [0, 2], nodes: 8}", "rnn_max_seq_length: {options: [[50]]}"],
)  # fmt: skip
def test_values_that_the_rnn_cannot_have(written):
    found = problem(f"search_space: {{{written}}}")
    assert found.key == f"search_space.{written.split(':')[0]}"
    assert found.message == "must be whole numbers of at least 1"

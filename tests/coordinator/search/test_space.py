from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.search.random_search import propose
from coordinator.search.space import (
    Choice,
    Float,
    Int,
    Layers,
    sample,
    space_from_json,
    space_to_json,
)
from tests.coordinator.search.spaces import contains, spaces

SEEDS = st.integers(0, 2**32 - 1)


@given(spaces(), SEEDS, st.integers(0, 10**6))
def test_a_proposal_lies_within_the_space(space, seed, trial):
    drawn = propose(seed, trial, space)
    assert list(drawn) == list(space)
    assert all(contains(space[name], value) for name, value in drawn.items())


@given(spaces(), SEEDS)
def test_a_proposal_is_a_function_of_its_arguments(space, seed):
    assert propose(seed, 3, space) == propose(seed, 3, dict(reversed(space.items())))


def test_trials_and_seeds_differ():
    space = {"x": Float(0, 1)}
    drawn = {propose(seed, trial, space)["x"] for seed in range(10) for trial in range(10)}
    assert len(drawn) == 100


@given(spaces())
def test_a_space_survives_json(space):
    assert space_from_json(space_to_json(space)) == space


def test_both_bounds_of_whole_numbers_are_drawn():
    rng = np.random.default_rng(0)
    assert {Int(1, 3).sample(rng) for _ in range(100)} == {1, 2, 3}
    assert {Int(1, 3, log=True).sample(rng) for _ in range(200)} == {1, 2, 3}
    assert {Int(0, 10, step=5).sample(rng) for _ in range(100)} == {0, 5, 10}


def test_steps_of_numbers_carry_no_rounding_error():
    rng = np.random.default_rng(0)
    assert {Float(0, 0.5, step=0.1).sample(rng) for _ in range(200)} == {0, 0.1, 0.2, 0.3, 0.4, 0.5}


def test_log_draws_each_decade_equally_often():
    rng = np.random.default_rng(0)
    drawn = [Float(1e-4, 1e-2, log=True).sample(rng) for _ in range(2000)]
    assert 0.45 < sum(value < 1e-3 for value in drawn) / len(drawn) < 0.55


def test_layers_are_drawn_by_number_and_by_nodes():
    rng = np.random.default_rng(0)
    drawn = [Layers(Int(1, 2), Int(4, 5)).sample(rng) for _ in range(100)]
    assert {len(layers) for layers in drawn} == {1, 2}
    assert {nodes for layers in drawn for nodes in layers} == {4, 5}


def test_values_are_plain():
    space = {"f": Float(0, 1), "i": Int(0, 9), "l": Layers(Int(1, 2), Int(4, 5)), "c": Choice(((1, 2),))}
    drawn = sample(space, np.random.default_rng(0))
    assert [type(value) for value in drawn.values()] == [float, int, list, list]
    assert {type(nodes) for nodes in drawn["l"]} == {int}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Float(2, 1),
        lambda: Float(0, float("nan")),
        lambda: Float(-1.7e308, 1.7e308),
        lambda: Float(0, 1, log=True),
        lambda: Float(1, 2, step=0),
        lambda: Float(1, 2, log=True, step=1),
        lambda: Int(0, 2**53 + 1),
        lambda: Choice(()),
        lambda: Layers(Int(-1, 2), Int(4, 5)),
        lambda: Layers(Int(1, 2), Int(0, 5)),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(make):
    with pytest.raises(ValueError):
        make()


def test_json_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="no such type"):
        space_from_json({"x": {"type": "complex"}})

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.search.random_search import propose
from coordinator.search.space import Choice, Float, Int, Layers
from coordinator.stages import narrow
from tests.coordinator.search.spaces import contains, spaces


@given(spaces(), st.integers(0, 2**32 - 1), st.floats(0.01, 1))
def test_the_next_space_has_the_best_point_and_stays_in_the_users(original, seed, factor):
    space = original
    for stage in range(3):
        best = propose(seed, stage, space)
        space = narrow(space, original, best, factor)
        assert list(space) == list(original)
        assert all(contains(space[name], value) for name, value in best.items())
        drawn = propose(seed + 1, stage, space)
        assert all(contains(original[name], value) for name, value in drawn.items())


@pytest.mark.parametrize(
    ("original", "best", "expected"),
    [
        (Float(0.0, 1.0), 0.4, Float(0.2, 0.6000000000000001)),
        (Float(0.0, 1.0), 0.9, Float(0.45, 1.0)),
        (Float(-8.0, 8.0), -4.0, Float(-6.0, -2.0)),
        (Int(100, 2000), 500, Int(250, 750)),
        (Int(1, 100), 5, Int(2, 8)),
        (Int(1, 100), 7, Int(3, 11)),
        (Int(4, 10), 4, Int(4, 6)),
        (Choice(("relu", "tanh")), "tanh", Choice(("relu", "tanh"))),
        (Layers(Int(1, 10), Int(4, 100)), [10, 20], Layers(Int(1, 3), Int(5, 30))),
    ],
)
def test_half_of_the_best_value_to_either_side(original, best, expected):
    assert narrow({"x": original}, {"x": original}, {"x": best}, 0.5) == {"x": expected}


def test_a_best_value_of_zero_leaves_a_range():
    first = {"x": Float(0.0, 8.0), "n": Int(-100, 100)}
    second = narrow(first, first, {"x": 0.0, "n": 0}, 0.5)
    assert second == {"x": Float(0.0, 2.0), "n": Int(-50, 50)}
    assert narrow(second, first, {"x": 0.0, "n": 0}, 0.5) == {"x": Float(0.0, 0.5), "n": Int(-25, 25)}


def test_a_later_stage_may_go_beyond_the_one_before():
    original = {"x": Float(0.0, 1.0)}
    assert narrow({"x": Float(0.3, 0.5)}, original, {"x": 0.5}, 0.5) == {"x": Float(0.25, 0.75)}


def test_steps_stay_on_the_users_grid():
    original = {"x": Float(0.0, 1.0, step=0.25), "n": Int(3, 103, step=10)}
    assert narrow(original, original, {"x": 0.75, "n": 43}, 0.5) == {
        "x": Float(0.5, 1.0, step=0.25),
        "n": Int(23, 65, step=10),
    }


def test_a_lower_bound_of_many_digits_is_kept():
    original = {"x": Float(0.12345678901234, 1.0, step=0.1)}
    assert narrow(original, original, {"x": 0.12345678901234}, 0.5)["x"].low >= original["x"].low


def test_a_parameter_without_a_best_value_keeps_its_range():
    original = {"x": Float(0.0, 1.0)}
    assert narrow(original, original, {}, 0.5) == original

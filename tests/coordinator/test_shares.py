from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.shares import shares


@pytest.mark.parametrize(
    ("total", "needs", "expected"),
    [
        (6, [1], [6]),
        (6, [1, 2], [3, 3]),
        (6, [1, 4], [2, 4]),
        (12, [1, 8, 1], [2, 8, 2]),
        (2, [4, 4], [1, 1]),
        (5, [1, 2], [3, 2]),
    ],
)
def test_parts_are_equal_but_for_studies_of_large_trials(total, needs, expected):
    assert shares(total, needs) == expected


@given(st.integers(1, 40), st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_no_slot_is_given_twice_and_whoever_can_have_a_trial_has_one(total, needs):
    parts = shares(total, needs)
    assert sum(parts) <= total
    if sum(needs) <= total:
        assert all(part >= need for part, need in zip(parts, needs, strict=True))

"""Whom a synchronous step waits for, and how long calls are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nhop_models.runtime.pace import CALL_SECONDS, MOST_STEPS, Pace
from nhop_models.runtime.quorum import APPEARANCE_SECONDS, LEAST_PATIENCE, SECOND_CALL_SECONDS, Quorum


def quorum(workers=3, backup=0, now=0.0):
    return Quorum(workers, backup, 300.0, now)


def test_all_are_waited_for_at_first():
    q = quorum()
    assert (q.needed, q.present) == (2, [True] * 3)
    q.observe(0, [0, 0, -1], 0.1)
    assert q.missing == [2]


def test_no_one_is_missing_while_the_chief_computes():
    q = quorum()
    assert q.missing == []
    q.observe(7, [6, 7, 6], 10.0)
    assert q.missing == []
    q.observe(7, [7, 7, 6], 40.0)
    q.probed(2, True, 40.0 + LEAST_PATIENCE / 2)
    assert q.present[2], "it may be as slow as the chief was"
    q.probed(2, True, 40.0 + 2 * LEAST_PATIENCE)
    assert not q.present[2]


def test_a_worker_that_was_seen_and_is_gone_is_given_up_at_once():
    q = quorum()
    q.observe(5, [5, 5, 4], 1.0)
    q.probed(2, False, 1.01)
    assert (q.needed, q.present, q.missing) == (1, [True, True, False], [])
    assert q.notes(0, 10) == ["worker/2 had no part in 5 of 10 synchronous steps"]


def test_one_that_was_never_seen_has_time_to_appear():
    q = quorum()
    q.probed(2, False, APPEARANCE_SECONDS - 1)
    assert q.present[2]
    q.probed(2, False, APPEARANCE_SECONDS + 1)
    assert not q.present[2]


def test_one_that_loads_its_data_is_waited_for_until_the_start_limit():
    q = quorum()
    q.probed(2, True, 299.0)
    assert q.present[2]
    q.probed(2, True, 301.0)
    assert not q.present[2]


def test_a_slow_one_is_waited_for_with_patience_and_comes_back():
    q = quorum()
    q.observe(7, [7, 7, 6], 10.0)
    q.probed(2, True, 10.0 + LEAST_PATIENCE / 2)
    assert q.present[2]
    q.probed(2, True, 10.0 + 2 * LEAST_PATIENCE)
    assert not q.present[2]
    q.observe(20, [20, 20, 7], 12.0)
    assert q.present[2]
    assert q.notes(0, 26) == ["worker/2 had no part in 13 of 26 synchronous steps"]


def test_one_that_came_back_is_judged_from_its_return():
    q = quorum()
    q.observe(7, [7, 7, 6], 10.0)
    q.probed(2, True, 12.0)
    q.observe(7, [7, 7, 7], 13.0)
    q.observe(8, [8, 8, 7], 13.1)
    q.probed(2, True, 13.0 + LEAST_PATIENCE / 2)
    assert q.present[2]


def test_one_that_was_given_up_is_called_again_now_and_then():
    q = quorum()
    q.observe(7, [7, 7, 6], 10.0)
    q.probed(2, True, 12.0)
    assert q.call_again(12.0 + SECOND_CALL_SECONDS / 2) == [False] * 3
    assert q.call_again(12.1 + SECOND_CALL_SECONDS) == [False, False, True]
    assert q.call_again(12.2 + SECOND_CALL_SECONDS) == [False] * 3
    assert (q.needed, q.present[2]) == (1, False), "it is not waited for until it pushes"


def test_patience_grows_with_the_steps():
    q = quorum()
    q.observe(0, [0, 0, 0], 0.0)
    q.made(1, 10.0)
    q.observe(7, [7, 7, 6], 10.0)
    q.probed(2, True, 40.0)
    assert q.present[2]


@pytest.mark.parametrize(("backup", "needed"), [(0, 3), (1, 2), (3, 0)])
def test_backup_workers_need_not_push(backup, needed):
    assert quorum(4, backup).needed == needed


def test_a_lost_worker_takes_the_place_of_a_backup():
    q = quorum(4, 1)
    q.observe(5, [5, 5, 5, 4], 1.0)
    q.probed(3, False, 1.0)
    assert q.needed == 2


@given(st.lists(st.tuples(st.integers(1, 2000), st.floats(1e-6, 30.0)), max_size=50))
def test_a_call_never_makes_more_than_twice_the_steps_and_at_least_one(calls):
    pace = Pace()
    for made, seconds in calls:
        pace.took(made, seconds)
        assert 1 <= pace.steps <= min(2 * made, MOST_STEPS)
        assert pace.steps == 1 or pace.steps * seconds / made <= CALL_SECONDS * 1.001

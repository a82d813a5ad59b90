"""How long the two sides wait for each other."""

from __future__ import annotations

import pytest

from coordinator.domain import Limits
from coordinator.errors import HostLimitError
from coordinator.patience import Patience, check_lost, least_lost

QUICK, SLOW = Limits(), Limits(stop_grace=30.0, terminate_grace=30.0)


@pytest.mark.parametrize(
    ("limits", "left"), [(QUICK, 80.0), (Limits(stop_grace=5.0, terminate_grace=1.0), 76.0)]
)
def test_attempts_have_ended_when_their_host_counts_as_lost(limits, left):
    """Twice the ladder, workers and then parameter servers, and a moment until it begins."""
    assert Patience(lost=90.0).silence(limits) == left


def test_without_the_time_for_that_agents_end_nothing():
    assert Patience(lost=10.0).silence(QUICK) is None


@pytest.mark.parametrize(
    ("limits", "least"), [(QUICK, 14.0), (SLOW, 134.0), (Limits(stop_grace=0.0, terminate_grace=0.0), 6.0)]
)
def test_the_shortest_limit_of_a_lost_host(limits, least):
    assert least_lost(limits) == least


@pytest.mark.parametrize("limits", [QUICK, SLOW, Limits(stop_grace=4.0, terminate_grace=4.0)])
def test_at_the_shortest_limit_a_few_lost_heartbeats_change_nothing(limits):
    patience = Patience.with_lost(least_lost(limits))
    silence = patience.silence(limits)
    assert silence is not None
    assert silence >= 6 * patience.heartbeat


def test_heartbeats_are_no_closer_together_than_they_need_to_be():
    assert Patience.with_lost(90.0).heartbeat == Patience().heartbeat == 2.0
    assert Patience.with_lost(24.0).heartbeat == 1.0


def test_a_limit_that_is_too_short_says_what_to_do():
    check_lost(14.0, QUICK)
    with pytest.raises(
        HostLimitError, match=r"after 13 s \(--host-limit\), which must be at least 14 s"
    ) as error:
        check_lost(13.0, QUICK)
    assert "stop_grace is 2 s" in str(error.value)

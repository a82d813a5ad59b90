from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import pytest

from agent.domain import AttemptId
from agent.gpu_pool import GpuPool
from agent.gpu_release import Departures, Quarantined, Returned, Sight
from agent.gpus import GpuDevice

ATTEMPT, OTHER = AttemptId("s", 1, 1), AttemptId("s", 2, 1)
LIMIT = 10.0


class Host:
    """A GPU ``a`` whose attempt with the pids 100 and 101 has ended at time 0."""

    def __init__(self, share: Fraction | int = 1, strangers: Iterable[int] = ()) -> None:
        self.pool = GpuPool([GpuDevice("a", "fake", 1)])
        self.departures = Departures(self.pool, LIMIT)
        self.departures.note_strangers("a", frozenset(strangers))
        self.pool.take(ATTEMPT, [Fraction(share)])

    def end(self, attempt: AttemptId = ATTEMPT, *pids: int) -> None:
        self.departures.begin(attempt, pids or (100, 101), 0.0)

    def look(self, *listed: int, living: tuple[int, ...] = (), now: float = 0.0) -> list[object]:
        return list(self.departures.look("a", Sight(frozenset(listed), frozenset(living)), now))

    @property
    def free(self) -> Fraction:
        return self.pool["a"].free

    @property
    def quarantined(self) -> str:
        return self.pool["a"].quarantined


@pytest.fixture
def host() -> Host:
    host = Host()
    host.end()
    return host


def test_a_gpu_stays_leased_until_it_was_looked_at(host: Host) -> None:
    assert host.free == 0
    assert host.departures.uuids == ("a",)


def test_a_gpu_without_processes_is_free(host: Host) -> None:
    assert host.look() == [Returned(ATTEMPT, "a", after_quarantine=False)]
    assert host.free == 1
    assert not host.departures


def test_a_gpu_with_a_process_of_the_attempt_is_not(host: Host) -> None:
    assert host.look(101) == []
    assert host.free == 0
    assert host.departures.pending


def test_it_is_free_once_the_process_is_off_it(host: Host) -> None:
    host.look(101)
    host.look()
    assert host.free == 1


def test_past_the_limit_it_is_quarantined_and_the_process_named(host: Host) -> None:
    (said,) = host.look(101, now=LIMIT)
    assert isinstance(said, Quarantined)
    assert said.reason == host.quarantined
    assert "s-t1-a1 has ended, but the driver still lists process 101" in host.quarantined
    assert not host.departures.pending


def test_a_quarantine_is_said_once(host: Host) -> None:
    host.look(101, now=LIMIT)
    assert host.look(101, now=LIMIT + 1) == []


def test_a_quarantine_ends_by_itself(host: Host) -> None:
    host.look(101, now=LIMIT)
    assert host.look(now=LIMIT + 1) == [Returned(ATTEMPT, "a", after_quarantine=True)]
    assert (host.quarantined, host.free) == ("", 1)


def test_processes_that_live_here_are_not_the_attempts(host: Host) -> None:
    """A desktop or a notebook, also one that has the number of a task that is gone."""
    host.look(101, 4711, living=(101, 4711))
    assert host.free == 1


def test_unknown_processes_count_they_may_be_the_attempts_under_other_numbers(host: Host) -> None:
    assert host.look(90_001) == []
    (said,) = host.look(90_001, now=LIMIT)
    assert isinstance(said, Quarantined)


def test_unknown_processes_that_were_there_before_do_not() -> None:
    host = Host(strangers=[90_001])
    host.end()
    host.look(90_001)
    assert host.free == 1


def test_what_is_listed_while_an_attempt_holds_the_gpu_is_no_stranger() -> None:
    host = Host()
    host.departures.note_strangers("a", frozenset({90_001}))
    host.end()
    assert host.look(90_001) == []


def test_unknown_processes_may_be_those_of_who_shares_the_gpu() -> None:
    host = Host(Fraction(1, 2))
    host.pool.take(OTHER, [Fraction(1, 2)])
    host.end()
    host.look(90_001)
    assert host.free == Fraction(1, 2)


def test_the_last_of_those_who_shared_answers_for_unknown_processes() -> None:
    host = Host(Fraction(1, 2))
    host.pool.take(OTHER, [Fraction(1, 2)])
    host.end(ATTEMPT, 100)
    host.end(OTHER, 200)
    host.look(90_001)
    assert host.free == Fraction(1, 2)
    host.look()
    assert host.free == 1


def test_a_share_that_is_not_given_back_quarantines_the_gpu() -> None:
    host = Host(Fraction(1, 2))
    host.end()
    host.look(101, now=LIMIT)
    assert host.quarantined
    assert host.free == Fraction(1, 2)


def test_a_driver_that_does_not_answer_leaves_the_gpu_leased_and_then_quarantined(host: Host) -> None:
    assert host.departures.look("a", "GPU is lost", 1.0) == []
    (said,) = host.departures.look("a", "GPU is lost", LIMIT)
    assert said == Quarantined(ATTEMPT, "a", "GPU is lost")
    host.look(now=LIMIT + 1)
    assert host.free == 1

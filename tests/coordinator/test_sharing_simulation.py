"""Coordinators that share hosts, in virtual time: no deadlock, no livelock, and what starvation there is."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from coordinator import events as ev
from coordinator.domain import Cluster, PlacementRule, StageBudget, StudyState
from coordinator.shares import shares
from tests.coordinator.shared import SharedHosts, SharingCoordinator
from tests.coordinator.studies import make_spec

GANG = Cluster(1, 4)
HOSTS = {"a": 3, "b": 3}
"""Room for one and a half trials of GANG."""


def sharer(
    hosts: SharedHosts,
    run: str,
    *,
    trials: int,
    near: str,
    latency: float = 0.005,
    cluster: Cluster = GANG,
    rule: PlacementRule = PlacementRule.SPREAD,
    **options: object,
) -> SharingCoordinator:
    """A coordinator that reaches ``near`` in half the time that the other hosts take."""
    stages = (StageBudget(10, trials),)
    spec = make_spec(run_id=run, cluster=cluster, placement=rule, stages=stages, max_attempts=1)
    delay: Callable[[str], float] = lambda host: latency / 2 if host == near else latency  # noqa: E731
    return SharingCoordinator(hosts, spec, delay=delay, **options)  # type: ignore[arg-type]


def run(hosts: SharedHosts, *sharers: SharingCoordinator, limit: float) -> None:
    for one in sharers:
        one.begin()
    hosts.run(lambda: all(one.over for one in sharers), limit)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("rule", PlacementRule)
def test_two_coordinators_with_room_for_one_and_a_half_trials(seed, rule):
    """Each is nearest to another host, so that each gets one and is refused the other, time and again."""
    hosts = SharedHosts(HOSTS)
    first = sharer(hosts, "first", trials=10, near="a", rule=rule, rng=random.Random(seed))
    second = sharer(hosts, "second", trials=10, near="b", rule=rule, rng=random.Random(seed + 1000))
    run(hosts, first, second, limit=60.0)
    for one in (first, second):
        assert one.machine.state is StudyState.COMPLETED
        assert one.machine.study().counts.completed == 10
    assert hosts.held == {"a": {}, "b": {}}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("latency", [0.001, 0.05, 0.5, 2.0])
def test_however_slow_the_network_is(seed, latency):
    hosts = SharedHosts(HOSTS)
    pair = [
        sharer(hosts, name, trials=5, near=near, latency=latency, rng=random.Random(f"{name}{seed}"))
        for name, near in (("first", "a"), ("second", "b"))
    ]
    run(hosts, *pair, limit=60.0 + 200 * latency)
    assert [one.machine.study().counts.completed for one in pair] == [5, 5]


@pytest.mark.parametrize("seed", range(10))
def test_five_coordinators_on_four_hosts(seed):
    hosts = SharedHosts(dict.fromkeys("abcd", 3))
    five = [
        sharer(hosts, f"run{n}", trials=4, near="abcd"[n % 4], rng=random.Random(100 * seed + n))
        for n in range(5)
    ]
    run(hosts, *five, limit=120.0)
    assert [one.machine.study().counts.completed for one in five] == [4] * 5


def test_runs_without_a_generator_of_their_own_get_out_of_each_others_way():
    hosts = SharedHosts(HOSTS)
    pair = [sharer(hosts, f"s1-{near}", trials=5, near=near) for near in "ab"]
    run(hosts, *pair, limit=60.0)
    assert [one.machine.study().counts.completed for one in pair] == [5, 5]


class Metronome(random.Random):
    """No chance at all."""

    def random(self) -> float:
        return 0.0


def test_without_chance_they_would_refuse_each_other_for_ever():
    """Keeps the tests above honest: it is the case that they are about."""
    hosts = SharedHosts(HOSTS)
    pair = [sharer(hosts, near, trials=5, near=near, rng=Metronome()) for near in "ab"]
    with pytest.raises(AssertionError, match="not over"):
        run(hosts, *pair, limit=600.0)


# --- a gang beside many small trials --------------------------------------------------------------


def gang_beside_stream(shared: bool) -> tuple[SharingCoordinator, SharingCoordinator]:
    """A gang of four workers comes when another study fills all slots with trials of one to three seconds."""
    hosts, rng = SharedHosts(HOSTS), random.Random(5)
    trial_seconds = lambda: rng.uniform(1.0, 3.0)  # noqa: E731
    stream = sharer(hosts, "stream", trials=300, near="b", cluster=Cluster(0, 1), trial_seconds=trial_seconds)
    gang = sharer(hosts, "gang", trials=2, near="a", trial_seconds=trial_seconds)
    stream.begin()
    hosts.run(lambda: hosts.now > 1.0, limit=10.0)
    gang.begin()
    if shared:
        for one, share in zip((stream, gang), shares(6, [1, 4]), strict=True):
            one.feed(ev.ShareChanged(share, crowded=False))
    hosts.run(lambda: gang.over, limit=600.0)
    assert gang.machine.study().counts.completed == 2
    return gang, stream


def test_in_one_coordinator_a_gang_gets_its_part_beside_small_trials():
    _, stream = gang_beside_stream(shared=True)
    assert not stream.over


def test_beside_another_coordinator_a_gang_waits_for_its_end_and_the_user_is_told():
    """No one reserves slots across coordinators: docs/architecture.md says so, and what to do."""
    gang, stream = gang_beside_stream(shared=False)
    assert stream.over
    ((told, message), *_) = gang.told
    assert told == pytest.approx(31.0, abs=2.0)
    assert "others use a (full), b (full)" in message

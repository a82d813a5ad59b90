from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain import Cluster
from coordinator.placement import HostCapacity, place, why_never
from nhop_models.contract import TaskRole


def names(placement):
    return {host: [str(task) for task in tasks] for host, tasks in placement.items()}


def test_a_trial_is_packed_on_one_host_where_it_fits():
    hosts = [HostCapacity("a", 2, 2), HostCapacity("b", 4, 4)]
    assert names(place(hosts, Cluster(1, 3))) == {"b": ["ps/0", "worker/0", "worker/1", "worker/2"]}


def test_the_least_loaded_host_comes_first():
    hosts = [HostCapacity("a", 4, 1), HostCapacity("b", 4, 3)]
    assert list(place(hosts, Cluster(0, 1))) == ["b"]


def test_among_equals_the_host_that_was_used_least():
    hosts = [HostCapacity("a", 2, 2, placed=1), HostCapacity("b", 2, 2)]
    assert list(place(hosts, Cluster(0, 1))) == ["b"]


def test_a_large_trial_is_spread_with_its_ps():
    hosts = [HostCapacity("a", 2, 2), HostCapacity("b", 2, 2)]
    assert names(place(hosts, Cluster(2, 4))) == {
        "a": ["ps/0", "worker/0", "worker/1"],
        "b": ["ps/1", "worker/2", "worker/3"],
    }


def test_all_or_nothing():
    assert place([HostCapacity("a", 4, 1), HostCapacity("b", 4, 1)], Cluster(1, 3)) is None


def test_what_can_never_be_placed_says_why_and_what_to_do():
    reason = why_never([HostCapacity("a", 2, 0), HostCapacity("b", 1, 1)], Cluster(1, 4))
    assert "cluster.workers is 4" in reason
    assert "a: 2, b: 1" in reason
    assert "--slots" in reason


def test_busy_slots_are_no_reason_to_give_up():
    assert why_never([HostCapacity("a", 2, 0)], Cluster(1, 2)) is None


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=6),
    st.integers(0, 4),
    st.integers(1, 12),
)
def test_every_task_once_and_no_slot_twice(hosts, ps, workers):
    capacities = [HostCapacity(f"h{n}", slots, min(free, slots)) for n, (slots, free) in enumerate(hosts)]
    placement = place(capacities, Cluster(ps, workers))
    free = {c.name: c.free for c in capacities}
    if placement is None:
        assert sum(free.values()) < workers
        return
    tasks = [str(task) for tasks in placement.values() for task in tasks]
    assert sorted(tasks) == sorted([f"ps/{n}" for n in range(ps)] + [f"worker/{n}" for n in range(workers)])
    for host, placed in placement.items():
        assert 1 <= sum(task.role is TaskRole.WORKER for task in placed) <= free[host]
    assert "worker/0" in names(placement)[next(iter(placement))]

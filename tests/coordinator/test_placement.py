from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from coordinator.domain import Cluster, PlacementRule
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


@pytest.mark.parametrize(
    ("hosts", "what"),
    [([], "there is no host"), ([HostCapacity("a", 0, 0)], "a: 0")],
    ids=["no host", "given up"],
)
def test_no_slot_at_all_is_not_said_to_be_too_few(hosts, what):
    reason = why_never(hosts, Cluster(1, 2))
    assert reason == f"no slot is left for a worker ({what}). Start agents again, or add hosts."


def test_busy_slots_are_no_reason_to_give_up():
    assert why_never([HostCapacity("a", 2, 0)], Cluster(1, 2)) is None


def test_the_hosts_are_counted_where_they_are_many():
    reason = why_never([HostCapacity(f"h{n}", 1, 1) for n in range(50)], Cluster(1, 51))
    assert "50 slots in all (h0: 1, h1: 1, h2: 1, h3: 1, h4: 1 and 45 more)" in reason


# --- spread ---------------------------------------------------------------------------------------


def spread(hosts, cluster):
    return names(place(hosts, cluster, PlacementRule.SPREAD))


def test_a_parameter_server_gets_a_host_of_its_own_where_one_is_free():
    hosts = [HostCapacity(name, 2, 2) for name in "abc"]
    assert spread(hosts, Cluster(1, 2)) == {"a": ["worker/0"], "b": ["worker/1"], "c": ["ps/0"]}


def test_a_parameter_server_stays_off_a_host_that_is_full_of_others():
    hosts = [HostCapacity("a", 2, 2), HostCapacity("b", 2, 2), HostCapacity("c", 2, 0)]
    assert spread(hosts, Cluster(1, 2)) == {"a": ["ps/0", "worker/0"], "b": ["worker/1"]}


def test_parameter_servers_go_where_the_fewest_tasks_are():
    hosts = [HostCapacity("a", 4, 4), HostCapacity("b", 4, 4)]
    assert spread(hosts, Cluster(2, 3)) == {
        "a": ["ps/1", "worker/0", "worker/2"],
        "b": ["ps/0", "worker/1"],
    }


def test_workers_go_around_and_small_hosts_drop_out():
    hosts = [HostCapacity("small", 1, 1), HostCapacity("large", 6, 6), HostCapacity("middle", 2, 2)]
    assert spread(hosts, Cluster(0, 6)) == {
        "small": ["worker/0"],
        "large": ["worker/1", "worker/3", "worker/5"],
        "middle": ["worker/2", "worker/4"],
    }


def test_hosts_with_the_largest_free_share_come_first():
    hosts = [HostCapacity("half", 8, 4), HostCapacity("free", 2, 2), HostCapacity("busy", 8, 1)]
    assert spread(hosts, Cluster(0, 2)) == {"free": ["worker/0"], "half": ["worker/1"]}


def test_a_trial_of_one_worker_is_spread_over_the_hosts_by_and_by():
    hosts = [HostCapacity("a", 2, 2, placed=3), HostCapacity("b", 2, 2, placed=2)]
    assert spread(hosts, Cluster(0, 1)) == {"b": ["worker/0"]}


# --- what always holds ----------------------------------------------------------------------------

CAPACITIES = st.lists(st.tuples(st.integers(1, 6), st.integers(-1, 6)), min_size=1, max_size=8).map(
    lambda hosts: [HostCapacity(f"h{n}", slots, min(free, slots)) for n, (slots, free) in enumerate(hosts)]
)
CLUSTERS = st.builds(Cluster, st.integers(0, 4), st.integers(1, 12))
RULES = st.sampled_from(PlacementRule)


def workers_by_host(placement):
    counts = {host: sum(t.role is TaskRole.WORKER for t in tasks) for host, tasks in placement.items()}
    return {host: number for host, number in counts.items() if number}


def assume_placed(hosts, cluster, rule):
    placement = place(hosts, cluster, rule)
    assume(placement is not None)
    return placement


@given(CAPACITIES, CLUSTERS, RULES)
def test_a_trial_is_placed_if_and_only_if_there_are_slots(hosts, cluster, rule):
    free = sum(max(0, host.free) for host in hosts)
    assert (place(hosts, cluster, rule) is not None) == (free >= cluster.workers)


@given(CAPACITIES, CLUSTERS, RULES)
def test_every_task_is_placed_once(hosts, cluster, rule):
    placement = assume_placed(hosts, cluster, rule)
    tasks = [str(task) for tasks in placement.values() for task in tasks]
    every = [f"ps/{n}" for n in range(cluster.ps)] + [f"worker/{n}" for n in range(cluster.workers)]
    assert sorted(tasks) == sorted(every)


@given(CAPACITIES, CLUSTERS, RULES)
def test_no_slot_is_given_twice(hosts, cluster, rule):
    free = {host.name: host.free for host in hosts}
    placement = assume_placed(hosts, cluster, rule)
    assert all(number <= free[host] for host, number in workers_by_host(placement).items())


@given(CAPACITIES, CLUSTERS, RULES)
def test_nothing_is_placed_on_a_host_without_free_slots(hosts, cluster, rule):
    free = {host.name: host.free for host in hosts}
    placement = assume_placed(hosts, cluster, rule)
    assert all(free[host] > 0 and tasks for host, tasks in placement.items())


@given(CAPACITIES, CLUSTERS, RULES)
def test_the_chiefs_host_comes_first(hosts, cluster, rule):
    placement = assume_placed(hosts, cluster, rule)
    assert "worker/0" in names(placement)[next(iter(placement))]


@given(CAPACITIES, CLUSTERS, RULES)
def test_the_same_hosts_give_the_same_placement(hosts, cluster, rule):
    first, second = place(hosts, cluster, rule), place(hosts, cluster, rule)
    assert (first and list(first.items())) == (second and list(second.items()))


@given(CAPACITIES, CLUSTERS)
def test_spread_workers_are_on_as_many_hosts_as_there_can_be(hosts, cluster):
    placement = assume_placed(hosts, cluster, PlacementRule.SPREAD)
    assert len(workers_by_host(placement)) == min(cluster.workers, sum(host.free > 0 for host in hosts))


@given(CAPACITIES, CLUSTERS)
def test_spread_workers_are_even_but_for_full_hosts(hosts, cluster):
    free = {host.name: host.free for host in hosts}
    counts = workers_by_host(assume_placed(hosts, cluster, PlacementRule.SPREAD))
    most = max(counts.values())
    assert all(number >= most - 1 or number == free[host] for host, number in counts.items())


@given(CAPACITIES, CLUSTERS)
def test_packed_trials_are_on_as_few_hosts_as_there_can_be(hosts, cluster):
    placement = assume_placed(hosts, cluster, PlacementRule.PACK)
    total, fewest = 0, 0
    for free in sorted((host.free for host in hosts), reverse=True):
        if total >= cluster.workers:
            break
        total, fewest = total + free, fewest + 1
    assert len(placement) == fewest


@given(CAPACITIES, CLUSTERS)
def test_packed_parameter_servers_stand_beside_workers(hosts, cluster):
    placement = assume_placed(hosts, cluster, PlacementRule.PACK)
    assert workers_by_host(placement).keys() == placement.keys()

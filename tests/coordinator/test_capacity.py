from __future__ import annotations

from coordinator.capacity import Capacity
from coordinator.domain import AttemptId, Cluster, PlacementRule
from nhop_models.contract import TaskId

FIRST, SECOND = AttemptId("s", 1, 1), AttemptId("s", 2, 1)
WORKER = (TaskId.parse("worker/0"),)


def capacity(**slots):
    return Capacity(slots, Cluster(0, 1))


def held(**slots):
    """With one attempt on host a."""
    hosts = capacity(**slots)
    hosts.hold(FIRST, {"a": WORKER})
    return hosts


def hosts_of(placement):
    return list(placement or ())


def test_a_host_that_joins_is_placed_on():
    hosts = capacity(a=1)
    hosts.hold(FIRST, hosts.place())
    assert hosts.join("b", 1)
    assert hosts_of(hosts.place()) == ["b"]


def test_other_slots_are_no_joining():
    hosts = capacity(a=1)
    assert not hosts.join("a", 2)
    assert hosts.slots_of("a") == 2


def test_fewer_slots_than_are_held_leave_no_room():
    hosts = held(a=3)
    hosts.hold(SECOND, {"a": WORKER})
    hosts.join("a", 1)
    assert hosts.place() is None
    hosts.release(FIRST, "a")
    hosts.release(SECOND, "a")
    assert hosts_of(hosts.place()) == ["a"]


def test_a_host_that_leaves_gets_nothing_new():
    hosts = capacity(a=2)
    assert hosts.leave("a")
    assert hosts.place() is None
    assert hosts.slots_of("a") is None


def test_leaving_twice_is_no_news():
    hosts = capacity(a=2)
    hosts.leave("a")
    assert not hosts.leave("a")
    assert not hosts.leave("unknown")


def test_what_runs_there_may_end_first():
    hosts = held(a=1)
    hosts.leave("a")
    assert not hosts.is_through("a")
    hosts.release(FIRST, "a")
    assert hosts.is_through("a")


def test_a_host_that_does_not_leave_is_never_through():
    assert not capacity(a=1).is_through("a")


def test_a_lost_host_that_leaves_is_not_waited_for():
    hosts = held(a=1)
    hosts.leave("a")
    hosts.set_lost("a", lost=True)
    assert hosts.is_through("a")


def test_a_host_that_comes_back_while_it_leaves_keeps_what_runs_there():
    hosts = held(a=2)
    hosts.leave("a")
    assert hosts.join("a", 2)
    assert not hosts.is_through("a")
    hosts.hold(SECOND, hosts.place())
    assert hosts.place() is None


def test_a_host_that_joins_again_is_neither_lost_nor_silent():
    hosts = capacity(a=1)
    hosts.set_lost("a", lost=True)
    hosts.leave("a")
    hosts.join("a", 1)
    assert hosts_of(hosts.place()) == ["a"]


def test_other_slots_of_a_lost_host_do_not_find_it():
    hosts = capacity(a=1)
    hosts.set_lost("a", lost=True)
    hosts.join("a", 2)
    assert hosts.place() is None


def test_a_host_that_leaves_does_not_count_for_what_could_be_placed():
    hosts = capacity(a=1, b=1)
    hosts.leave("a")
    assert hosts.why_never() is None
    hosts.leave("b")
    assert hosts.why_never() is not None


def test_hosts_are_known_even_after_they_left():
    hosts = capacity(a=1)
    hosts.leave("a")
    assert hosts.knows("a")
    assert not hosts.knows("b")


def test_no_trial_is_spread_while_a_host_is_awaited():
    hosts = Capacity({"a": 2, "b": 2, "c": 2}, Cluster(0, 2), PlacementRule.SPREAD)
    for name in "abc":
        hosts.expect(name)
    hosts.set_silent("a", silent=False)
    assert hosts.place() is None
    hosts.set_silent("b", silent=False)
    assert hosts.place() is None
    hosts.leave("c")
    assert hosts_of(hosts.place()) == ["a", "b"]


def test_a_trial_that_is_packed_does_not_wait_for_hosts():
    hosts = capacity(a=1, b=1)
    hosts.expect("a")
    assert hosts_of(hosts.place()) == ["b"]

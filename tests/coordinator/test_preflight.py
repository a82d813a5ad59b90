"""What is found of hosts, and what it means for a study."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.domain import Cluster
from coordinator.hosts import AgentAddress, Inventory
from coordinator.preflight import (
    SHOWN,
    Findings,
    compare,
    examine,
    judge_reach,
    may_spread,
    port_states,
    rows_of,
)

GOOD = Inventory(
    slots=4, gpus=0, incarnation="i", nhop_version="0.2.0", tensorflow_version="2.21.0",
    python_version="3.11.7", cpu_cores=4, free_disk=50 << 30, task_address="10.0.0.1", ports=(20000, 29999),
)  # fmt: skip
SPREAD, ALONE = Cluster(2, 4), Cluster(0, 1)


def found(**changes):
    return examine("a", replace(GOOD, **changes), "0.2.0")


def test_a_good_host_has_no_findings():
    assert found() == Findings()
    assert found(certificate_left=86_400.0) == Findings(), "a short-lived one has time until its last third"


def test_a_certificate_that_ends_soon_is_said():
    (warning,) = found(certificate_left=129_600.0, certificate_ends_soon=True).warnings
    assert "a: its certificate ends in 1.5 days; issue it again" in warning


def test_another_version_of_nhop_is_refused_with_the_remedy():
    (problem,) = found(nhop_version="0.1.0").problems
    assert problem == (
        "a: its agent is of nhop 0.1.0, this coordinator of 0.2.0; install the same version on both, and "
        "start the agent again"
    )


@pytest.mark.parametrize(("agents", "ours"), [("", "0.2.0"), ("0.1.0", "")])
def test_a_version_that_is_not_known_is_no_other(agents, ours):
    assert examine("a", replace(GOOD, nhop_version=agents), ours) == Findings()


def test_a_full_disk_is_refused_and_a_small_one_warned_of():
    assert "99 MB of disk are free" in found(free_disk=(100 << 20) - 1).problems[0]
    assert found(free_disk=100 << 20).problems == ()
    assert "only 1023 MB" in found(free_disk=(1 << 30) - 1).warnings[0]
    assert found(free_disk=1 << 30).warnings == ()


@pytest.mark.parametrize(
    ("offset", "words"),
    [(2.1, "2 s ahead of"), (-3600.0, "3600 s behind"), (2.0, None), (-2.0, None)],
)
def test_a_clock_that_is_off_is_warned_of(offset, words):
    warnings = found(clock_offset=offset).warnings
    assert [words in warning for warning in warnings] == ([True] if words else [])


# --- several hosts ------------------------------------------------------------------------------


def hosts(**changes):
    """Hosts by name with what is different about them."""
    return {name: replace(GOOD, **values) for name, values in changes.items()}


def test_equal_hosts_fit_together():
    assert compare(hosts(a={}, b={}), SPREAD) == Findings()


def test_tasks_of_a_trial_need_one_series_of_tensorflow():
    (problem,) = compare(hosts(a={}, b={"tensorflow_version": "2.20.0"}), SPREAD).problems
    assert "2.21.0: a; 2.20.0: b" in problem
    assert "install the same one everywhere" in problem


@pytest.mark.parametrize(
    ("version", "cluster"),
    [("2.21.1", SPREAD), ("2.20.0", ALONE), ("2.20.0", Cluster(1, 1)), ("2.20.0", None)],
    ids=["same series", "no ps", "never spread", "not known"],
)
def test_other_differences_of_tensorflow_are_warned_of(version, cluster):
    findings = compare(hosts(a={}, b={"tensorflow_version": version}), cluster)
    assert (findings.problems, len(findings.warnings)) == ((), 1)


def test_a_tensorflow_that_is_still_loading_is_no_other_version():
    assert compare(hosts(a={}, b={"tensorflow_version": ""}), SPREAD) == Findings()


def test_other_versions_of_python_are_warned_of_but_not_other_patches():
    assert compare(hosts(a={}, b={"python_version": "3.11.9"}), SPREAD) == Findings()
    (warning,) = compare(hosts(a={}, b={"python_version": "3.12.1"}), SPREAD).warnings
    assert "3.11: a; 3.12: b" in warning


def test_many_hosts_are_not_all_named():
    many = {f"h{n}": {} for n in range(SHOWN + 3)}
    (warning,) = compare(hosts(**many, z={"python_version": "3.12.1"}), None).warnings
    assert "h4 and 3 more" in warning


# --- reach --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster", "spreads"),
    [(None, True), (SPREAD, True), (Cluster(1, 1), False), (Cluster(0, 4), False)],
    ids=str,
)
def test_whose_tasks_may_be_on_several_hosts(cluster, spreads):
    assert may_spread(cluster) is spreads


def test_hosts_that_do_not_reach_each_other_are_refused_with_all_that_helps():
    reach = {("a", "b"): "no answer in 4 s", ("b", "a"): ""}
    (problem,) = judge_reach(reach, hosts(a={}, b={"task_address": "10.0.0.2"}), SPREAD).problems
    assert problem.startswith(
        "a does not reach the task ports of b (10.0.0.2, TCP 20000-29999): no answer in 4 s; open these ports"
    )
    assert "--port-range" in problem
    assert "--advertise" in problem


def test_before_the_trials_are_known_they_are_warned_of():
    findings = judge_reach({("a", "b"): "refused"}, hosts(a={}, b={}), None)
    assert (findings.problems, len(findings.warnings)) == ((), 1)


@pytest.mark.parametrize("cluster", [ALONE, Cluster(1, 1)], ids=str)
def test_trials_on_one_host_need_no_reach(cluster):
    assert judge_reach({("a", "b"): "refused"}, hosts(a={}, b={}), cluster) == Findings()


def test_hosts_that_reach_each_other_are_fine():
    assert judge_reach({("a", "b"): "", ("b", "a"): ""}, hosts(a={}, b={}), SPREAD) == Findings()


def test_many_pairs_are_not_all_named():
    names = [f"h{n}" for n in range(4)]
    reach = {(a, b): "refused" for a in names for b in names if a != b}
    (problem,) = judge_reach(reach, hosts(**{name: {} for name in names}), SPREAD).problems
    assert len(problem.splitlines()) == SHOWN + 1
    assert "and 7 more pairs of hosts" in problem


def test_the_state_of_ports_in_a_word_or_two():
    reach = {
        ("a", "b"): "refused",
        ("b", "a"): "",
        ("c", "b"): "refused",
        ("c", "a"): "",
        ("a", "c"): "",
        ("b", "c"): "",
    }
    assert port_states(["a", "b", "c"], reach) == {"a": "reached", "b": "not by 2 of 2", "c": "reached"}
    assert port_states(["a"], {}) == {"a": ""}


# --- the table ----------------------------------------------------------------------------------


def test_the_table_is_in_the_order_of_the_file_and_says_what_is_used():
    addresses = [AgentAddress("c"), AgentAddress("a", slots=2), AgentAddress("b"), AgentAddress("d")]
    inventories = {"a": GOOD, "b": replace(GOOD, tensorflow_version="")}
    rows = rows_of(addresses, inventories, {"c": "no agent listens there"}, {})
    assert rows_of(addresses, inventories, {}, {}, {"a"})[1].state == "cannot be used"
    assert [(row.name, row.slots, row.state) for row in rows] == [
        ("c", 0, "no agent listens there"),
        ("a", 2, "ready"),
        ("b", 4, "TensorFlow is still loading"),
        ("d", 0, "no answer"),
    ]

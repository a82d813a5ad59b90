"""Hosts with addresses of their own: the same command, the same results as on one machine."""

from __future__ import annotations

import pytest

from benchmarks import network
from tests.cluster import GRACES, cluster_of
from tests.e2e.conftest import Commands, summary

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not network.usable(), reason="network namespaces need root and iproute2"),
]


def test_a_trial_is_spread_over_three_hosts(commands: Commands):
    with cluster_of(3, commands) as cluster:
        cluster.start("--slots", 1)
        done = cluster.coordinator(
            "with", "opt_stages=[[200,1]]", "cluster={ps: 1, workers: 2}", "placement=spread", *GRACES
        )
        assert done.returncode == 0, done.stderr
        assert summary(cluster.output)["trials"]["completed"] == 1
        (trial,) = cluster.trials()
        assert sorted(trial["hosts"].split()) == list(map(cluster.network.target, cluster.numbers))
        assert (cluster.output / "best_model.keras").exists()
        for number in cluster.numbers:
            assert f"{cluster.network.target(number)} " in done.stdout  # in the table before the first trial
            assert cluster.tasks(number) == []
            assert list((cluster.state(number) / "attempts").iterdir()) == []


def test_filtered_task_ports_are_said_before_the_first_trial(commands: Commands):
    with cluster_of(2, commands) as cluster:
        cluster.start("--slots", 1)
        cluster.network.filter_task_ports(2)
        done = cluster.coordinator("with", "opt_stages=[[200,2]]", "cluster={ps: 1, workers: 2}")
        assert done.returncode == 3, done.stderr
        one, two = cluster.network.target(1), cluster.network.target(2)
        assert f"{one} does not reach the task ports of {two}" in done.stderr
        assert "21000-21999" in done.stderr
        assert not cluster.output.exists()

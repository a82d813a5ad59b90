"""Rules of `nhop-agent firewall` on hosts that train: what a stranger reaches, and when ports are open."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys

import pytest

from benchmarks import network
from benchmarks.network import AGENT_PORT, FIRST_TASK_PORT, LAST_TASK_PORT
from tests.agent.test_firewall import CONNECT
from tests.cluster import GRACES, Cluster, cluster_of
from tests.e2e.conftest import Commands

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not network.usable(), reason="network namespaces need root and iproute2"),
    pytest.mark.skipif(shutil.which("ss") is None, reason="needs ss (Debian: iproute2)"),
]
LONG = ("opt_stages=[[1000000,1]]", "train_tolerance=0", "opt_tolerance=0")
STUDY = ("with", *LONG, "cluster={ps: 1, workers: 2}", "placement=spread", *GRACES)
STRANGER = 3


def listening(cluster: Cluster, number: int) -> set[int]:
    """The TCP ports that are open on a host."""
    command = [*cluster.network.inside(number), "ss", "-Hltn"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {int(line.split()[3].rpartition(":")[2]) for line in lines}


def reached(cluster: Cluster, number: int, ports: set[int], enough: int) -> set[int]:
    """Those of a host's ports that the stranger reaches."""
    host = cluster.network.address(number)
    words = [sys.executable, "-c", CONNECT, host, json.dumps(sorted(ports)), str(enough)]
    done = subprocess.run(
        [*cluster.network.inside(STRANGER), *words], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def fence(cluster: Cluster, number: int) -> None:
    """Loads the rules that the command prints on a host."""
    port_range = f"{FIRST_TASK_PORT}-{LAST_TASK_PORT}"
    options = ("--hosts", cluster.hosts_file, "--listen", cluster.network.target(number))
    process = cluster.commands.start("nhop-agent", "firewall", *options, "--port-range", port_range)
    rules, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    load = [*cluster.network.inside(number), "nft", "-f", "-"]
    subprocess.run(load, input=rules, text=True, check=True)


def test_task_ports_are_open_only_while_an_attempt_runs(commands: Commands) -> None:
    with cluster_of(1, commands) as cluster:
        cluster.start("--slots", 2)
        assert listening(cluster, 1) == {AGENT_PORT}
        running = cluster.start_coordinator(*STUDY)
        commands.wait_for(lambda: len(listening(cluster, 1)) == 4, "a parameter server and two workers")
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
        assert running.returncode == 130
        assert listening(cluster, 1) == {AGENT_PORT}


@pytest.mark.deploy
@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft (Debian: nftables)")
def test_a_stranger_reaches_no_task_of_a_fenced_study(commands: Commands) -> None:
    with cluster_of(STRANGER, commands) as cluster:
        for number in (1, 2):
            cluster.start_agent(number, "--slots", 1)
        cluster.list_hosts(1, 2)
        for number in (1, 2):
            fence(cluster, number)
        running = cluster.start_coordinator(*STUDY)

        def ports() -> dict[int, set[int]]:
            assert running.poll() is None, running.communicate()
            return {number: listening(cluster, number) for number in (1, 2)}

        def trains() -> bool:
            return sum(map(len, ports().values())) == 5

        commands.wait_for(trains, "two agents, a parameter server, and two workers")
        for number in (1, 2):
            assert reached(cluster, number, ports()[number], 1) == {AGENT_PORT}
        opened = ports()[1]
        # The rules are what keeps it out.
        subprocess.run([*cluster.network.inside(1), "nft", "delete", "table", "inet", "nhop"], check=True)
        assert reached(cluster, 1, opened, len(opened)) == opened
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
        assert running.returncode == 130

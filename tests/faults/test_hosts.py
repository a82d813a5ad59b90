"""Hosts that vanish, fall silent, come back, join and leave, with addresses of their own behind a router."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from benchmarks import network
from tests.cluster import GRACES, Cluster, cluster_of
from tests.e2e.conftest import Commands, summary

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not network.usable(), reason="network namespaces need root and iproute2"),
]

HOST_LIMIT = 10
"""Seconds after which a host counts as lost."""

STUDY = (
    *("with", "opt_stages=[[6000,6]]", "cluster={ps: 1, workers: 2}", "placement=spread", "seed=5"),
    *("opt_tolerance=0", "train_tolerance=0", *GRACES),
)


class Run:
    """A study under way: its lines as they come, with their times."""

    def __init__(self, cluster: Cluster, *arguments: object) -> None:
        self.cluster = cluster
        self.process = cluster.start_coordinator(*STUDY, *arguments, "--host-limit", HOST_LIMIT)
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line))

    def said(self, *words: str) -> float | None:
        """When a line with all these words came first."""
        return next((at for at, line in list(self.lines) if all(word in line for word in words)), None)

    def wait_until_said(self, *words: str, seconds: float = 120.0) -> float:
        at: float = self.cluster.commands.wait_for(lambda: self.said(*words), " ".join(words), seconds)
        return at

    def wait_for_tasks(self, number: int) -> None:
        """Until the host trains."""
        self.cluster.commands.wait_for(lambda: self.cluster.tasks(number), "tasks", 120.0)

    def finish(self, seconds: float = 240.0) -> str:
        assert self.process.wait(seconds) == 0, self.text
        self._reader.join(10.0)
        found = summary(self.cluster.output)
        assert found["status"] == "completed"
        assert found["trials"] == {"completed": 6, "pruned": 0, "failed": 0, "stopped": 0}
        assert (self.cluster.output / "best_model.keras").exists()
        self.cluster.check_nothing_is_lost()
        for number in self.cluster.numbers:
            assert self.cluster.tasks(number) == []
        return self.text

    @property
    def text(self) -> str:
        return "".join(line for _, line in list(self.lines))


@pytest.fixture
def cluster(commands: Commands) -> Iterator[Cluster]:
    with cluster_of(3, commands) as cluster:
        yield cluster


def attempts_of(cluster: Cluster) -> dict[int, int]:
    return dict(cluster.rows("SELECT number, attempts FROM trials"))


def kill_moment(cluster: Cluster, number: int, gone: threading.Event, at: list[float]) -> None:
    """Notes when the last task of a host has gone."""
    while not gone.is_set():
        if not cluster.tasks(number):
            at.append(time.monotonic())
            return
        time.sleep(0.05)


def test_a_host_is_unplugged_and_plugged_in_again(cluster: Cluster):
    cluster.start("--slots", 1)
    run = Run(cluster)
    run.wait_for_tasks(2)
    two = cluster.network.target(2)
    cut = time.monotonic()
    cluster.network.cut(2)
    cluster.commands.wait_for(lambda: not cluster.tasks(2), "the end of the tasks on the host", 30.0)
    gone = time.monotonic()
    lost = run.wait_until_said(f"host {two} is lost")
    assert gone < lost, "its tasks still ran when their trial was given to others"
    cluster.network.heal(2)
    healed = time.monotonic()
    back = run.wait_until_said(f"host {two} is back")
    print(f"tasks gone after {gone - cut:.1f} s, host lost after {lost - cut:.1f} s")
    print(f"back {back - healed:.1f} s after the cut was healed")
    run.finish()
    later = {host for trial in cluster.trials() for host in trial["hosts"].split()}
    assert two in later, "the host was not used again"
    late = summary(cluster.output)["late_messages"]
    assert late > 0, "what the host still had to say was not refused, or not counted"


def test_short_silences_change_nothing(cluster: Cluster):
    rng = random.Random(
        seed := int(os.environ.get("NHOP_FAULTS_SEED", random.SystemRandom().randrange(10**6)))
    )
    print(f"NHOP_FAULTS_SEED={seed}")
    cluster.start("--slots", 1)
    run = Run(cluster)
    run.wait_for_tasks(2)
    for _ in range(4):
        number = rng.choice((1, 2, 3))
        cluster.network.cut(number)
        time.sleep(rng.uniform(0.5, 2.0))  # how long it is silent is what is tested
        cluster.network.heal(number)
        time.sleep(rng.uniform(1.0, 3.0))
    run.finish()
    assert "is lost" not in run.text
    assert set(attempts_of(cluster).values()) == {1}
    assert summary(cluster.output)["late_messages"] == 0


@pytest.mark.parametrize("cut", ["cut_towards", "cut_from"])
def test_a_cut_in_one_direction_is_a_cut(cluster: Cluster, cut: str):
    cluster.start("--slots", 1)
    run = Run(cluster)
    run.wait_for_tasks(3)
    getattr(cluster.network, cut)(3)
    cluster.commands.wait_for(lambda: not cluster.tasks(3), "the end of the tasks on the host", 30.0)
    gone = time.monotonic()
    lost = run.wait_until_said(f"host {cluster.network.target(3)} is lost")
    assert gone < lost, "its tasks still ran when their trial was given to others"
    cluster.network.heal(3)
    run.wait_until_said(f"host {cluster.network.target(3)} is back")
    run.finish()


def test_an_agent_that_is_stopped_and_continued_says_nothing_that_counts(cluster: Cluster):
    cluster.start("--slots", 1)
    run = Run(cluster)
    run.wait_for_tasks(2)
    agent = cluster.agents[2]
    agent.send_signal(signal.SIGSTOP)
    try:
        cluster.commands.wait_for(lambda: not cluster.tasks(2), "the orphans' own end", 30.0)
        gone = time.monotonic()
        lost = run.wait_until_said(f"host {cluster.network.target(2)} is lost")
    finally:
        agent.send_signal(signal.SIGCONT)
    assert gone < lost, "its tasks still ran when their trial was given to others"
    run.wait_until_said(f"host {cluster.network.target(2)} is back")
    run.finish()
    assert summary(cluster.output)["late_messages"] > 0
    again = [trial for trial, attempts in attempts_of(cluster).items() if attempts > 1]
    assert len(again) == 1, "one trial ran there, and is tried again once"


def test_hosts_join_and_leave_a_study(cluster: Cluster):
    cluster.start("--slots", 1)
    cluster.list_hosts(1, 2)
    run = Run(cluster)
    run.wait_for_tasks(1)
    cluster.list_hosts(2, 3)
    run.process.send_signal(signal.SIGHUP)
    one, three = cluster.network.target(1), cluster.network.target(3)
    run.wait_until_said(f"host {three} has joined")
    run.wait_until_said(f"host {one} has left")
    cluster.agents[1].send_signal(signal.SIGTERM)  # it is not needed any more
    assert cluster.agents[1].wait(10) == 0
    run.finish()
    assert set(attempts_of(cluster).values()) == {1}, "what ran on the host that left was not let finish"
    assert three in {host for trial in cluster.trials() for host in trial["hosts"].split()}


def test_a_study_begins_without_a_host_that_is_down(cluster: Cluster):
    cluster.start_agent(1, "--slots", 1)
    cluster.start_agent(2, "--slots", 1)
    cluster.list_hosts(1, 2, 3)
    run = Run(cluster, "--min-hosts", 2)
    run.wait_until_said("waiting for host", cluster.network.target(3))
    run.wait_for_tasks(1)
    cluster.start_agent(3, "--slots", 1)
    run.wait_until_said(f"host {cluster.network.target(3)} has joined")
    run.finish()

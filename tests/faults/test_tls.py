"""Certificates and an authority that are replaced while trials are spread over hosts."""

from __future__ import annotations

import os
import random
import time

import pytest

from benchmarks import network
from nhop.security.folder import load
from nhop.security.identity import Role
from tests.certificates import utc_now
from tests.cluster import GRACES, Cluster, cluster_of
from tests.e2e.conftest import Commands, summary

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not network.usable(), reason="network namespaces need root and iproute2"),
]

TRIALS = 12
STUDY = (
    *("with", f"opt_stages=[[1500,{TRIALS}]]", "cluster={ps: 1, workers: 2}", "placement=spread", "seed=5"),
    *("opt_tolerance=0", "train_tolerance=0", *GRACES),
)


def check(cluster: Cluster) -> None:
    assert summary(cluster.output)["trials"]["completed"] == TRIALS
    assert {trial["attempts"] for trial in cluster.trials()} == {"1"}
    cluster.check_nothing_is_lost()
    for number in cluster.numbers:
        assert cluster.tasks(number) == []


def test_certificates_are_replaced_all_the_time(commands: Commands) -> None:
    seed = int(os.environ.get("NHOP_SEED", random.randrange(1 << 30)))
    print(f"NHOP_SEED={seed}")
    rng = random.Random(seed)
    with cluster_of(3, commands) as cluster:
        cluster.make_certificates()
        cluster.start("--slots", 1)
        replace = renewals(cluster)
        coordinator = cluster.start_coordinator(*STUDY)
        count = 0
        while coordinator.poll() is None:
            cluster.certificates(*rng.choice(replace))
            count += 1
            time.sleep(rng.uniform(0.0, 2.0))
        out, err = coordinator.communicate(timeout=10)
        print(f"{count} certificates were replaced")
        assert coordinator.returncode == 0, err
        assert "was read again" in out
        check(cluster)


def test_an_authority_is_replaced(commands: Commands) -> None:
    """Both are trusted first, then all certificates are of the new one, then the old one goes."""
    with cluster_of(3, commands) as cluster:
        cluster.make_certificates()
        cluster.start("--slots", 1)
        old = cluster.certs
        assert old is not None
        new = commands.folder / "new"
        cluster.certificates("init", cluster.network.address(0), folder=new)
        coordinator = cluster.start_coordinator(*STUDY)
        commands.wait_for(lambda: cluster.tasks(1), "tasks", 120.0)
        both = (old / "ca.crt").read_bytes() + (new / "ca.crt").read_bytes()
        places = ["coordinator", *(f"agents/{cluster.network.address(number)}" for number in cluster.numbers)]
        for place in places:
            (old / place / "ca.crt").write_bytes(both)
        settle()
        (new / "ca.crt").write_bytes(both)
        cluster.certificates("issue", "--hosts", cluster.hosts_file, folder=new)
        for place in places:
            for name in ("tls.key", "tls.crt"):
                (old / place / name).write_bytes((new / place / name).read_bytes())
        settle()
        only = both[len((old / "ca.crt").read_bytes()) :]
        for place in places:
            (old / place / "ca.crt").write_bytes(only)
        settle()
        assert coordinator.poll() is None, "the study was over before its authority was replaced"
        out, err = coordinator.communicate(timeout=400)
        assert coordinator.returncode == 0, err
        assert out.count("was read again") >= 3
        check(cluster)


def settle() -> None:
    """All look at their files every two seconds: what this waits for is the time itself."""
    time.sleep(5.0)


def renewals(cluster: Cluster) -> list[tuple[object, ...]]:
    assert cluster.certs is not None
    owner = load(cluster.certs / "coordinator", frozenset({Role.COORDINATOR}), utc_now()).identity
    agents = [("issue", "agent", cluster.network.address(number)) for number in cluster.numbers]
    return [*agents, ("issue", "coordinator", owner.name)]

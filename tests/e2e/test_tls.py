"""TLS everywhere, between hosts with addresses of their own: made by two commands, and kept up meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from benchmarks import network
from nhop.security.folder import load
from nhop.security.identity import Role
from tests.certificates import utc_now
from tests.cluster import Cluster, cluster_of
from tests.e2e.conftest import ROOT, Commands, summary

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not network.usable(), reason="network namespaces need root and iproute2"),
]

HOSTS = 3
TRIALS = 3
STRANGER = 4
"""The host without an agent, where clients and others are."""

PORT = 7900


def call(cluster: Cluster, *words: object) -> subprocess.Popen[str]:
    """One of ``tests.fakes.callers``, on the fourth host."""
    program = ROOT / "tests" / "fakes" / "callers.py"
    inside = cluster.network.inside(STRANGER)
    return cluster.commands.start(sys.executable, "-P", program, *words, inside=inside)


def said(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()


def follow_new_certificate(cluster: Cluster, address: str, folder: Path) -> None:
    """Waits until new connections are shown what is in a folder."""
    assert cluster.certs is not None
    new = x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes()).serial_number
    client = cluster.certs / "client"
    cluster.commands.wait_for(
        lambda: said(call(cluster, "serial", address, client)) == str(new), f"the new one of {address}", 30.0
    )


def test_a_study_over_three_hosts(commands: Commands) -> None:
    config = {
        "opt_stages": [[800, TRIALS]],
        "parallel_trials": 1,
        "cluster": {"ps": 1, "workers": 2},
        "placement": "spread",
        "opt_tolerance": 0,
        "train_tolerance": 0,
        "stop_grace": 0.5,
        "terminate_grace": 0.5,
    }
    with cluster_of(STRANGER, commands, HOSTS) as cluster:
        cluster.make_certificates()
        assert cluster.certs is not None
        cluster.certificates("issue", "coordinator", "eve")
        others = commands.folder / "others"
        cluster.certificates("init", folder=others)
        with (others / "client" / "ca.crt").open("ab") as file:
            file.write((cluster.certs / "ca.crt").read_bytes())
        cluster.start("--slots", 1)
        address = f"{cluster.network.address(0)}:{PORT}"
        coordinator = cluster.start_coordinator("--serve", address)
        assert coordinator.stdout is not None
        assert any("serving" in line for line in coordinator.stdout)

        # A client of ours is served, from another host.
        client = call(cluster, "study", address, cluster.certs / "client", json.dumps(config))
        assert client.stdout is not None
        study_id = client.stdout.readline().strip()
        assert study_id, client.communicate(timeout=30)
        attempts = cluster.state(1) / "attempts"
        commands.wait_for(lambda: list(attempts.glob("*-t1-a1/*.reports")), "the first trial")
        (running,) = attempts.glob("*-t1-a1")
        run_id = running.name.removesuffix("-t1-a1")

        # New certificates in the middle, of an agent and of the coordinator.
        host = cluster.network.address(1)
        cluster.certificates("issue", "agent", host)
        owner = load(cluster.certs / "coordinator", frozenset({Role.COORDINATOR}), utc_now()).identity
        cluster.certificates("issue", "coordinator", owner.name)
        for place, own in ((cluster.network.target(1), f"agents/{host}"), (address, "coordinator")):
            follow_new_certificate(cluster, place, cluster.certs / own)
        assert client.poll() is None, "the study was over before its certificates were replaced"

        # A client of another authority is not.
        stranger = call(cluster, "list", address, others / "client")
        _, error = stranger.communicate(timeout=60)
        assert stranger.returncode == 1
        assert error.count("\n") == 1
        assert f"{address}: it ends the connection when it sees our certificate" in error

        # Nor can another coordinator do anything about the study.
        eve = cluster.certs / "coordinators" / "eve"
        targets = [cluster.network.target(number) for number in cluster.numbers]
        tried = json.loads(said(call(cluster, "trespass", eve, run_id, *targets)))
        denied = dict.fromkeys(("stop", "log", "events"), "PERMISSION_DENIED")
        assert tried == [{"inventory": "OK", **denied}] * HOSTS

        assert said(client) == "completed"
        cluster.output /= study_id
        result = summary(cluster.output)
        assert result["trials"] == {"completed": TRIALS, "pruned": 0, "failed": 0, "stopped": 0}
        assert {trial["attempts"] for trial in cluster.trials()} == {"1"}
        assert max(len(trial["hosts"].split()) for trial in cluster.trials()) == HOSTS
        cluster.check_nothing_is_lost()
        coordinator.terminate()
        out, err = coordinator.communicate(timeout=30)
        assert (coordinator.returncode, err) == (0, "")
        assert "refused a connection from 10.77.4.2:" in out
        assert "was read again" in out
        cluster.agents[1].terminate()
        _, log = cluster.agents[1].communicate(timeout=30)
        for method in ("StopAttempt", "ReadLog", "StreamEvents"):
            assert f"refused /nhop.v1.AgentService/{method} to 10.77.4.2:" in log
        assert f"(coordinator eve): study '{run_id}' is another coordinator's" in log

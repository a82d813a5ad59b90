"""A study in the pods of deploy/kubernetes, in the way that tests/containers.py plays them."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import network
from benchmarks.network import Network
from tests import containers
from tests.containers import Pod
from tests.deploy.manifests import WORKLOADS, pod
from tests.e2e.conftest import MARKER, SCRIPTS, Commands, summary

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.deploy,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not network.usable(), reason="network namespaces need root and iproute2"),
    pytest.mark.skipif(
        not containers.usable(), reason="needs overlay mounts, and that another user can run nhop"
    ),
]

AGENTS = ("nhop-agent-0", "nhop-agent-1")
HOSTS = "".join(f"{name}.nhop-agent\n" for name in AGENTS)
STUDY = "opt_stages: [[100, 2]]\ncluster: {ps: 1, workers: 2}\nplacement: spread\nopt_tolerance: 0\n"


def certificates(folder: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What certificates.sh puts into the secrets of the agents and of the coordinator."""
    (folder / "hosts.txt").write_text(HOSTS)
    certs = folder / "certs"
    for words in (
        ["init"],
        ["issue", "--hosts", folder / "hosts.txt"],
        ["issue", "coordinator", "kubernetes"],
    ):
        subprocess.run(
            [SCRIPTS / "nhop-coordinator", "certs", *words, "--dir", certs], check=True, capture_output=True
        )
    agents = {"ca.crt": (certs / "ca.crt").read_bytes()}
    for name in AGENTS:
        for kind in ("crt", "key"):
            agents[f"{name}.{kind}"] = (certs / "agents" / f"{name}.nhop-agent" / f"tls.{kind}").read_bytes()
    own = certs / "coordinators" / "kubernetes"
    return agents, {path.name: path.read_bytes() for path in own.iterdir()}


@contextmanager
def started(commands: Commands, each: Pod) -> Iterator[subprocess.Popen[str]]:
    """The main container of a pod."""
    each.prepare()
    (container,) = pod(*WORKLOADS["nhop-agent" not in each.name])["containers"]
    command, environment = each.command(container)
    with (commands.folder / f"{each.name}.log").open("w") as log:
        process = subprocess.Popen(
            command,
            env=environment | {MARKER: commands.mark},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_a_study_runs_in_the_pods(commands: Commands) -> None:
    folder = commands.folder
    agents, coordinator = certificates(folder)
    with Network(2).made() as net:
        pods = [
            Pod(name, pod(*WORKLOADS[0]), folder / name, net, number, {"secret": agents})
            for number, name in enumerate(AGENTS, start=1)
        ]
        contents = {
            "secret": coordinator,
            "hosts": {"hosts.txt": HOSTS.encode()},
            "study": {"study.yaml": STUDY.encode()},
        }
        job = Pod("job", pod(*WORKLOADS[1]), folder / "job", net, 0, contents)
        with started(commands, pods[0]), started(commands, pods[1]), started(commands, job) as process:
            status = process.wait(120)
            log = (folder / "job.log").read_text()
            assert status == 0, log + (folder / f"{AGENTS[0]}.log").read_text()
        key = pods[0].volumes["tls"] / "tls.key"
        assert (key.stat().st_uid, key.stat().st_mode & 0o777) == (10001, 0o400)
        assert not (pods[0].volumes["tls"] / f"{AGENTS[1]}.key").exists()
    (run,) = (job.volumes["results"] / "runs").iterdir()
    assert summary(run)["trials"]["completed"] == 2, log
    with (run / "trials.csv").open() as file:
        used = {host for row in csv.DictReader(file) for host in row["hosts"].split()}
    assert used == {f"{name}.nhop-agent:7001" for name in AGENTS}
    assert "4 slots, TLS" in (folder / f"{AGENTS[0]}.log").read_text()
    assert not any((folder / AGENTS[0] / "base").iterdir())  # mounts are gone with their namespace

"""What the README has a user do, on hosts of their own: certificates, units, rules, a study."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agent.units import FIREWALL
from benchmarks import network
from benchmarks.network import AGENT_PORT, FIRST_TASK_PORT, LAST_TASK_PORT
from tests.agent.test_firewall import CONNECT
from tests.cluster import GRACES, Cluster, cluster_of
from tests.e2e.conftest import MARKER, ROOT, SCRIPTS, Commands, summary
from tests.e2e.test_firewall import listening
from tests.e2e.test_unit import needs_systemd, user_number
from tests.users import Users, needs_users, some_users

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.deploy,
    pytest.mark.timeout(240),
    needs_users,
    needs_systemd,
    pytest.mark.skipif(not network.usable(), reason="network namespaces need root and iproute2"),
    pytest.mark.skipif(shutil.which("ss") is None, reason="needs ss (Debian: iproute2)"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft (Debian: nftables)"),
]
STRANGER = 4
CLUSTER = ("cluster={ps: 1, workers: 2}", "placement=spread", "opt_tolerance=0", *GRACES)
SHORT = ("with", "opt_stages=[[200,2]]", *CLUSTER)
LONG = ("with", "opt_stages=[[1000000,1]]", "train_tolerance=0", *CLUSTER)


class Host:
    """One that an agent is installed on: ``root`` takes the place of its ``/``."""

    def __init__(self, cluster: Cluster, number: int, users: Users) -> None:
        self.cluster = cluster
        self.number = number
        self.root = users.folder / f"root-{number}"
        self.state = users.folder / f"state-{number}"
        self.users = users

    def install(self) -> None:
        """The command, and what it says to do next."""
        options = ("--listen", self.cluster.network.target(self.number), "--slots", 1)
        ports = ("--port-range", f"{FIRST_TASK_PORT}-{LAST_TASK_PORT}")
        fence = ("--hosts", self.cluster.hosts_file, "--coordinator", self.cluster.network.address(0))
        command = ("--root", self.root, "--command", SCRIPTS / "nhop-agent")
        process = self.cluster.commands.start("nhop-agent", "install", *command, *options, *ports, *fence)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
        sysusers = ["systemd-sysusers", f"--root={self.root}", f"{self.root}/etc/sysusers.d/nhop.conf"]
        subprocess.run(sysusers, check=True, capture_output=True)
        assert self.cluster.certs is not None
        tls = self.root / "etc/nhop/tls"
        shutil.copytree(self.cluster.certs / "agents" / self.cluster.network.address(self.number), tls)
        user = user_number(self.root, "nhop")
        for path in (tls, *tls.iterdir()):
            os.chown(path, user, user)
            path.chmod(0o700 if path.is_dir() else 0o600)
        for path in (self.root, self.root / "etc", self.root / "etc/nhop"):
            path.chmod(0o755)

    @contextmanager
    def served(self) -> Iterator[None]:
        """The service, started by its unit, its rules loaded before as the unit has it."""
        inside = self.cluster.network.inside(self.number)
        subprocess.run([*inside, "nft", "-f", f"{self.root}{FIREWALL}"], check=True)
        words = ("unshare", "-m", sys.executable, "-m", "tests.as_systemd", self.root, self.state)
        given = (f"{MARKER}={self.cluster.commands.mark}", f"PYTHONPATH={ROOT}")
        log = self.users.folder / f"agent-{self.number}.log"
        agent = subprocess.Popen(
            [*map(str, (*inside, *self.users.anybody(), *words)), *given],
            stdout=log.open("w"), stderr=subprocess.STDOUT, cwd=ROOT,
        )  # fmt: skip
        try:
            self.cluster.commands.wait_for(lambda: "listens on" in log.read_text(), "the agent to listen")
            yield
            agent.terminate()
            assert agent.wait(30) == 0
        finally:
            agent.kill()
            agent.wait()
            print(log.read_text())


@contextmanager
def services(hosts: list[Host]) -> Iterator[None]:
    if not hosts:
        yield
        return
    with hosts[0].served(), services(hosts[1:]):
        yield


def reached(cluster: Cluster, number: int, ports: set[int], *, origin: int, enough: int = 1) -> set[int]:
    """Those of a host's ports that somebody at ``origin`` can connect to."""
    host = cluster.network.address(number)
    words = [sys.executable, "-c", CONNECT, host, json.dumps(sorted(ports)), str(enough)]
    done = subprocess.run(
        [*cluster.network.inside(origin), *words], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_three_services_with_tls_and_rules_run_a_study_and_let_no_stranger_in(commands: Commands) -> None:
    with cluster_of(STRANGER, commands, agents=3) as cluster, some_users() as users:
        cluster.make_certificates()
        hosts = [Host(cluster, number, users) for number in cluster.numbers]
        for host in hosts:
            host.install()
        with services(hosts):
            done = cluster.coordinator(*SHORT)
            assert done.returncode == 0, done.stdout + done.stderr
            assert summary(cluster.output)["trials"]["completed"] == 2
            assert all(len(trial["hosts"].split()) > 1 for trial in cluster.trials())
            cluster.check_nothing_is_lost()

            cluster.output = commands.folder / "second"
            running = cluster.start_coordinator(*LONG)

            def ports() -> dict[int, set[int]]:
                assert running.poll() is None, running.communicate()
                return {number: listening(cluster, number) for number in cluster.numbers}

            commands.wait_for(lambda: sum(map(len, ports().values())) == 6, "three agents and three tasks")
            workers = commands.wait_for(lambda: commands.processes("nhop-worker"), "a worker")
            assert {each.uids().real for each in workers} == {user_number(hosts[0].root, "nhop-task")}
            for number, opened in ports().items():
                assert AGENT_PORT in opened
                assert reached(cluster, number, opened, origin=STRANGER) == set()
                assert reached(cluster, number, opened, origin=0) == {AGENT_PORT}

            stranger = commands.folder / "stranger"
            cluster.certificates("init", folder=stranger)
            refused = commands.coordinator(
                *("--hosts", cluster.hosts_file, "--tls", stranger / "coordinator", "--wait-hosts", 1),
                *("--min-hosts", 1, "--dry-run"),
                inside=cluster.network.inside(0),
            )
            assert refused.returncode == 3
            assert "of another authority than our ca.crt" in refused.stderr, refused.stderr

            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=60)
            assert running.returncode == 130, out + err
            commands.wait_for(
                lambda: all(
                    opened == {AGENT_PORT} for opened in map(listening, [cluster] * 3, cluster.numbers)
                ),
                "task ports to be closed",
            )

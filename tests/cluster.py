"""Agents on hosts of their own: network namespaces behind a router, with a coordinator in another one."""

from __future__ import annotations

import csv
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.network import FIRST_TASK_PORT, LAST_TASK_PORT, Network
from tests.e2e.conftest import Commands

GRACES = ("stop_grace=0.5", "terminate_grace=0.5")
"""Settings with which tasks of a lost host end soon, so that ``--host-limit`` may be short."""


class Cluster:
    """Hosts 1, 2, ... with an agent each; the coordinator is at home. ``agents`` of them: others are empty.

    After ``make_certificates`` all speak TLS.
    """

    def __init__(self, network: Network, commands: Commands, agents: int | None = None) -> None:
        self.network = network
        self.commands = commands
        self.agents: dict[int, subprocess.Popen[str]] = {}
        self.hosts_file = commands.folder / "hosts.txt"
        self.numbers = range(1, 1 + (agents or len(network.namespaces) - 1))
        self.certs: Path | None = None
        self.output = commands.folder / "out"

    def make_certificates(self) -> None:
        """With the two commands that users are told of."""
        self.certs = self.commands.folder / "certs"
        self.list_hosts(*self.numbers)
        self.certificates("init", self.network.address(0))
        self.certificates("issue", "--hosts", self.hosts_file)

    def certificates(self, *words: object, folder: Path | None = None) -> None:
        """``nhop-coordinator certs``, of the cluster's authority or another one."""
        done = self.commands.coordinator("certs", *words, "--dir", folder or self.certs)
        assert done.returncode == 0, done.stderr

    def security(self, name: str) -> tuple[object, ...]:
        """The options of who has a folder of that name among the certificates."""
        return ("--insecure",) if self.certs is None else ("--tls", self.certs / name)

    def state(self, number: int) -> Path:
        return self.commands.folder / f"state-{number}"

    def start_agent(self, number: int, *options: object) -> None:
        self.agents[number] = self.commands.agent(
            *(
                "--listen",
                self.network.target(number),
                *self.security(f"agents/{self.network.address(number)}"),
            ),
            *("--state-dir", self.state(number)),
            *("--port-range", f"{FIRST_TASK_PORT}-{LAST_TASK_PORT}", *options),
            inside=self.network.inside(number),
        )

    def start(self, *options: object) -> None:
        """An agent on every host, and the hosts file."""
        for number in self.numbers:
            self.start_agent(number, *options)
        self.list_hosts(*self.numbers)

    def list_hosts(self, *numbers: int) -> None:
        self.hosts_file.write_text("".join(f"{self.network.target(number)}\n" for number in numbers))

    def arguments(self, *arguments: object) -> tuple[object, ...]:
        security = self.security("coordinator")
        return (*arguments, "--hosts", self.hosts_file, *security, "--output", self.output)

    def coordinator(self, *arguments: object, timeout: float = 100.0) -> subprocess.CompletedProcess[str]:
        return self.commands.coordinator(
            *self.arguments(*arguments), timeout=timeout, inside=self.network.inside(0)
        )

    def start_coordinator(self, *arguments: object) -> subprocess.Popen[str]:
        return self.commands.start(
            "nhop-coordinator", *self.arguments(*arguments), inside=self.network.inside(0)
        )

    def tasks(self, number: int) -> list[Any]:
        """The tasks that run on a host."""
        pids = set(self.network.processes(number))
        found = self.commands.processes("nhop-worker") + self.commands.processes("nhop-ps")
        return [process for process in found if process.pid in pids]

    # --- what is left behind ------------------------------------------------------------------

    def trials(self) -> list[dict[str, str]]:
        with (self.output / "trials.csv").open() as file:
            return list(csv.DictReader(file))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Of study.db, also while the study runs."""
        path = (self.output / "study.db").absolute().as_uri()
        with closing(sqlite3.connect(f"{path}?mode=ro", uri=True)) as database:
            return database.execute(query).fetchall()

    def check_nothing_is_lost(self) -> None:
        """No report of a completed attempt is missing, and no trial has two results."""
        numbers = "count(*), min(sequence), max(sequence)"
        query = f"SELECT trial, attempt, source, {numbers} FROM reports GROUP BY 1, 2, 3"
        done = set(
            self.rows("SELECT trial, attempt FROM tasks WHERE task = 'worker/0' AND status = 'COMPLETED'")
        )
        for trial, attempt, task, count, first, last in self.rows(query):
            if (trial, attempt) in done:
                # The first record of a task says that it is ready.
                assert (first, last) == (2, count + 1), f"reports of {task} of trial {trial} are missing"
        assert len({trial for trial, _ in done}) == len(done), "a trial was completed twice"


@contextmanager
def cluster_of(hosts: int, commands: Commands, agents: int | None = None) -> Iterator[Cluster]:
    """A cluster of that many hosts, whose agents are ended before their network is.

    ``agents``: so many of the hosts have one; all by default.
    """
    with Network(hosts).made() as network:
        cluster = Cluster(network, commands, agents)
        try:
            yield cluster
        finally:
            left = commands.end()
            assert left == [], "processes left over"

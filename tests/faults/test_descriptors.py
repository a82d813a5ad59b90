"""Descriptors run out, thousands connect: row 22 of what must be survived."""

from __future__ import annotations

import contextlib
import csv
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Commands

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

CONNECTIONS = 2000
FILES = 400
"""Descriptors that the agent may have: far fewer than there are connections."""


@pytest.fixture(autouse=True)
def _room_for_us() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def connections(port: int, number: int) -> Iterator[list[socket.socket]]:
    """So many open connections that say nothing; those that are refused are tried no more."""
    found: list[socket.socket] = []
    try:
        for _ in range(number):
            one = socket.socket()
            one.setblocking(False)
            found.append(one)
            one.connect_ex(("127.0.0.1", port))
        yield found
    finally:
        for one in found:
            one.close()


def wait_for_task(commands: Commands) -> None:
    """Until the first trial trains."""
    commands.wait_for(lambda: commands.processes("nhop-worker"), "a task", 120.0)


def test_an_agent_without_descriptors_recovers_and_its_trials_go_on(commands: Commands, tmp_path: Path):
    port = free_port()
    commands.agent(
        *("--listen", f"127.0.0.1:{port}", "--slots", 1, "--state-dir", tmp_path / "state"),
        inside=("prlimit", f"--nofile={FILES}:{FILES}"),
    )
    (tmp_path / "hosts.txt").write_text(f"127.0.0.1:{port}\n")
    study = commands.start(
        *("nhop-coordinator", "with", "opt_stages=[[60000,2]]", "cluster={ps: 0, workers: 1}"),
        *("opt_tolerance=0", "train_tolerance=0", "--hosts", "hosts.txt", "--output", "out"),
    )
    wait_for_task(commands)
    (agent,) = commands.processes("nhop-agent")
    with connections(port, CONNECTIONS):
        commands.wait_for(lambda: agent.num_fds() >= FILES - 1, "the last descriptor", 20.0)
        time.sleep(10.0)  # how long it goes without is what is tested
        assert study.poll() is None
    begun = time.monotonic()
    out, err = study.communicate(timeout=300)
    print(f"the study ended {time.monotonic() - begun:.1f} s after the connections did")
    assert study.returncode == 0, out + err
    with (tmp_path / "out" / "trials.csv").open() as file:
        ends = [(trial["state"], trial["attempts"]) for trial in csv.DictReader(file)]
    assert ends == [("completed", "1")] * 2


def test_a_served_coordinator_stands_two_thousand_connections(commands: Commands, tmp_path: Path):
    import nhop

    port = free_port()
    served = commands.start("nhop-coordinator", "--serve", f"127.0.0.1:{port}", "--output", "runs")
    assert served.stdout is not None
    assert "serving" in served.stdout.readline()
    with nhop.Client(f"127.0.0.1:{port}") as client:
        study = client.submit(
            {"opt_stages": [[5000, 2]], "cluster": {"ps": 0, "workers": 1}, "opt_tolerance": 0}
        )
        wait_for_task(commands)
        with connections(port, CONNECTIONS):
            commands.wait_for(
                lambda: client.get(study.study_id).counts.completed == 2, "the end of the study", 120.0
            )

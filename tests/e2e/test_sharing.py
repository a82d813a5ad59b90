"""Several coordinators, several agents, and ports that someone else takes; with real TensorFlow processes."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.agent_link import AgentLink
from coordinator.config import load
from coordinator.directory import StudyDirectory
from coordinator.domain import StudyState, TrialState
from coordinator.hosts import AgentAddress
from coordinator.runtime import run_study
from tests.e2e.conftest import Commands, summary

pytestmark = pytest.mark.e2e

SMALL = ("data_instances=200", "batch_size=20", "hidden_layers=[1,2]", "nodes_per_layer=[2,3]")


def start_agents(commands: Commands, slots: int, number: int = 2) -> None:
    """Starts agents on sockets, and lists them in hosts.txt."""
    addresses = [f"unix:{commands.temporary}/{n}.sock" for n in range(number)]
    for n, address in enumerate(addresses):
        commands.agent("--listen", address, "--slots", slots, "--state-dir", f"agent{n}")
    (commands.folder / "hosts.txt").write_text("\n".join(addresses))


def test_two_coordinators_with_room_for_one_and_a_half_trials(commands: Commands) -> None:
    start_agents(commands, slots=3)
    words = ("with", "opt_stages=[[30,2]]", "cluster={ps: 1, workers: 4}", "placement=spread", *SMALL)
    words += ("max_attempts=1", "--hosts", "hosts.txt", "--output")
    both = {name: commands.start("nhop-coordinator", *words, name) for name in ("first", "second")}
    for name, process in both.items():
        out, err = process.communicate(timeout=110)
        assert process.returncode == 0, out + err
        found = summary(commands.folder / name)
        assert found["trials"] == {"completed": 2, "pruned": 0, "failed": 0, "stopped": 0}
        with (commands.folder / name / "trials.csv").open() as file:
            assert [len(row["hosts"].split()) for row in csv.DictReader(file)] == [2, 2]
    left = [p for name in ("nhop-ps", "nhop-worker") for p in commands.processes(name)]
    assert left == []


def test_a_parameter_server_has_a_free_host_to_itself(commands: Commands) -> None:
    start_agents(commands, slots=2, number=3)
    run = commands.coordinator(
        *("with", "opt_stages=[[30,1]]", "cluster={ps: 1, workers: 2}", "placement=spread", *SMALL),
        *("--hosts", "hosts.txt", "--output", "out"),
    )
    assert run.returncode == 0, run.stderr
    with (commands.folder / "out" / "trials.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert len(row["hosts"].split()) == 3


@contextlib.contextmanager
def listening(port: int) -> Iterator[None]:
    """Someone else has the port, on all interfaces as TensorFlow would."""
    with socket.socket(socket.AF_INET6) as other:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        other.bind(("::", port))
        other.listen()
        yield


async def test_a_port_that_someone_takes_after_its_lease_costs_an_attempt(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"unix:{commands.temporary}/a.sock"
    await asyncio.to_thread(commands.agent, "--listen", address, "--slots", 2, "--state-dir", "agent")
    start = AgentLink._start
    with contextlib.ExitStack() as others:

        async def taken_just_before(self, command, spec):
            if command.attempt.attempt == 1:
                others.enter_context(listening(int(command.ps[0].rpartition(":")[2])))
            return await start(self, command, spec)

        monkeypatch.setattr(AgentLink, "_start", taken_just_before)
        keys = {"opt_stages": [[20, 1]], "cluster": {"ps": 1, "workers": 1}, "data_instances": 200}
        spec = load(keys).to_spec("s1")
        with StudyDirectory.create(tmp_path / "out") as directory:
            result = await run_study(
                spec,
                directory=directory,
                agents=[AgentAddress(address)],
                observer=lambda update: None,
                stop=asyncio.Event(),
            )
    (trial,) = result.trials
    assert (result.study.state, trial.state, trial.attempts) == (
        StudyState.COMPLETED,
        TrialState.COMPLETED,
        2,
    )
    assert any("attempt 1 failed (PORT_TAKEN: ps/0 could not listen on" in note for note in trial.notes)


def test_an_agent_whose_ports_are_all_taken_says_so(commands: Commands) -> None:
    """Here by its own range, which is too small; the coordinator says it at the start."""
    port = 29700 + os.getpid() % 100
    address = f"unix:{commands.temporary}/a.sock"
    ports = ("--port-range", f"{port}-{port + 1}")
    commands.agent("--listen", address, "--slots", 2, "--state-dir", "agent", *ports)
    (commands.folder / "hosts.txt").write_text(address)
    run = commands.coordinator(
        *("with", "opt_stages=[[30,1]]", "cluster={ps: 1, workers: 2}", *SMALL),
        *("--hosts", "hosts.txt", "--output", "out"),
    )
    assert run.returncode == 3
    assert f"2 ports for tasks in all ({address}: {port}-{port + 1})" in run.stderr
    assert "--port-range" in run.stderr


def test_a_second_coordinator_on_an_output_directory_is_refused(commands: Commands) -> None:
    words = ("with", "opt_stages=[[1000000,1]]", "cluster={ps: 0, workers: 1}", *SMALL, "--output", "out")
    first = commands.start("nhop-coordinator", *words)
    commands.wait_for(lambda: commands.processes("nhop-worker"), "the first study")
    second = commands.coordinator(*words)
    assert (second.returncode, second.stderr.count("\n")) == (2, 1)
    assert "another nhop-coordinator writes here; choose another --output" in second.stderr
    assert first.poll() is None
    first.terminate()
    first.communicate(timeout=30)

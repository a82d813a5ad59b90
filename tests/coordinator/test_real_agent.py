"""Whole studies on a real agent, whose tasks are scripted: the files go all the way."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest

from coordinator.domain import Cluster, StageBudget, StudyState, Training, TrialState
from coordinator.fleet import Fleet
from coordinator.hosts import AgentAddress, HostPolicy
from nhop.v1 import agent_pb2
from tests.contract.harness import RealAgent
from tests.coordinator.studies import make_spec


@pytest.fixture
async def agent(tmp_path):
    agent = await RealAgent.launch(tmp_path)
    yield agent
    await agent.close()


@pytest.fixture
async def pair(tmp_path):
    """Two agents as of two hosts."""
    async with contextlib.AsyncExitStack() as stack:
        agents = []
        for name, ports in (("a", [18500, 18549]), ("b", [18550, 18599])):
            (tmp_path / name).mkdir()
            agents.append(await RealAgent.launch(tmp_path / name, listen="127.0.0.1:0", ports=ports))
            stack.push_async_callback(agents[-1].close)
        yield agents


def spec(trials, script, **training):
    common = Training("Regressor", {"script": {"worker/0": script}}, 0.0, **training)
    return make_spec(stages=(StageBudget(10, trials),), training=common)


async def test_the_best_model_reaches_the_output_directory(coordinator, agent):
    script = {"artifacts": {"model.keras": "m" * 3_000_000, "predictions.npz": "p"}}
    result = await coordinator.run(spec(3, script, keep_model=True), agent)
    assert (result.study.state, result.study.model_trial) == (StudyState.COMPLETED, 1)
    assert (coordinator.path / "best_model.keras").stat().st_size == 3_000_000
    assert (coordinator.path / "best_predictions.npz").read_text() == "p"
    assert list((agent.state_dir / "attempts").iterdir()) == []


async def test_two_agents_are_looked_over_and_reach_each_other(pair):
    shown, notices = [], []
    addresses = [AgentAddress(agent.address) for agent in pair]
    fleet = Fleet(addresses, HostPolicy(wait=0.0), notices.append)
    try:
        await fleet.open(Cluster(1, 4), shown.append)
    finally:
        await fleet.close()
    assert [(row.name, row.state, row.ports) for row in shown[0].rows] == [
        (agent.address, "ready", "reached") for agent in pair
    ]
    for row, first in zip(shown[0].rows, (18500, 18550), strict=True):
        assert row.inventory.ports == (first, first + 49)
        assert (row.inventory.task_address, row.inventory.cpu_cores > 0) == ("127.0.0.1", True)
        assert abs(row.inventory.clock_offset) < 1.0
        assert row.inventory.free_disk > 0
        assert row.inventory.python_version != ""


async def test_a_host_without_a_free_port_is_said(pair, tmp_path):
    (tmp_path / "c").mkdir()
    full = await RealAgent.launch(tmp_path / "c", ports=[18600, 18600])
    fleet = Fleet(
        [AgentAddress(pair[0].address), AgentAddress(full.address)], HostPolicy(wait=0.0), lambda notice: None
    )
    shown = []
    try:
        await full.stub.OpenProbe(agent_pb2.OpenProbeRequest())
        await fleet.open(Cluster(1, 4), shown.append)
    finally:
        await fleet.close()
        await full.close()
    (preflight,) = shown
    assert [row.ports for row in preflight.rows] == ["reached", "all in use"]
    assert f"{full.address}: all task ports (18600-18600) are in use now" in preflight.findings.warnings[-1]


async def test_a_checkpoint_reaches_the_next_attempt(coordinator, agent):
    script = {"checkpoint": "weights", "ends_with": "PEER_LOST"}
    study = spec(1, script, checkpoint_every=10)
    result = await coordinator.run(dataclasses.replace(study, max_attempts=2), agent)
    (trial,) = result.trials
    assert (trial.state, trial.attempts) == (TrialState.FAILED, 2)
    assert "attempt 2 goes on from step 10 of attempt 1" in trial.notes
    assert "went on from weights" in trial.notes

"""Two coordinators on the same real agents, whose tasks are scripted."""

from __future__ import annotations

import asyncio

import psutil
import pytest

from coordinator.domain import Cluster, PlacementRule, StageBudget, StudyState, Training
from tests.contract.harness import RealAgent
from tests.coordinator.conftest import Coordinator
from tests.coordinator.studies import make_spec

GANG = Cluster(1, 4)
SLOTS = 3
"""On each of two hosts: room for one and a half gangs."""


@pytest.fixture
async def agents(tmp_path):
    agents = []
    try:
        for name in "ab":
            (tmp_path / name).mkdir()
            agents.append(await RealAgent.launch(tmp_path / name, slots=SLOTS))
        yield agents
    finally:
        for agent in agents:
            await agent.close()


def gangs(trials, rule):
    """Trials of a fifth of a second each; ``max_attempts`` 1: a failed attempt fails its trial."""
    training = Training("Regressor", {"script": {"worker/0": {"runs_for": 0.2}}}, 0.0)
    stages = (StageBudget(10, trials),)
    return make_spec(stages=stages, cluster=GANG, placement=rule, training=training, max_attempts=1)


@pytest.mark.parametrize("rule", PlacementRule)
async def test_both_complete_and_nothing_is_left(tmp_path, agents, rule):
    spec = gangs(5, rule)
    async with asyncio.timeout(60.0):
        results = await asyncio.gather(
            *(Coordinator(tmp_path / f"out{n}").run(spec, *agents, patience=None) for n in range(2))
        )
    for result in results:
        assert result.study.state is StudyState.COMPLETED
        assert [len(trial.hosts) for trial in result.trials] == [2] * 5
        assert [note for trial in result.trials for note in trial.notes] == []
    for agent in agents:
        assert (await agent.inventory()).free_slots == SLOTS
        assert [child.children() for child in psutil.Process(agent.process.pid).children()] == [[]]


async def test_one_that_comes_later_gets_its_turn_once_the_other_is_through(tmp_path, agents):
    first, second = Coordinator(tmp_path / "first"), Coordinator(tmp_path / "second")
    async with asyncio.timeout(60.0):
        ahead = asyncio.create_task(first.run(gangs(4, PlacementRule.SPREAD), *agents, patience=None))
        await first.wait_for(lambda: len(first.updates) > 2)
        behind = await second.run(gangs(1, PlacementRule.SPREAD), *agents, patience=None)
        assert (await ahead).study.counts.completed == 4
    assert behind.study.counts.completed == 1

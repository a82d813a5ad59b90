"""Whole studies on a real agent, whose tasks are scripted: the files go all the way."""

from __future__ import annotations

import dataclasses

import pytest

from coordinator.domain import StageBudget, StudyState, Training, TrialState
from tests.contract.harness import RealAgent
from tests.coordinator.studies import make_spec


@pytest.fixture
async def agent(tmp_path):
    agent = await RealAgent.launch(tmp_path)
    yield agent
    await agent.close()


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


async def test_a_checkpoint_reaches_the_next_attempt(coordinator, agent):
    script = {"checkpoint": "weights", "ends_with": "PEER_LOST"}
    study = spec(1, script, checkpoint_every=10)
    result = await coordinator.run(dataclasses.replace(study, max_attempts=2), agent)
    (trial,) = result.trials
    assert (trial.state, trial.attempts) == (TrialState.FAILED, 2)
    assert "attempt 2 goes on from step 10 of attempt 1" in trial.notes
    assert "went on from weights" in trial.notes

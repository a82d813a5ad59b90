"""Models and checkpoints of whole studies, on scripted agents."""

from __future__ import annotations

import asyncio
import dataclasses
import math

import pytest

from coordinator import artifacts, convert, keeping, link_errors, transfers
from coordinator.domain import (
    Cluster,
    Failure,
    Notice,
    Report,
    StageBudget,
    StudyState,
    Training,
    Trial,
    TrialState,
)
from nhop.v1 import types_pb2
from nhop_models.contract import FailureKind
from tests.coordinator.conftest import round_trip
from tests.coordinator.studies import make_spec
from tests.fakes import scripted_agent as fake

KEEP = Training("Regressor", {}, 0.0, keep_model=True)
SAVES = Training("Regressor", {}, 0.0, checkpoint_every=3)


def chief(request, task, **script):
    if fake.name(task) == "worker/0":
        return fake.TaskScript(**script)
    return fake.default_script(request, task)


def models(losses, **files):
    """Trials with these held-out losses, each with a model that names its trial; None for no model."""

    def script(request, task):
        number = request.attempt.trial
        left = {"model.keras": f"model of {number}".encode(), "predictions.npz": b"p" * number, **files}
        loss = losses[number - 1]
        outcome = fake.completed()
        outcome.val_loss = abs(loss)
        return chief(request, task, ends_with=outcome, artifacts={} if loss < 0 else left)

    return script


def keep(trials=3, **changes):
    return make_spec(stages=(StageBudget(10, trials),), training=KEEP, **changes)


def left_in(folder):
    return {path.name for path in folder.iterdir() if path.name.startswith((".", "best"))}


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited in vain")


class Gate:
    """Holds what is read of a file back until it is opened; ``after`` so many reads of it."""

    def __init__(self, agent, name="model.keras", after=0):
        self.reached, self.open = asyncio.Event(), asyncio.Event()
        self._name, self._after = name, after
        agent.reading = self

    async def __call__(self, name):
        if name != self._name:
            return
        if self._after:
            self._after -= 1
            return
        self.reached.set()
        await self.open.wait()


async def test_the_best_trials_files_are_in_the_output_directory(coordinator, serve):
    agent = await serve(script=models([3.0, 1.0, 2.0]))
    result = await coordinator.run(keep(), agent)
    assert result.study.model_trial == result.study.best.number == 2
    assert (coordinator.path / "best_model.keras").read_bytes() == b"model of 2"
    assert (coordinator.path / "best_predictions.npz").read_bytes() == b"pp"
    assert left_in(coordinator.path) == {"best_model.keras", "best_predictions.npz"}
    assert agent.known_attempts() == []


async def test_a_model_of_many_chunks_arrives_whole(coordinator, serve):
    model = bytes(range(256)) * 20_000
    agent = await serve(script=models([1.0], **{"model.keras": model}))
    await coordinator.run(keep(1), agent)
    assert (coordinator.path / "best_model.keras").read_bytes() == model


async def test_without_keep_model_nothing_is_fetched(coordinator, serve):
    agent = await serve(script=models([1.0]))
    result = await coordinator.run(make_spec(stages=(StageBudget(10, 1),)), agent)
    assert result.study.model_trial is None
    assert [name for name, _ in agent.calls if name == "ReadArtifact"] == []
    assert left_in(coordinator.path) == set()


async def test_a_better_trial_without_a_model_leaves_none(coordinator, serve):
    agent = await serve(slots=1, script=models([2.0, -1.0]))
    result = await coordinator.run(keep(2), agent)
    assert (result.study.best.number, result.study.model_trial) == (2, None)
    assert result.study.model_problem == ""
    assert left_in(coordinator.path) == set()


async def test_an_agent_keeps_the_files_until_they_are_fetched(coordinator, serve):
    agent = await serve(script=models([1.0]))
    gate = Gate(agent)
    study = asyncio.ensure_future(coordinator.run(keep(1), agent))
    await gate.reached.wait()
    await coordinator.wait_for(lambda: coordinator.seen(Trial)[-1].state is TrialState.COMPLETED)
    assert len(agent.known_attempts()) == 1
    gate.open.set()
    assert (await study).study.model_trial == 1
    assert agent.known_attempts() == []


async def test_a_stream_that_breaks_meanwhile_does_not_cost_the_files(coordinator, serve):
    agent = await serve(script=models([1.0]))
    gate = Gate(agent)
    study = asyncio.ensure_future(coordinator.run(keep(1), agent))
    await gate.reached.wait()
    await coordinator.wait_for(lambda: coordinator.seen(Trial)[-1].state is TrialState.COMPLETED)
    subscriptions = agent.subscriptions
    agent.cut_streams()
    await until(lambda: agent.subscriptions > subscriptions)
    await round_trip(agent)
    assert len(agent.known_attempts()) == 1
    gate.open.set()
    assert (await study).study.model_problem == ""
    assert agent.known_attempts() == []


async def test_other_trials_do_not_wait_for_a_model(coordinator, serve):
    agent = await serve(slots=1, script=models([1.0, 2.0, 3.0]))
    gate = Gate(agent)
    study = asyncio.ensure_future(coordinator.run(keep(3), agent))
    await coordinator.wait_for(
        lambda: {report.attempt.trial for report in coordinator.seen(Report)} == {1, 2, 3}
    )
    gate.open.set()
    assert (await study).study.model_trial == 1


async def test_a_model_that_is_waited_for_is_told(coordinator, serve, monkeypatch):
    monkeypatch.setattr(artifacts, "TELL_EVERY", 0.05)
    agent = await serve(script=models([1.0]))
    gate = Gate(agent)
    study = asyncio.ensure_future(coordinator.run(keep(1), agent))
    await coordinator.wait_for(
        lambda: any("waiting for the model of trial 1" in n.message for n in coordinator.seen(Notice))
    )
    gate.open.set()
    await study


async def test_a_stop_does_not_wait_for_a_model(coordinator, serve):
    agent = await serve(script=models([1.0]))
    gate = Gate(agent)
    study = asyncio.ensure_future(coordinator.run(keep(1), agent, stop_limit=0.1))
    await gate.reached.wait()
    coordinator.stop.set()
    result = await study
    assert (result.study.state, result.study.model_problem) == (StudyState.STOPPED, keeping.TOO_LATE)
    assert left_in(coordinator.path) == set()


async def test_a_former_best_model_does_not_stay_where_the_newer_is_too_late(coordinator, serve):
    def script(request, task):
        done = models([2.0, 1.0])(request, task)
        return dataclasses.replace(done, runs_for=0.5 if request.attempt.trial == 2 else 0.0)

    agent = await serve(slots=1, script=script)
    gate = Gate(agent, after=1)
    study = asyncio.ensure_future(coordinator.run(keep(2), agent, stop_limit=0.1))
    await until((coordinator.path / "best_model.keras").exists)
    await gate.reached.wait()
    await coordinator.wait_for(lambda: coordinator.seen(Trial)[-1].state is TrialState.COMPLETED)
    coordinator.stop.set()
    result = await study
    assert result.study.best.number == 2
    assert left_in(coordinator.path) == set()


async def test_a_host_that_is_lost_with_the_model_does_not_fail_the_study(coordinator, serve, monkeypatch):
    monkeypatch.setattr(artifacts, "TROUBLE_LIMIT", 0.2)
    monkeypatch.setattr(artifacts, "PAUSE", 0.05)
    agent = await serve(script=models([1.0]))
    gate = Gate(agent)
    study = asyncio.ensure_future(coordinator.run(keep(1), agent))
    await gate.reached.wait()
    await coordinator.wait_for(lambda: coordinator.seen(Trial)[-1].state is TrialState.COMPLETED)
    await agent.close()
    result = await study
    assert result.study.state is StudyState.COMPLETED
    assert "no agent listens there" in result.study.model_problem
    assert any(n.warning and "could not be kept" in n.message for n in coordinator.seen(Notice))


async def test_an_agent_that_is_away_for_a_moment_is_asked_again(coordinator, serve, monkeypatch):
    monkeypatch.setattr(artifacts, "PAUSE", 0.01)
    agent = await serve(script=models([1.0]))
    away, read = [True, True], transfers.Transfers.read_artifact

    async def read_artifact(link, attempt, name):
        if away:
            away.pop()
            raise link_errors.TransferError(Failure(FailureKind.HOST_LOST, "away"), passing=True)
        async for piece in read(link, attempt, name):
            yield piece

    monkeypatch.setattr(transfers.Transfers, "read_artifact", read_artifact)
    result = await coordinator.run(keep(1), agent)
    assert (result.study.model_trial, away) == (1, [])


async def test_a_transfer_that_stands_still_is_given_up(coordinator, serve, monkeypatch):
    monkeypatch.setattr(transfers, "STALL_LIMIT", 0.1)
    agent = await serve(script=models([1.0]))
    Gate(agent)
    result = await coordinator.run(keep(1), agent)
    assert result.study.state is StudyState.COMPLETED
    assert "stands still" in result.study.model_problem


async def test_no_room_for_the_model_does_not_fail_the_study(coordinator, serve):
    coordinator.path.mkdir()
    (coordinator.path / ".artifacts").write_text("in the way")
    result = await coordinator.run(keep(1), await serve(script=models([1.0])))
    assert result.study.state is StudyState.COMPLETED
    assert "cannot be written" in result.study.model_problem


async def test_a_model_without_its_predictions_is_still_the_best(coordinator, serve):
    def script(request, task):
        done = models([1.0])(request, task)
        done.ends_with.artifacts.add(name="predictions.npz", size=9)
        return fake.TaskScript(ends_with=done.ends_with, artifacts={"model.keras": b"model"})

    result = await coordinator.run(keep(1), await serve(script=script))
    assert result.study.model_trial == 1
    assert "predictions.npz" in result.study.model_problem
    assert left_in(coordinator.path) == {"best_model.keras"}


@pytest.mark.parametrize("announced", [3, 9_000_000])
async def test_a_model_of_another_size_than_announced_is_not_kept(coordinator, serve, monkeypatch, announced):
    result_from_pb = convert.result_from_pb

    def lies(message):
        result = result_from_pb(message)
        return dataclasses.replace(result, artifacts=dict.fromkeys(result.artifacts, announced))

    monkeypatch.setattr(convert, "result_from_pb", lies)
    agent = await serve(script=models([1.0], **{"model.keras": b"m" * 3_000_000}))
    result = await coordinator.run(keep(1), agent)
    assert f"is not of the {announced} bytes" in result.study.model_problem
    assert left_in(coordinator.path) == set()


# --- checkpoints ----------------------------------------------------------------------------------


def dies(attempts, *checkpoints, runs_for=0.0):
    """The chief saves checkpoints and is killed, in its first attempts."""

    def script(request, task):
        if request.attempt.attempt > attempts:
            return fake.default_script(request, task)
        end = fake.failed(types_pb2.FAILURE_KIND_KILLED)
        script = {"ends_with": end, "reports": len(checkpoints), "checkpoints": checkpoints}
        return chief(request, task, runs_for=runs_for, **script)

    return script


def saves(trials=1, **changes):
    return make_spec(stages=(StageBudget(10, trials),), training=SAVES, **changes)


async def test_a_new_attempt_goes_on_from_the_last_checkpoint(coordinator, serve):
    agent = await serve(script=dies(1, b"first", b"second"))
    result = await coordinator.run(saves(), agent)
    (trial,) = result.trials
    assert trial.state is TrialState.COMPLETED
    assert "attempt 2 goes on from step 10 of attempt 1" in trial.notes
    assert "went on from second" in trial.notes
    assert left_in(coordinator.path) == set()


async def test_a_checkpoint_outlives_its_host(coordinator, serve):
    def script(request, task):
        return chief(request, task, runs_for=math.inf, reports=1, checkpoints=(b"saved",))

    lost = await serve("a", slots=1, script=script)
    other = await serve("b", slots=1)
    study = asyncio.ensure_future(coordinator.run(saves(), lost, other))
    await coordinator.wait_for(lambda: coordinator.seen(Report))
    await until((coordinator.path / ".artifacts" / "trial-1" / "checkpoint.npz").exists)
    await lost.close()
    result = await study
    assert "went on from saved" in result.trials[0].notes


async def test_only_the_newest_of_many_checkpoints_is_fetched_after_the_first(coordinator, serve):
    agent = await serve(script=dies(1, b"1", b"2", b"3", b"4", b"5", runs_for=0.5))
    gate = Gate(agent, "checkpoint.npz")
    study = asyncio.ensure_future(coordinator.run(saves(), agent))
    await coordinator.wait_for(lambda: len(coordinator.seen(Report)) == 5)
    gate.open.set()
    result = await study
    assert sum(name == "ReadArtifact" for name, _ in agent.calls) == 2
    assert "went on from 5" in result.trials[0].notes


async def test_only_the_chiefs_host_is_given_a_checkpoint(coordinator, serve):
    agents = [await serve("a", slots=1), await serve("b", slots=1, first_port=21000)]
    for agent in agents:
        agent.script = dies(1, b"saved")
    await coordinator.run(saves(cluster=Cluster(1, 2)), *agents)
    given = [request for agent in agents for name, request in agent.calls if name == "WriteArtifact"]
    assert [header.artifact.name for header in given] == ["restore.npz"]


async def test_a_checkpoint_that_is_refused_costs_an_attempt(coordinator, serve):
    agent = await serve(script=dies(1, b"saved"))
    agent.full = True
    result = await coordinator.run(saves(max_attempts=2), agent)
    (trial,) = result.trials
    assert (trial.state, trial.failure.kind.name) == (TrialState.FAILED, "RESOURCES")
    assert "the disk is full" in trial.failure.message


async def test_a_large_checkpoint_is_given_in_pieces(coordinator, serve):
    agent = await serve(script=dies(1, b"c" * 3_000_000))
    result = await coordinator.run(saves(), agent)
    assert f"went on from {'c' * 3_000_000}"[:100] in result.trials[0].notes[-1][:100]

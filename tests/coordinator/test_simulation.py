"""Whole studies, in random orders and with random faults."""

from __future__ import annotations

import random

import pytest

from coordinator.domain import AttemptId, Cluster, StageBudget, StudyState, Training, TrialState
from nhop_models.contract import FailureKind
from tests.coordinator.simulation import Simulation, loss_of
from tests.coordinator.studies import make_spec

STAGES = (StageBudget(10, 12), StageBudget(5, 6))
FAULTS = {"KILLED": 0.05, "CRASHED": 0.03, "PEER_LOST": 0.01, "INTERNAL": 0.01, "USER_CODE": 0.01}
FAULTS |= {"lose": 0.01, "find": 0.1, "foreign": 0.05}
KEEPS = {"checkpoint": 0.5}


def simulate(seed: int, cluster: Cluster, faults: dict[str, float] | None = None, **hosts: int) -> Simulation:
    training = Training("Regressor", {}, 0.0, checkpoint_every=1, keep_model=True)
    spec = make_spec(stages=STAGES, cluster=cluster, max_attempts=100, training=training)
    chance = (lambda what: faults.get(what, 0.0)) if faults else (lambda what: 0.0)
    simulation = Simulation(spec, hosts or {"a": 2, "b": 3}, random.Random(seed), chance=chance)
    simulation.run()
    return simulation


@pytest.fixture(scope="module")
def reference():
    """The study one trial at a time, without faults."""
    return simulate(0, Cluster(0, 1), a=1).machine.trials()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("cluster", [Cluster(0, 1), Cluster(2, 4), Cluster(1, 2)], ids=str)
def test_the_same_parameters_whatever_the_order(seed, cluster, reference):
    trials = simulate(seed, cluster).machine.trials()
    assert [trial.parameters for trial in trials] == [trial.parameters for trial in reference]
    assert [trial.loss for trial in trials] == [loss_of(trial.parameters) for trial in trials]


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("cluster", [Cluster(0, 1), Cluster(2, 4), Cluster(1, 2)], ids=str)
def test_faults_lose_no_trial_and_count_none_twice(seed, cluster):
    simulation = simulate(seed, cluster, FAULTS)
    study = simulation.machine.study()
    trials = simulation.machine.trials()
    if study.state is StudyState.FAILED:
        kinds = {trial.failure.kind for trial in trials if trial.failure}
        assert "hosts are reachable" in study.reason or FailureKind.USER_CODE in kinds
        return
    assert study.state is StudyState.COMPLETED
    assert [len(simulation.ends[number]) for number in range(1, 19)] == [1] * 18
    assert study.counts.completed + study.counts.failed == 18
    failed = [trial.failure.kind for trial in trials if trial.state is TrialState.FAILED]
    assert set(failed) <= {FailureKind.USER_CODE}
    assert all(trial.loss == loss_of(trial.parameters) for trial in trials if trial.loss is not None)
    assert simulation.running == {}


COMINGS = {"leave": 0.03, "join": 0.1, "slots": 0.02}


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("cluster", [Cluster(0, 1), Cluster(2, 4), Cluster(1, 2)], ids=str)
@pytest.mark.parametrize("faults", [{}, {**FAULTS, **KEEPS}], ids=["in peace", "with faults"])
def test_hosts_that_come_and_go_lose_no_trial_and_count_none_twice(seed, cluster, faults, reference):
    """And nothing is placed on a host that has left, nor left there: the simulation looks."""
    simulation = simulate(seed, cluster, {**faults, **COMINGS}, a=2, b=3, c=4)
    study = simulation.machine.study()
    trials = simulation.machine.trials()
    if study.state is StudyState.FAILED:
        kinds = {trial.failure.kind for trial in trials if trial.failure}
        assert "hosts are reachable" in study.reason or FailureKind.USER_CODE in kinds
        return
    assert study.state is StudyState.COMPLETED
    assert [len(simulation.ends[number]) for number in range(1, 19)] == [1] * 18
    assert study.counts.completed + study.counts.failed == 18
    assert all(host in simulation.lost for _, host in simulation.running)
    if not faults:
        assert [trial.parameters for trial in trials] == [trial.parameters for trial in reference]
        assert [trial.attempts for trial in trials] == [1] * 18


def test_the_simulation_lets_hosts_come_and_go():
    seen = [simulate(seed, Cluster(1, 2), COMINGS, a=2, b=3, c=4).comings for seed in range(20)]
    assert all(sum(comings[what] for comings in seen) > 20 for what in seen[0])


@pytest.mark.parametrize("seed", range(30))
def test_slots_are_never_asked_for_twice(seed):
    """Without others on the hosts and without losses, no prepare is ever refused."""
    simulation = simulate(seed, Cluster(1, 2), {"KILLED": 0.1, "USER_CODE": 0.01})
    assert all(
        trial.attempts == 1 + sum("attempt" in n for n in trial.notes)
        for trial in simulation.machine.trials()
    )
    refused = [timer for timer in simulation.timers if type(timer.timer).__name__ == "BackOffTimer"]
    assert refused == []
    assert set(simulation.started.values()) <= {1, 2}


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("cluster", [Cluster(0, 1), Cluster(2, 4)], ids=str)
def test_the_published_model_is_the_best_trials(seed, cluster):
    study = (simulation := simulate(seed, cluster, {**FAULTS, **KEEPS})).machine.study()
    if study.state is StudyState.COMPLETED:
        assert simulation.published == study.model_trial
        if simulation.models[study.best.number]:
            assert (study.model_trial, study.model_problem) == (None, "no way")
        else:
            assert (study.model_trial, study.model_problem) == (study.best.number, "")


@pytest.mark.parametrize("seed", range(60))
def test_a_model_that_cannot_be_fetched_is_never_replaced_by_another(seed):
    study = (simulation := simulate(seed, Cluster(1, 2), {"transfer": 0.5})).machine.study()
    assert study.state is StudyState.COMPLETED
    assert simulation.published == study.model_trial
    assert study.model_trial == (None if simulation.models[study.best.number] else study.best.number)


@pytest.mark.parametrize("seed", range(60))
def test_new_attempts_go_on_from_the_newest_checkpoint_that_is_here(seed):
    simulation = simulate(seed, Cluster(1, 2), {"KILLED": 0.2, **KEEPS})
    assert simulation.restored
    for trial in simulation.machine.trials():
        newest = None
        for number in range(1, trial.attempts + 1):
            attempt = AttemptId("s1", trial.number, number)
            assert simulation.restored.get(attempt) == newest
            if attempt in simulation.restored and attempt in simulation.started:
                step = f"attempt {number} goes on from step {newest[1]} of attempt {newest[0]}"
                assert step in trial.notes
            if attempt in simulation.saved:
                newest = (number, simulation.saved[attempt])


@pytest.mark.parametrize("seed", range(30))
def test_of_trials_that_are_over_nothing_is_left(seed):
    simulation = simulate(seed, Cluster(1, 2), {**FAULTS, **KEEPS, "transfer": 0.1})
    study = simulation.machine.study()
    if study.state is StudyState.COMPLETED:
        left = simulation.models.keys() | simulation.checkpoints.keys()
        assert left <= simulation.dropped | simulation.asked

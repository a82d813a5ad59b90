"""Metrics and notes of trials, the best model, checkpoints: what the machine makes of them."""

from __future__ import annotations

import dataclasses
import math

import pytest

from coordinator import events as ev
from coordinator import keeping
from coordinator.domain import (
    Cluster,
    Failure,
    Objective,
    StageBudget,
    StopReason,
    StudyState,
    Training,
)
from coordinator.instructions import (
    DropArtifacts,
    FetchArtifacts,
    FetchCheckpoint,
    PrepareAttempt,
    PublishModel,
    StartAttempt,
    Tell,
)
from nhop_models.contract import FailureKind
from tests.coordinator.driver import WORKER_1, Driver, completed, failed, of, stopped

# --- metrics and notes ----------------------------------------------------------------------------


def test_a_completed_trial_has_the_chiefs_metrics():
    driver = Driver()
    driver.start(1)
    result = dataclasses.replace(completed(0.5), metrics={"accuracy": 0.75, "broken": math.nan})
    driver.end_task(1, result)
    driver.end(1)
    assert driver.trial(1).metrics == {"accuracy": 0.75}
    assert driver.study.best.metrics == {"accuracy": 0.75}


def test_notes_of_tasks_become_the_trials_each_once():
    driver = Driver({"a": 2}, cluster=Cluster(1, 2))
    driver.start(1)
    driver.end_task(1, dataclasses.replace(completed(0.5), notes=("slow disk", "slow disk")))
    driver.end_task(1, dataclasses.replace(stopped(), notes=("slow disk",)), task=WORKER_1)
    driver.end(1)
    assert driver.trial(1).notes == ("slow disk", "worker/1: slow disk")


# --- the best model -------------------------------------------------------------------------------

FILES = {"model.keras": 100, "predictions.npz": 10}
KEEP = Training("Regressor", {}, 0.0, keep_model=True)


def with_model(loss, **changes):
    return dataclasses.replace(completed(loss, **changes), artifacts={**FILES, "other": 1})


def complete_with_model(driver, trial, loss=1.0, **kind):
    driver.start(trial, **kind)
    asked = driver.end_task(trial, with_model(loss), **kind)
    return asked + driver.end(trial, **kind)


def file_work(instructions):
    return of(FetchArtifacts | PublishModel | DropArtifacts, instructions)


def test_the_model_of_what_may_be_the_best_is_fetched_then_published():
    driver = Driver(training=KEEP)
    driver.start(1)
    (fetch,) = file_work(driver.end_task(1, with_model(1.0)))
    assert fetch == FetchArtifacts(driver.attempt(1), "a", FILES)
    assert file_work(driver.end(1)) == [PublishModel(1)]
    assert driver.study.model_trial is None
    driver.feed(ev.ModelPublished(1, saved=True))
    assert driver.study.model_trial == 1


def test_the_model_of_a_worse_trial_is_not_fetched():
    driver = Driver(training=KEEP)
    complete_with_model(driver, 1, 1.0)
    assert file_work(complete_with_model(driver, 2, 2.0)) == []


def test_of_two_at_once_only_the_best_is_published():
    driver = Driver({"a": 2}, training=KEEP)
    driver.start(1)
    driver.start(2)
    assert len(file_work(driver.end_task(1, with_model(1.0)) + driver.end_task(2, with_model(2.0)))) == 2
    assert file_work(driver.end(1) + driver.end(2)) == [PublishModel(1), DropArtifacts(2)]


def test_an_answer_about_a_former_best_counts_no_more():
    driver = Driver(training=KEEP)
    complete_with_model(driver, 1, 2.0)
    complete_with_model(driver, 2, 1.0)
    driver.feed(ev.ModelPublished(1, saved=True))
    assert driver.study.model_trial is None
    driver.feed(ev.ModelPublished(2, saved=True))
    assert driver.study.model_trial == 2


def test_by_train_loss_every_model_of_many_workers_may_be_the_best():
    driver = Driver({"a": 2}, training=KEEP, objective=Objective.TRAIN_LOSS, cluster=Cluster(1, 2))
    complete_with_model(driver, 1, 1.0)
    assert file_work(complete_with_model(driver, 2, 9.0)) == [
        FetchArtifacts(driver.attempt(2), "a", FILES),
        DropArtifacts(2),
    ]
    assert all(start.keep_model_below is None for start in of(StartAttempt, driver.asked))


def test_by_train_loss_of_one_worker_a_worse_model_is_not_fetched():
    driver = Driver(training=KEEP, objective=Objective.TRAIN_LOSS)
    complete_with_model(driver, 1, 1.0)
    driver.start(2)
    assert file_work(driver.end_task(2, with_model(0.5, train_loss=6.0)) + driver.end(2)) == []


def test_a_best_trial_without_a_model_takes_the_place_of_one_that_has():
    driver = Driver(training=KEEP)
    complete_with_model(driver, 1, 2.0)
    driver.feed(ev.ModelPublished(1, saved=True))
    assert file_work(driver.complete(2, loss=1.0)) == [PublishModel(2)]
    driver.feed(ev.ModelPublished(2, saved=False))
    assert (driver.study.model_trial, driver.study.model_problem) == (None, "")


@pytest.mark.parametrize("training", [KEEP, dataclasses.replace(KEEP, keep_model=False)])
def test_where_there_is_no_model_nothing_is_done(training):
    driver = Driver(training=training)
    ended = driver.complete(1) if training is KEEP else complete_with_model(driver, 1)
    assert file_work(ended) == []


def test_a_model_that_cannot_be_had_is_told_and_the_study_goes_on():
    driver = Driver(training=KEEP)
    complete_with_model(driver, 1)
    (tell,) = of(Tell, driver.feed(ev.ModelPublished(1, saved=False, problem="a: gone")))
    assert tell.notice.warning
    assert "a: gone" in tell.notice.message
    assert (driver.study.model_trial, driver.study.model_problem) == (None, "a: gone")
    assert driver.study.state is StudyState.RUNNING


def test_chiefs_save_only_what_would_be_the_best():
    driver = Driver({"a": 2}, training=KEEP, stages=(StageBudget(1, 4),))
    driver.start(2)
    driver.end_task(2, with_model(1.0))
    driver.end(2)
    driver.start(1)
    driver.start(3)
    below = {i.attempt.trial: i.keep_model_below for i in of(StartAttempt, driver.asked)}
    assert (below[2], below[3]) == (None, 1.0)
    assert 1.0 < below[1] < 1.0 + 1e-12  # among equals the first is the best


def test_the_study_ends_when_the_best_model_is_there():
    driver = Driver(training=KEEP, stages=(StageBudget(1, 1),))
    complete_with_model(driver, 1)
    assert driver.study.state is StudyState.STOPPING
    driver.feed(ev.ModelPublished(1, saved=True))
    assert (driver.study.state, driver.study.model_trial) == (StudyState.COMPLETED, 1)


def test_who_does_not_wait_for_the_model_is_told_that_it_is_missing():
    driver = Driver(training=KEEP, stages=(StageBudget(1, 1),))
    complete_with_model(driver, 1)
    driver.feed(ev.StudyAborted(StudyState.STOPPED, "interrupted"))
    assert driver.study.state is StudyState.STOPPED
    assert (driver.study.model_trial, driver.study.model_problem) == (None, keeping.TOO_LATE)


def test_a_model_that_diverged_is_dropped():
    driver = Driver({"a": 2}, training=KEEP, objective=Objective.TRAIN_LOSS, cluster=Cluster(1, 2))
    driver.start(1)
    driver.end_task(1, with_model(1.0, train_loss=math.nan))
    assert file_work(driver.end(1)) == [DropArtifacts(1)]


# --- checkpoints ----------------------------------------------------------------------------------

SAVES = Training("Regressor", {}, 0.0, checkpoint_every=500)


def save(driver, step, trial=1, attempt=1):
    return driver.feed(ev.CheckpointSaved(driver.attempt(trial, attempt), "a", step))


def fetched(driver, step, attempt=1, problem=""):
    return driver.feed(ev.CheckpointFetched(driver.attempt(1, attempt), step, problem))


def lose_chief(driver, attempt=1):
    driver.end_task(1, failed(FailureKind.KILLED), attempt=attempt)
    return driver.end(1, attempt=attempt, reason=StopReason.FAILED)


def test_a_checkpoint_is_fetched_while_training_goes_on():
    driver = Driver(training=SAVES)
    driver.start(1)
    assert of(FetchCheckpoint, save(driver, 500)) == [FetchCheckpoint(driver.attempt(1), "a", 500)]


def test_a_new_attempt_goes_on_from_the_checkpoint():
    driver = Driver(training=SAVES)
    driver.start(1)
    save(driver, 500)
    fetched(driver, 500)
    (prepare,) = of(PrepareAttempt, lose_chief(driver))
    assert prepare.restores
    driver.start(1, attempt=2)
    assert [start.restore for start in of(StartAttempt, driver.asked)] == [False, True]
    driver.end_task(1, completed(1.0), attempt=2)
    driver.end(1, attempt=2)
    assert driver.trial(1).notes[-1] == "attempt 2 goes on from step 500 of attempt 1"


def test_only_the_chiefs_host_is_given_the_checkpoint():
    driver = Driver({"a": 1, "b": 1}, training=SAVES, cluster=Cluster(1, 2))
    driver.start(1, hosts=("a", "b"))
    save(driver, 500)
    fetched(driver, 500)
    lose_chief(driver)
    driver.end(1, host="b", reason=StopReason.FAILED)
    driver.start(1, attempt=2, hosts=("a", "b"))
    again = of(StartAttempt, driver.asked)[2:]
    assert {start.host: start.restore for start in again} == {"a": True, "b": False}


def test_a_new_attempt_waits_for_the_checkpoint_on_its_way():
    driver = Driver(training=SAVES, stages=(StageBudget(1, 1),))
    driver.start(1)
    save(driver, 500)
    save(driver, 1000)
    assert of(PrepareAttempt, lose_chief(driver)) == []
    assert of(PrepareAttempt, fetched(driver, 500)) == []
    assert len(of(PrepareAttempt, fetched(driver, 1000))) == 1


def test_other_trials_do_not_wait_for_it():
    driver = Driver(training=SAVES)
    driver.start(1)
    save(driver, 500)
    assert [i.attempt.trial for i in of(PrepareAttempt, lose_chief(driver))] == [2]


def test_an_older_checkpoint_serves_where_the_newest_is_lost():
    driver = Driver(training=SAVES)
    driver.start(1)
    save(driver, 500)
    fetched(driver, 500)
    save(driver, 1000)
    (tell,) = of(Tell, fetched(driver, 1000, problem="a: gone"))
    assert "a: gone" in tell.notice.message
    lose_chief(driver)
    driver.start(1, attempt=2)
    driver.end_task(1, completed(1.0), attempt=2)
    driver.end(1, attempt=2)
    assert "from step 500 of attempt 1" in driver.trial(1).notes[-1]


def test_a_checkpoint_that_cannot_be_given_costs_an_attempt():
    driver = Driver(training=SAVES)
    driver.start(1)
    save(driver, 500)
    fetched(driver, 500)
    lose_chief(driver)
    driver.feed(ev.PrepareSucceeded(driver.attempt(1, 2), "a", {}))
    driver.feed(ev.StartFailed(driver.attempt(1, 2), "a", Failure(FailureKind.RESOURCES, "disk full")))
    asked = driver.end(1, attempt=2, reason=StopReason.FAILED)
    assert [i.attempt.attempt for i in of(PrepareAttempt, asked)] == [3]
    assert not any("goes on" in note for note in driver.trial(1).notes)


def test_no_checkpoint_is_fetched_for_a_last_attempt():
    driver = Driver(training=SAVES, max_attempts=1)
    driver.start(1)
    assert of(FetchCheckpoint, save(driver, 500)) == []


@pytest.mark.parametrize("ends", [completed(1.0), failed(FailureKind.USER_CODE)], ids=["completed", "failed"])
def test_the_checkpoint_goes_with_its_trial(ends):
    driver = Driver(training=SAVES)
    driver.start(1)
    save(driver, 500)
    driver.end_task(1, ends)
    assert of(DropArtifacts, driver.end(1)) == [DropArtifacts(1)]


def test_a_checkpoint_that_comes_after_the_end_of_its_trial_changes_nothing():
    driver = Driver(training=SAVES)
    driver.start(1)
    save(driver, 500)
    driver.end_task(1, completed(1.0))
    driver.end(1)
    assert fetched(driver, 500, problem="a: gone") == []

"""The machine, one event at a time."""

from __future__ import annotations

import math

import pytest

from coordinator import availability, machine
from coordinator import events as ev
from coordinator.domain import (
    AttemptId,
    Cluster,
    Failure,
    Objective,
    PlacementRule,
    StageBudget,
    StopReason,
    Study,
    StudyState,
    TaskResult,
    Trial,
    TrialState,
)
from coordinator.instructions import (
    CheckAttempt,
    PrepareAttempt,
    SetTimer,
    StartAttempt,
    StopAttempt,
    TaskRecord,
    Tell,
)
from coordinator.machine import StudyMachine
from coordinator.search.space import Float
from coordinator.transitions import IllegalTransitionError, LateEventError
from nhop_models.contract import FailureKind, TaskId, TaskStatus
from tests.coordinator.driver import CHIEF, WORKER_1, Driver, completed, failed, of, saved, stopped, timers
from tests.coordinator.studies import make_spec

# --- trials and stages ----------------------------------------------------------------------------


def test_a_trial_is_prepared_then_started_then_completed():
    driver = Driver()
    assert [i.attempt.trial for i in of(PrepareAttempt, driver.asked)] == [1]
    (start,) = of(StartAttempt, driver.feed(ev.PrepareSucceeded(driver.attempt(1), "a", {})))
    assert start.parameters == driver.trial(1).parameters
    assert start.train_epoch == 10
    driver.feed(ev.StartSucceeded(driver.attempt(1), "a"))
    driver.end_task(1, completed(0.5))
    driver.end(1)
    assert driver.trial(1).state is TrialState.COMPLETED
    assert driver.trial(1).loss == 0.5


def test_the_next_trial_is_prepared_when_the_slot_is_free_again():
    driver = Driver()
    driver.start(1)
    assert of(PrepareAttempt, driver.end_task(1, completed(1.0))) == []
    assert [i.attempt.trial for i in of(PrepareAttempt, driver.end(1))] == [2]


def test_no_more_trials_at_once_than_asked_for():
    driver = Driver({"a": 4}, parallel_trials=2)
    assert len(of(PrepareAttempt, driver.asked)) == 2


def test_no_more_trials_at_once_than_the_share_allows():
    driver = Driver({"a": 4}, stages=(StageBudget(1, 9),))
    driver.feed(ev.ShareChanged(2))
    driver.complete(1)
    driver.complete(2)
    assert driver.study.counts.running == 2


@pytest.mark.parametrize("gone", [[ev.HostLeft("b")], [ev.HostLost("b", "no answer")]])
def test_what_is_left_on_a_host_that_is_gone_takes_nothing_of_the_share(gone):
    driver = Driver({"a": 1, "b": 1})
    driver.start(2, hosts=("b",))
    driver.feed(*gone, ev.ShareChanged(1))
    driver.start(1)
    driver.end_task(1, completed(1.0))
    assert [i.host for i in of(PrepareAttempt, driver.end(1))] == ["a"]


def test_no_more_attempts_are_prepared_at_once_than_can_be_heard_in_time():
    driver = Driver({str(n): 1 for n in range(100)}, stages=(StageBudget(1, 100),))
    prepared = of(PrepareAttempt, driver.asked)
    assert len(prepared) == machine.PREPARING_AT_ONCE
    (first, second) = prepared[:2]
    assert len(of(PrepareAttempt, driver.feed(ev.PrepareSucceeded(first.attempt, first.host, {})))) == 1
    failure = Failure(FailureKind.HOST_LOST, "no answer")
    assert len(of(PrepareAttempt, driver.feed(ev.PrepareFailed(second.attempt, second.host, failure)))) == 1


def test_the_same_seed_gives_the_same_parameters():
    one, other = Driver({"a": 3}), Driver({"a": 3})
    assert [t.parameters for t in one.machine.trials()] == [t.parameters for t in other.machine.trials()]


def test_attempts_of_a_trial_share_its_seed():
    driver = Driver()
    driver.fail(1, FailureKind.KILLED)
    driver.start(1, attempt=2)
    seeds = [i.seed for i in of(StartAttempt, driver.asked)]
    assert seeds[0] == seeds[1]


def test_a_stage_narrows_around_the_best():
    driver = Driver(stages=(StageBudget(1, 1), StageBudget(2, 1)), space={"x": Float(0.0, 1.0)})
    driver.complete(1)
    best = driver.trial(1).parameters["x"]
    dimension = driver.study.stages[1].space["x"]
    assert dimension.low == pytest.approx(best / 2)
    assert dimension.high == pytest.approx(min(1.5 * best, 1.0))


def test_a_stage_without_a_completed_trial_keeps_the_space():
    driver = Driver(stages=(StageBudget(1, 1), StageBudget(2, 1)))
    driver.fail(1, FailureKind.USER_CODE)
    assert driver.study.stages[1].space == driver.spec.space


def test_the_best_so_far_is_carried_along():
    driver = Driver(stages=(StageBudget(1, 1), StageBudget(2, 1)))
    driver.complete(1, loss=1.0)
    driver.complete(2, loss=3.0)
    assert [stage.best.number for stage in driver.study.stages] == [1, 1]
    assert driver.study.best.loss == 1.0


def test_among_equals_the_first_is_the_best():
    driver = Driver({"a": 2})
    driver.complete(2, loss=1.0)
    driver.complete(1, loss=1.0)
    assert driver.study.best.number == 1


def test_a_stage_waits_for_all_its_trials():
    driver = Driver({"a": 2}, stages=(StageBudget(1, 2), StageBudget(2, 1)))
    driver.complete(1)
    assert len(driver.machine.trials()) == 2
    driver.complete(2)
    assert driver.trial(3).stage == 2


def test_the_study_completes_after_the_last_stage():
    driver = Driver(stages=(StageBudget(1, 1),))
    asked = driver.complete(1)
    assert saved(Study, asked)[-1].state is StudyState.COMPLETED


def test_a_study_without_a_completed_trial_has_failed():
    driver = Driver(stages=(StageBudget(1, 1),))
    driver.fail(1, FailureKind.DATA)
    assert driver.study.state is StudyState.FAILED
    assert "it broke" in driver.study.reason


def test_reaching_opt_tolerance_completes_the_study_and_stops_what_runs():
    driver = Driver({"a": 2}, opt_tolerance=0.1)
    driver.start(2)
    asked = driver.complete(1, loss=0.1)
    assert [(i.attempt.trial, i.reason) for i in of(StopAttempt, asked)] == [(2, StopReason.STUDY_STOPPED)]
    driver.end_task(2, stopped())
    driver.end(2, reason=StopReason.STUDY_STOPPED)
    assert driver.study.state is StudyState.COMPLETED
    assert driver.trial(2).state is TrialState.STOPPED
    assert len(driver.machine.trials()) == 2


# --- the loss -------------------------------------------------------------------------------------


def test_train_loss_is_the_smallest_of_all_workers():
    driver = Driver({"a": 2}, cluster=Cluster(1, 2), objective=Objective.TRAIN_LOSS)
    driver.start(1)
    driver.end_task(1, completed(9.0, train_loss=4.0))
    driver.end_task(1, stopped(train_loss=3.0), task=TaskId.parse("worker/1"))
    driver.end(1)
    assert (driver.trial(1).loss, driver.trial(1).train_loss, driver.trial(1).val_loss) == (3.0, 3.0, 9.0)


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_a_loss_that_is_no_number_is_divergence(loss):
    driver = Driver()
    driver.complete(1, loss=loss)
    assert driver.trial(1).state is TrialState.FAILED
    assert driver.trial(1).failure.kind is FailureKind.DIVERGED


# --- failures -------------------------------------------------------------------------------------

RETRIED = [
    "KILLED",
    "CRASHED",
    "START_TIMEOUT",
    "PORT_TAKEN",
    "PEER_LOST",
    "HOST_LOST",
    "RESOURCES",
    "INTERNAL",
]


@pytest.mark.parametrize("kind", RETRIED)
def test_infrastructure_failures_are_tried_again(kind):
    driver = Driver()
    asked = driver.fail(1, FailureKind[kind])
    assert [(i.attempt.trial, i.attempt.attempt) for i in of(PrepareAttempt, asked)] == [(1, 2)]


@pytest.mark.parametrize("kind", sorted({k.name for k in FailureKind} - set(RETRIED)))
def test_other_failures_are_final(kind):
    driver = Driver()
    driver.fail(1, FailureKind[kind])
    assert driver.trial(1).state is TrialState.FAILED


def test_attempts_end_at_max_attempts():
    driver = Driver(max_attempts=2)
    driver.fail(1, FailureKind.KILLED)
    driver.fail(1, FailureKind.KILLED, attempt=2)
    assert driver.trial(1).state is TrialState.FAILED
    assert driver.trial(1).attempts == 2


def test_a_lost_worker_that_is_not_the_chief_is_noted_and_the_rest_goes_on():
    driver = Driver({"a": 2}, cluster=Cluster(1, 2))
    driver.start(1)
    asked = driver.end_task(1, failed(FailureKind.KILLED), task=TaskId.parse("worker/1"))
    assert of(StopAttempt, asked) == []
    driver.end_task(1, completed(1.0))
    driver.end(1)
    assert driver.trial(1).state is TrialState.COMPLETED
    assert "worker/1" in driver.trial(1).notes[0]


def test_the_failure_of_a_ps_stops_all_hosts_and_is_the_cause():
    driver = Driver({"a": 1, "b": 1}, cluster=Cluster(2, 2))
    driver.start(1, hosts=("a", "b"))
    asked = driver.end_task(1, failed(FailureKind.KILLED, "ps gone"), task=TaskId.parse("ps/1"), host="b")
    assert {i.host for i in of(StopAttempt, asked)} == {"a", "b"}
    driver.end_task(1, failed(FailureKind.PEER_LOST))
    driver.end(1, reason=StopReason.FAILED)
    driver.end(1, host="b", reason=StopReason.FAILED)
    assert driver.trial(1).failure.message == "ps gone"


def test_a_lost_peer_gives_way_to_why_it_was_lost():
    driver = Driver({"a": 1, "b": 1}, cluster=Cluster(2, 2), max_attempts=1)
    driver.start(1, hosts=("a", "b"))
    driver.end_task(1, failed(FailureKind.PEER_LOST))
    driver.end_task(1, failed(FailureKind.CRASHED, "ps crashed"), task=TaskId.parse("ps/1"), host="b")
    driver.end(1, reason=StopReason.FAILED)
    driver.end(1, host="b", reason=StopReason.FAILED)
    assert driver.trial(1).failure == Failure(FailureKind.CRASHED, "ps crashed")


PS = TaskId.parse("ps/0")


@pytest.mark.parametrize(
    ("ends", "cause"),
    [
        ([(CHIEF, None), (WORKER_1, FailureKind.START_TIMEOUT), (PS, None)], FailureKind.START_TIMEOUT),
        (
            [(WORKER_1, FailureKind.PEER_LOST), (CHIEF, None), (PS, FailureKind.KILLED)],
            FailureKind.KILLED,
        ),
        ([(PS, None), (CHIEF, FailureKind.CRASHED), (WORKER_1, None)], FailureKind.CRASHED),
        ([(CHIEF, None), (WORKER_1, None), (PS, None)], FailureKind.PEER_LOST),
    ],
)
def test_why_an_agent_ended_the_group_is_the_cause_whatever_obeys_first(ends, cause):
    driver = Driver({"a": 2}, cluster=Cluster(1, 2), max_attempts=1)
    driver.start(1)
    for task, kind in ends:
        driver.end_task(1, stopped() if kind is None else failed(kind), task=task)
    driver.end(1, reason=StopReason.FAILED)
    assert driver.trial(1).failure.kind is cause


def test_a_host_that_ends_the_attempt_before_the_chief_ran_ends_it_everywhere():
    driver = Driver({"a": 1, "b": 1}, cluster=Cluster(0, 2))
    driver.start(1, hosts=("a", "b"))
    asked = driver.end(1, reason=StopReason.SHUTDOWN)
    assert [(i.host, i.reason) for i in of(StopAttempt, asked)] == [("b", StopReason.FAILED)]


def test_the_end_of_a_host_without_the_chief_ends_nothing_else():
    driver = Driver({"a": 1, "b": 1}, cluster=Cluster(0, 2))
    driver.start(1, hosts=("a", "b"))
    driver.end_task(1, failed(FailureKind.KILLED), task=WORKER_1, host="b")
    assert of(StopAttempt, driver.end(1, host="b", reason=StopReason.FAILED)) == []


def test_an_answer_that_the_end_of_its_host_has_overtaken_is_late():
    """And not a defect: the other host has answered, so the attempt runs by then."""
    driver = Driver({"a": 1, "b": 1}, cluster=Cluster(1, 2))
    for host in ("a", "b"):
        tasks = next(i.tasks for i in of(PrepareAttempt, driver.asked) if i.host == host)
        driver.feed(ev.PrepareSucceeded(driver.attempt(1), host, dict.fromkeys(tasks, f"{host}:1")))
    driver.end_task(1, failed(FailureKind.KILLED), task=WORKER_1, host="b")
    driver.end(1, host="b")
    driver.feed(ev.StartSucceeded(driver.attempt(1), "a"))
    with pytest.raises(LateEventError):
        driver.feed(ev.StartSucceeded(driver.attempt(1), "b"))


def test_the_chiefs_end_stops_the_other_hosts_only():
    driver = Driver({"a": 1, "b": 1}, cluster=Cluster(0, 2))
    driver.start(1, hosts=("a", "b"))
    asked = driver.end_task(1, completed(1.0))
    assert [(i.host, i.reason) for i in of(StopAttempt, asked)] == [("b", StopReason.FINISHED)]


def test_a_model_that_fails_three_times_first_fails_the_study():
    driver = Driver({"a": 3}, stages=(StageBudget(1, 100),))
    for trial in (1, 2, 3):
        driver.fail(trial, FailureKind.USER_CODE)
    assert driver.study.state is StudyState.STOPPING
    for trial in (4, 5):
        driver.feed(ev.PrepareRefused(driver.attempt(trial), "a", "full"))
    assert driver.study.state is StudyState.FAILED
    assert "it broke" in driver.study.reason


def test_one_completed_trial_among_the_first_keeps_the_study_going():
    driver = Driver(stages=(StageBudget(1, 100),))
    driver.complete(1)
    for trial in (2, 3, 4, 5):
        driver.fail(trial, FailureKind.USER_CODE)
    assert driver.study.state is StudyState.RUNNING


def test_trials_that_fail_before_the_first_ones_end_do_not_fail_the_study():
    """Those that fail do so at once: among many that run, they would always be the first to end."""
    driver = Driver({"a": 5}, stages=(StageBudget(1, 100),))
    for trial in (2, 3, 4, 5):
        driver.fail(trial, FailureKind.USER_CODE)
    assert driver.study.state is StudyState.RUNNING
    driver.complete(1)
    assert driver.study.state is StudyState.RUNNING


def test_a_trial_that_completes_before_the_first_ones_fail_keeps_the_study_going():
    driver = Driver({"a": 4}, stages=(StageBudget(1, 100),))
    driver.complete(4)
    for trial in (1, 2, 3):
        driver.fail(trial, FailureKind.USER_CODE)
    assert driver.study.state is StudyState.RUNNING


def test_an_agent_that_shuts_down_costs_an_attempt_only():
    driver = Driver()
    driver.start(1)
    driver.end_task(1, stopped())
    driver.end(1, reason=StopReason.SHUTDOWN)
    assert driver.trial(1).attempts == 2


# --- refusals -------------------------------------------------------------------------------------


def test_a_refused_host_is_asked_again_after_a_pause_that_grows():
    driver = Driver()
    delays = []
    for _ in range(3):
        asked = driver.feed(ev.PrepareRefused(driver.attempt(1), "a", "full"))
        assert of(PrepareAttempt, asked) == []
        (timer,) = timers(ev.BackOffTimer, asked)
        delays.append(timer.at - driver.now)
        assert len(of(PrepareAttempt, driver.feed(ev.TimerFired(timer.timer)))) == 1
    least = [0.1, 0.2, 0.4]
    assert all(low <= delay <= 2 * low for low, delay in zip(least, delays, strict=True))


def test_two_runs_do_not_ask_again_at_the_same_time():
    delays = set()
    for run in ("s1-a", "s1-b"):
        driver = Driver(run_id=run)
        (timer,) = timers(ev.BackOffTimer, driver.feed(ev.PrepareRefused(driver.attempt(1), "a", "full")))
        delays.add(timer.at)
    assert len(delays) == 2


def test_the_pause_grows_although_the_other_host_has_room():
    """Two gangs that take turns in refusing each other a host get out of each other's way."""
    driver = Driver({"a": 1, "b": 1}, cluster=Cluster(0, 2))
    delays = []
    for number in range(1, 5):
        refusing, other = ("a", "b") if number % 2 else ("b", "a")
        attempt = driver.attempt(1, number)
        driver.feed(ev.PrepareSucceeded(attempt, other, {}))
        asked = driver.feed(ev.PrepareRefused(attempt, refusing, "full"))
        driver.feed(ev.StopAnswered(attempt, other, was_active=True))
        (timer,) = timers(ev.BackOffTimer, asked)
        delays.append(timer.at - driver.now)
        driver.now = timer.at
        driver.feed(ev.TimerFired(timer.timer))
    assert delays[2] >= 0.2
    assert delays[3] >= 0.2


def test_a_pause_that_is_over_does_not_end_a_newer_one():
    driver = Driver()
    refused = ev.PrepareRefused(driver.attempt(1), "a", "full")
    (first,) = timers(ev.BackOffTimer, driver.feed(refused))
    driver.feed(ev.SlotsReleased("a"))
    driver.feed(refused)
    assert of(PrepareAttempt, driver.feed(ev.TimerFired(first.timer))) == []


def test_what_a_refused_gang_lets_go_does_not_reopen_a_host():
    driver = Driver({"a": 2, "b": 2}, cluster=Cluster(0, 2), placement=PlacementRule.SPREAD)
    first, second = driver.attempt(1), driver.attempt(2)
    driver.feed(ev.PrepareRefused(first, "b", "full"))
    driver.feed(ev.PrepareSucceeded(second, "b", {}))
    driver.feed(ev.PrepareRefused(second, "a", "full"))
    asked = driver.feed(ev.StopAnswered(second, "b", was_active=True))
    assert driver.trial(2).state is TrialState.WAITING
    assert of(PrepareAttempt, asked) == []


def test_slots_that_another_study_gives_back_are_asked_for_at_once():
    driver = Driver()
    driver.feed(ev.PrepareRefused(driver.attempt(1), "a", "full"))
    assert len(of(PrepareAttempt, driver.feed(ev.SlotsReleased("a")))) == 1


def test_a_refusal_costs_no_attempt():
    driver = Driver(max_attempts=1)
    asked = driver.feed(ev.PrepareRefused(driver.attempt(1), "a", "full"))
    driver.feed(ev.TimerFired(of(SetTimer, asked)[0].timer))
    driver.complete(1)
    assert driver.trial(1).state is TrialState.COMPLETED


def test_what_the_other_host_leased_is_released_when_one_refuses():
    driver = Driver({"a": 1, "b": 1}, cluster=Cluster(0, 2))
    driver.feed(ev.PrepareSucceeded(driver.attempt(1), "a", {}))
    asked = driver.feed(ev.PrepareRefused(driver.attempt(1), "b", "full"))
    assert [(i.host, i.reason) for i in of(StopAttempt, asked)] == [("a", StopReason.RELEASED)]
    driver.feed(ev.StopAnswered(driver.attempt(1), "a", was_active=True))
    assert driver.trial(1).state is TrialState.WAITING


def test_a_lease_that_arrives_after_a_refusal_is_released_too():
    driver = Driver({"a": 1, "b": 1}, cluster=Cluster(0, 2))
    driver.feed(ev.PrepareRefused(driver.attempt(1), "b", "full"))
    asked = driver.feed(ev.PrepareSucceeded(driver.attempt(1), "a", {}))
    assert [i.host for i in of(StopAttempt, asked)] == ["a"]


def test_in_a_crowd_a_slot_given_back_is_left_to_others_first():
    driver = Driver()
    driver.feed(ev.ShareChanged(1, crowded=True))
    asked = driver.complete(1)
    assert of(PrepareAttempt, asked) == []
    (timer,) = timers(ev.BackOffTimer, asked)
    assert len(of(PrepareAttempt, driver.feed(ev.TimerFired(timer.timer)))) == 1


def test_a_host_that_refused_one_and_took_another_is_asked_again():
    driver = Driver({"a": 2})
    (timer,) = timers(ev.BackOffTimer, driver.feed(ev.PrepareRefused(driver.attempt(1), "a", "full")))
    driver.feed(ev.PrepareSucceeded(driver.attempt(2), "a", {}))
    assert [i.attempt.trial for i in of(PrepareAttempt, driver.feed(ev.TimerFired(timer.timer)))] == [1]


def refuse_for_long(driver, until):
    """Refuses trial 1 over and over; returns what was asked for."""
    asked = []
    while driver.now < until:
        refused = driver.feed(ev.PrepareRefused(driver.attempt(1), "a", "full"))
        (timer,) = timers(ev.BackOffTimer, refused)
        driver.now = timer.at
        asked += refused + driver.feed(ev.TimerFired(timer.timer))
    return asked


def test_a_study_without_any_room_says_so_once():
    driver = Driver()
    (timer,) = timers(ev.CrowdedOutTimer, refuse_for_long(driver, 60.0))
    assert timer.at == availability.CROWDED_OUT_LIMIT
    (tell,) = of(Tell, driver.feed(ev.TimerFired(timer.timer)))
    assert tell.notice.warning
    assert "others use a (full)" in tell.notice.message


def test_a_gang_that_gets_only_a_part_of_the_hosts_says_so_too():
    driver = Driver({"a": 1, "b": 1}, cluster=Cluster(0, 2))
    driver.feed(ev.PrepareSucceeded(driver.attempt(1), "a", {}))
    (timer,) = timers(
        ev.CrowdedOutTimer, driver.feed(ev.PrepareRefused(driver.attempt(1), "b", "1 wanted, 0 free"))
    )
    (tell,) = of(Tell, driver.feed(ev.TimerFired(timer.timer)))
    assert "others use b (1 wanted, 0 free)" in tell.notice.message


def test_hosts_that_others_use_are_counted_where_they_are_many():
    driver = Driver({f"h{n}": 1 for n in range(50)}, cluster=Cluster(0, 50))
    asked = [i for n in range(50) for i in driver.feed(ev.PrepareRefused(driver.attempt(1), f"h{n}", "full"))]
    (timer,) = timers(ev.CrowdedOutTimer, asked)
    (tell,) = of(Tell, driver.feed(ev.TimerFired(timer.timer)))
    assert "h4 (full) and 45 more; still waiting" in tell.notice.message


def test_a_study_that_found_room_meanwhile_says_nothing():
    driver = Driver()
    (timer,) = timers(ev.CrowdedOutTimer, refuse_for_long(driver, 20.0))
    driver.start(1)
    assert of(Tell, driver.feed(ev.TimerFired(timer.timer))) == []


def test_a_study_that_has_some_slots_does_not_complain():
    driver = Driver({"a": 2})
    driver.start(2)
    assert timers(ev.CrowdedOutTimer, refuse_for_long(driver, 60.0)) == []


# --- hosts ----------------------------------------------------------------------------------------


def test_a_lost_host_moves_its_trials_to_another():
    driver = Driver({"a": 1, "b": 1}, parallel_trials=1)
    driver.start(1)
    asked = driver.feed(ev.HostLost("a", "cut"))
    assert [(i.attempt.attempt, i.host) for i in of(PrepareAttempt, asked)] == [(2, "b")]


def test_a_host_that_is_back_is_told_to_stop_what_is_left_and_used_when_it_did():
    driver = Driver({"a": 1})
    driver.start(1)
    driver.feed(ev.HostLost("a", "cut"))
    asked = driver.feed(ev.HostFound("a"))
    assert [i.attempt for i in of(StopAttempt, asked)] == [driver.attempt(1)]
    assert of(PrepareAttempt, asked) == []
    assert [i.attempt.attempt for i in of(PrepareAttempt, driver.end(1))] == [2]


def test_a_result_of_a_lost_attempt_is_refused():
    driver = Driver({"a": 1, "b": 1}, parallel_trials=1)
    driver.start(1)
    driver.feed(ev.HostLost("a", "cut"))
    before = driver.study, driver.machine.trials()
    with pytest.raises(LateEventError):
        driver.end_task(1, completed(0.0))
    assert (driver.study, driver.machine.trials()) == before


def test_an_attempt_whose_end_is_not_said_counts_as_lost():
    driver = Driver({"a": 1, "b": 1}, parallel_trials=1)
    driver.start(1)
    asked = driver.end_task(1, failed(FailureKind.KILLED))
    (timer,) = of(SetTimer, asked)
    asked = driver.feed(ev.TimerFired(timer.timer))
    assert [i.attempt.attempt for i in of(PrepareAttempt, asked)] == [2]


def test_an_attempt_that_completed_but_does_not_end_counts_as_lost():
    driver = Driver(max_attempts=1)
    driver.start(1)
    (timer,) = timers(ev.StopTimer, driver.end_task(1, completed(0.5)))
    driver.feed(ev.TimerFired(timer.timer))
    assert driver.trial(1).state is TrialState.COMPLETED


def never_ends(driver):
    """Trial 1 fails and its host never says that it ended; returns what is asked for then."""
    driver.start(1)
    (timer,) = timers(ev.StopTimer, driver.end_task(1, failed(FailureKind.KILLED)))
    driver.now = timer.at
    return driver.feed(ev.TimerFired(timer.timer))


def test_slots_that_never_come_back_fail_the_study_in_the_end():
    driver = Driver()
    (timer,) = timers(ev.HostsGoneTimer, never_ends(driver))
    assert timer.at == driver.now + availability.HOSTS_GONE_LIMIT
    driver.feed(ev.TimerFired(timer.timer))
    assert driver.study.state is StudyState.FAILED
    assert "do not end" in driver.study.reason


def test_slots_that_come_back_in_time_keep_the_study():
    driver = Driver()
    (timer,) = timers(ev.HostsGoneTimer, never_ends(driver))
    assert [i.attempt.attempt for i in of(PrepareAttempt, driver.end(1))] == [2]
    driver.feed(ev.TimerFired(timer.timer))
    assert driver.study.state is StudyState.RUNNING


def test_a_host_that_is_back_gets_time_to_end_what_is_left():
    driver = Driver()
    driver.start(1)
    (gone,) = timers(ev.HostsGoneTimer, driver.feed(ev.HostLost("a", "cut")))
    driver.now = gone.at - 1.0
    (ending,) = timers(ev.HostsGoneTimer, driver.feed(ev.HostFound("a")))
    driver.feed(ev.TimerFired(gone.timer))
    assert driver.study.state is StudyState.RUNNING
    driver.feed(ev.TimerFired(ending.timer))
    assert driver.study.state is StudyState.FAILED


def test_a_restarted_agent_is_asked_for_what_it_was_to_run():
    driver = Driver({"a": 2})
    driver.start(1)
    asked = driver.feed(ev.HostRestarted("a"))
    assert of(CheckAttempt, asked) == [CheckAttempt(driver.attempt(1), "a", CHIEF)]


def test_an_attempt_that_a_restarted_agent_knows_goes_on():
    driver = Driver()
    driver.start(1)
    driver.feed(ev.HostRestarted("a"), ev.AttemptChecked(driver.attempt(1), "a", known=True))
    driver.end_task(1, completed(0.5))
    driver.end(1)
    assert (driver.trial(1).state, driver.trial(1).attempts) == (TrialState.COMPLETED, 1)


def test_an_attempt_that_a_restarted_agent_has_lost_is_tried_again_at_once():
    driver = Driver()
    driver.start(1)
    asked = driver.feed(ev.HostRestarted("a"), ev.AttemptChecked(driver.attempt(1), "a", known=False))
    assert [(i.attempt.attempt, i.host) for i in of(PrepareAttempt, asked)] == [(2, "a")]


def test_a_restarted_agent_that_has_lost_a_stopping_attempt_ends_it():
    driver = Driver()
    driver.start(1)
    driver.feed(ev.StopRequested("enough"), ev.HostRestarted("a"))
    driver.feed(ev.AttemptChecked(driver.attempt(1), "a", known=False))
    assert driver.study.state is StudyState.STOPPED


def test_slots_that_were_given_up_are_asked_for_once_more_after_a_restart():
    driver = Driver()
    never_ends(driver)
    asked = driver.feed(ev.HostRestarted("a"))
    assert [i.attempt for i in of(StopAttempt, asked)] == [driver.attempt(1)]


def test_an_agent_that_is_stopped_is_named_as_the_cause():
    driver = Driver()
    driver.start(1)
    driver.end_task(1, TaskResult(TaskStatus.STOPPED))
    driver.end(1, reason=StopReason.SHUTDOWN)
    (note,) = driver.trial(1).notes
    assert "HOST_LOST: the agent of host a was stopped" in note


def test_nothing_new_is_placed_on_a_host_that_does_not_answer():
    driver = Driver({"a": 1, "b": 1}, parallel_trials=1)
    first = driver.trial(1).hosts[0]
    other = "b" if first == "a" else "a"
    driver.feed(ev.HostSilent(other))
    driver.start(1, hosts=(first,))
    driver.end_task(1, completed(0.5), host=first)
    assert {i.host for i in of(PrepareAttempt, driver.end(1, host=first))} == {first}


def test_a_silent_host_that_answers_is_used_again():
    driver = Driver({"a": 1})
    driver.feed(ev.HostSilent("a"))
    assert of(PrepareAttempt, driver.complete(1)) == []
    assert {i.host for i in of(PrepareAttempt, driver.feed(ev.HostHeard("a")))} == {"a"}


def test_the_user_is_told_that_too_few_hosts_are_left():
    driver = Driver()
    told = of(Tell, driver.feed(ev.HostLost("a", "cut")))
    assert any("waiting up to 120 s" in instruction.notice.message for instruction in told)


def test_a_study_without_hosts_fails_in_the_end():
    driver = Driver()
    (timer,) = of(SetTimer, driver.feed(ev.HostLost("a", "cut")))
    assert timer.at == availability.HOSTS_GONE_LIMIT
    driver.feed(ev.TimerFired(timer.timer))
    assert driver.study.state is StudyState.FAILED


def test_hosts_that_come_back_in_time_keep_the_study():
    driver = Driver()
    (timer,) = of(SetTimer, driver.feed(ev.HostLost("a", "cut")))
    driver.feed(ev.HostFound("a"), ev.TimerFired(timer.timer))
    assert driver.study.state is StudyState.RUNNING


# --- the end --------------------------------------------------------------------------------------


def test_stopping_ends_running_and_waiting_trials():
    driver = Driver({"a": 2})
    driver.start(1)
    driver.feed(ev.PrepareRefused(driver.attempt(2), "a", "full"))
    driver.feed(ev.StopRequested("enough"))
    assert driver.study.state is StudyState.STOPPING
    driver.end_task(1, stopped())
    driver.end(1, reason=StopReason.STUDY_STOPPED)
    assert driver.study.state is StudyState.STOPPED
    assert [trial.state for trial in driver.machine.trials()] == [TrialState.STOPPED] * 2
    assert driver.study.reason == "enough"


def test_a_trial_that_completes_while_the_study_stops_counts():
    driver = Driver()
    driver.start(1)
    driver.feed(ev.StopRequested("enough"))
    driver.end_task(1, completed(1.0))
    driver.end(1)
    assert driver.trial(1).state is TrialState.COMPLETED


def test_the_time_budget_completes_the_study():
    driver = Driver(time_budget=60.0, stages=(StageBudget(1, 5),))
    (timer,) = of(SetTimer, driver.asked)
    assert timer.at == 60.0
    driver.complete(1)
    driver.feed(ev.TimerFired(timer.timer))
    driver.feed(ev.PrepareRefused(driver.attempt(2), "a", "full"))
    assert driver.study.state is StudyState.COMPLETED
    assert "time budget" in driver.study.reason


def test_aborting_ends_the_study_without_waiting():
    driver = Driver()
    driver.start(1)
    asked = driver.feed(ev.StudyAborted(StudyState.FAILED, "defect"))
    assert len(of(StopAttempt, asked)) == 1
    assert driver.study.state is StudyState.FAILED
    assert driver.trial(1).state is TrialState.STOPPED


def test_after_the_end_nothing_happens_any_more():
    driver = Driver(stages=(StageBudget(1, 1),))
    driver.complete(1)
    ended = driver.study
    assert driver.feed(ev.StopRequested("late"), ev.HostLost("a", "cut"), ev.SlotsReleased("a")) == []
    assert driver.study == ended


def test_a_study_that_was_stopped_before_it_began():
    machine = StudyMachine(make_spec(), {"a": 1}, now=0.0, started_at=1000.0)
    machine.handle(ev.StopRequested("never mind"), 0.0)
    assert machine.handle(ev.StudyBegun(), 0.0) == []
    assert machine.study().state is StudyState.STOPPED


# --- what must not happen -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        ev.StudyBegun(),
        ev.StartSucceeded(AttemptId("s1", 1, 1), "a"),
        ev.TaskStarted(AttemptId("s1", 1, 1), "a", CHIEF),
        ev.TaskEnded(AttemptId("s1", 1, 1), "a", CHIEF, stopped()),
        ev.StopAnswered(AttemptId("s1", 1, 1), "a", was_active=True),
        ev.PrepareSucceeded(AttemptId("s1", 1, 1), "b", {}),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_illegal_event_raises_and_changes_nothing(event):
    driver = Driver()
    before = driver.study, driver.machine.trials()
    with pytest.raises(IllegalTransitionError) as error:
        driver.feed(event)
    assert not isinstance(error.value, LateEventError)
    assert (driver.study, driver.machine.trials()) == before


def test_a_task_of_another_host_is_refused():
    driver = Driver({"a": 1, "b": 1}, cluster=Cluster(0, 2))
    driver.start(1, hosts=("a", "b"))
    with pytest.raises(IllegalTransitionError):
        driver.end_task(1, completed(1.0), host="b")


@pytest.mark.parametrize("trial", [1, 99])
def test_messages_of_ended_and_unknown_attempts_are_late(trial):
    driver = Driver()
    driver.complete(1)
    with pytest.raises(LateEventError):
        driver.end(trial)


def test_what_is_saved_comes_with_what_follows():
    driver = Driver()
    driver.start(1)
    assert len(saved(TaskRecord, driver.end_task(1, completed(1.0)))) == 1
    asked = driver.end(1)
    assert [(t.number, t.state) for t in saved(Trial, asked)] == [
        (1, TrialState.COMPLETED),
        (2, TrialState.RUNNING),
    ]

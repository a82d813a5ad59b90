"""What is said and asked when hosts come and go, in a machine."""

from __future__ import annotations

import pytest

from coordinator import events as ev
from coordinator.domain import Cluster, StageBudget, StopReason, StudyState, TrialState
from coordinator.instructions import ForgetHost, PrepareAttempt, StopAttempt, Tell
from coordinator.machine import StudyMachine
from nhop_models.contract import FailureKind
from tests.coordinator.driver import Driver, completed, failed, of, timers
from tests.coordinator.studies import make_spec

MANY = (StageBudget(10, 9),)


def notices(instructions):
    return [told.notice.message for told in of(Tell, instructions)]


def prepared_on(instructions):
    return [prepare.host for prepare in of(PrepareAttempt, instructions)]


def test_a_host_that_joins_gets_trials_at_once():
    driver = Driver(stages=MANY)
    asked = driver.feed(ev.HostJoined("b", 2))
    assert prepared_on(asked) == ["b", "b"]
    assert notices(asked) == ["host b has joined: 2 slots"]


def test_other_slots_are_said_and_used():
    driver = Driver({"a": 1}, stages=MANY)
    asked = driver.feed(ev.HostJoined("a", 2))
    assert prepared_on(asked) == ["a"]
    assert notices(asked) == ["host a has 2 slots now"]


def test_what_has_not_changed_is_not_said():
    assert notices(Driver().feed(ev.HostJoined("a", 1))) == []


def test_fewer_slots_end_nothing():
    driver = Driver({"a": 2}, stages=MANY)
    driver.start(1)
    driver.start(2)
    assert of(StopAttempt, driver.feed(ev.HostJoined("a", 1))) == []
    driver.end_task(1, completed(1.0))
    assert prepared_on(driver.end(1)) == []
    driver.end_task(2, completed(1.0))
    assert prepared_on(driver.end(2)) == ["a"]


def test_a_host_that_leaves_ends_its_attempts_in_peace_and_is_forgotten_then():
    driver = Driver({"a": 1, "b": 1}, stages=MANY)
    driver.start(1)
    asked = driver.feed(ev.HostLeft("a"))
    assert notices(asked) == ["host a leaves the study: 1 attempt may end there first"]
    assert of(StopAttempt, asked) == of(ForgetHost, asked) == []
    driver.end_task(1, completed(0.5))
    asked = driver.end(1)
    assert of(ForgetHost, asked) == [ForgetHost("a")]
    assert prepared_on(asked) == []
    assert driver.trial(1).state is TrialState.COMPLETED


def test_a_host_where_nothing_runs_is_forgotten_at_once():
    driver = Driver({"a": 1, "b": 1}, parallel_trials=1)
    asked = driver.feed(ev.HostLeft("b"))
    assert of(ForgetHost, asked) == [ForgetHost("b")]
    assert notices(asked) == ["host b leaves the study: nothing runs there"]


def test_an_attempt_that_fails_on_a_host_that_leaves_is_tried_elsewhere():
    driver = Driver({"a": 1, "b": 1}, parallel_trials=1)
    driver.start(1)
    driver.feed(ev.HostLeft("a"))
    driver.end_task(1, failed(FailureKind.KILLED))
    assert prepared_on(driver.end(1, reason=StopReason.FAILED)) == ["b"]


def test_a_lease_that_is_refused_on_a_host_that_leaves_lets_it_go():
    driver = Driver({"a": 1, "b": 1}, parallel_trials=1)
    driver.feed(ev.HostLeft("a"))
    asked = driver.feed(ev.PrepareRefused(driver.attempt(1), "a", "full"))
    assert of(ForgetHost, asked) == [ForgetHost("a")]
    assert prepared_on(asked) == ["b"]


def test_a_host_that_leaves_and_is_lost_is_let_go_and_its_trials_go_elsewhere():
    driver = Driver({"a": 1, "b": 1}, parallel_trials=1)
    driver.start(1)
    driver.feed(ev.HostLeft("a"))
    asked = driver.feed(ev.HostLost("a", "gone"))
    assert ForgetHost("a") in asked
    assert prepared_on(asked) == ["b"]


def test_a_host_that_does_not_end_an_attempt_is_let_go_once_it_has():
    driver = Driver({"a": 1, "b": 1}, parallel_trials=1)
    driver.start(1)
    driver.feed(ev.HostLeft("a"))
    driver.end_task(1, completed(0.5))
    (timer,) = timers(ev.StopTimer, driver.asked)
    driver.now = timer.at
    assert of(ForgetHost, driver.feed(ev.TimerFired(timer.timer))) == []
    assert of(ForgetHost, driver.end(1)) == [ForgetHost("a")]


def test_a_host_that_comes_back_while_it_leaves_is_used_again():
    driver = Driver({"a": 2, "b": 1}, parallel_trials=1)
    driver.start(1)
    driver.feed(ev.HostLeft("a"))
    assert notices(driver.feed(ev.HostJoined("a", 2))) == ["host a has joined: 2 slots"]
    driver.end_task(1, completed(0.5))
    asked = driver.end(1)
    assert of(ForgetHost, asked) == []
    assert len(prepared_on(asked)) == 1


def test_a_host_that_left_lost_and_joins_again_is_told_to_stop_what_is_left():
    driver = Driver({"a": 1, "b": 1}, parallel_trials=1)
    driver.start(1)
    driver.feed(ev.HostLost("a", "gone"), ev.HostLeft("a"))
    asked = driver.feed(ev.HostJoined("a", 1))
    assert of(StopAttempt, asked) == [StopAttempt(driver.attempt(1), "a", StopReason.RELEASED)]


def test_a_host_that_was_silent_is_told_again_to_stop_what_was_given_up():
    driver = Driver({"a": 1, "b": 1}, parallel_trials=1)
    driver.start(1)
    driver.end_task(1, failed(FailureKind.KILLED))
    (timer,) = timers(ev.StopTimer, driver.asked)
    driver.feed(ev.HostSilent("a"))
    driver.now = timer.at
    driver.feed(ev.TimerFired(timer.timer))
    asked = driver.feed(ev.HostHeard("a"))
    assert of(StopAttempt, asked) == [StopAttempt(driver.attempt(1), "a", StopReason.RELEASED)]


def test_leaving_twice_says_nothing_new():
    driver = Driver({"a": 1, "b": 1}, parallel_trials=1)
    driver.feed(ev.HostLeft("b"))
    assert driver.feed(ev.HostLeft("b")) == [ForgetHost("b")]


def test_a_host_that_leaves_before_it_has_joined_is_forgotten():
    """It is followed from the moment when it is given what the study needs."""
    assert Driver({"a": 1}).feed(ev.HostLeft("z")) == [ForgetHost("z")]


def test_too_few_hosts_after_one_has_left_are_waited_for():
    driver = Driver({"a": 1, "b": 1}, cluster=Cluster(1, 2))
    (waiting,) = (n for n in notices(driver.feed(ev.HostLeft("b"))) if "waiting" in n)
    assert "waiting up to 120 s for hosts" in waiting
    (timer,) = timers(ev.HostsGoneTimer, driver.asked)
    driver.feed(ev.HostJoined("c", 1))
    driver.now = timer.at
    driver.feed(ev.TimerFired(timer.timer))
    assert driver.study.state is StudyState.RUNNING


@pytest.mark.parametrize(
    "event",
    [
        ev.HostLost("z", "gone"),
        ev.HostFound("z"),
        ev.HostAwaited("z"),
        ev.HostSilent("z"),
        ev.HostHeard("z"),
        ev.HostRestarted("z"),
        ev.SlotsReleased("z"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_what_happens_to_hosts_of_others_is_no_concern(event):
    """A host that left before this study came may still have attempts of another."""
    assert Driver().feed(event) == []


@pytest.mark.parametrize("event", [ev.HostJoined("b", 1), ev.HostLeft("a")], ids=["joined", "left"])
def test_after_the_end_hosts_do_not_matter(event):
    driver = Driver()
    driver.feed(ev.StudyAborted(StudyState.STOPPED, "enough"))
    assert driver.feed(event) == []


def test_a_host_that_joins_before_the_beginning_gets_its_trials_then():
    machine = StudyMachine(make_spec(), {"a": 1}, now=0.0, started_at=0.0)
    assert prepared_on(machine.handle(ev.HostJoined("b", 1), 0.0)) == []
    assert sorted(prepared_on(machine.handle(ev.StudyBegun(), 0.0))) == ["a", "b"]

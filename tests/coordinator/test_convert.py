from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator import convert
from coordinator import events as ev
from coordinator.convert_study import study_from_pb, study_to_pb, trial_from_pb, trial_to_pb
from coordinator.domain import (
    AttemptId,
    Failure,
    Limits,
    Report,
    Study,
    StudyState,
    Training,
    Trial,
    TrialCounts,
    TrialState,
)
from coordinator.instructions import PrepareAttempt, StartAttempt
from nhop.v1 import agent_pb2, study_pb2, types_pb2
from nhop_models.contract import FailureKind, TaskId, TaskStatus

ATTEMPT = AttemptId("s1", 2, 3)
WORKER = TaskId.parse("worker/1")

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: x != int(x))
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=5))
def test_parameters_come_back_as_they_were(values):
    back = convert.values_from_struct(convert.values_to_struct(values))
    assert back == values


def test_whole_numbers_are_integers():
    back = convert.values_from_struct(convert.values_to_struct({"batch_size": 32, "layers": [4, 5]}))
    assert [type(value) for value in (back["batch_size"], *back["layers"])] == [int, int, int]


def test_numbers_that_would_change_on_the_way_are_refused():
    with pytest.raises(ValueError, match="too large"):
        convert.values_to_struct({"seed": 2**53 + 1})


@pytest.mark.parametrize("kind", FailureKind)
def test_every_failure_kind_crosses_the_wire(kind):
    failure = Failure(kind, "what", "log")
    assert convert.failure_from_pb(convert.failure_to_pb(failure)) == failure


@pytest.mark.parametrize(
    "message",
    [
        types_pb2.TaskOutcome(status=99),
        types_pb2.TaskOutcome(),
        types_pb2.TaskOutcome(status=types_pb2.TASK_STATUS_FAILED),
        types_pb2.TaskOutcome(status=types_pb2.TASK_STATUS_FAILED, failure=types_pb2.Failure(kind=77)),
    ],
)
def test_an_unknown_value_is_an_error(message):
    with pytest.raises(convert.ProtocolError):
        convert.result_from_pb(message)


@pytest.mark.parametrize("task", [types_pb2.TaskId(role=9), types_pb2.TaskId()])
def test_an_unknown_role_is_an_error(task):
    with pytest.raises(convert.ProtocolError, match="task role"):
        convert.task_from_pb(task)


def event(**kind):
    return agent_pb2.Event(attempt=convert.attempt_to_pb(ATTEMPT), source="worker/1", sequence=4, **kind)


def test_reports_and_events_are_told_apart():
    report = types_pb2.Report(step=5, train_loss=0.5, metrics={"mae": 2.0}, time=convert.timestamp(1000.25))
    ended = agent_pb2.TaskEnded(
        task=convert.task_to_pb(WORKER), outcome=types_pb2.TaskOutcome(status=types_pb2.TASK_STATUS_COMPLETED)
    )
    reports, events = convert.events_from_pb(
        "a",
        ATTEMPT,
        str(WORKER),
        [event(report=report), event(task_ready=agent_pb2.TaskReady()), event(task_ended=ended)],
    )
    assert list(reports) == [Report(ATTEMPT, WORKER, 4, 5, 0.5, None, {"mae": 2.0}, 1000.25)]
    assert [type(e) for e in events] == [ev.TaskReady, ev.TaskEnded]
    assert events[1].result.status is TaskStatus.COMPLETED


def test_events_are_told_apart_by_attempt_and_source():
    other = agent_pb2.Event(attempt=convert.attempt_to_pb(ATTEMPT), source="agent", sequence=1)
    runs = convert.by_source(ATTEMPT.study_id, [event(), event(), other, event()])
    assert [(attempt, source, len(events)) for attempt, source, events in runs] == [
        (ATTEMPT, "worker/1", 2), (ATTEMPT, "agent", 1), (ATTEMPT, "worker/1", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        event(),
        event(attempt_ended=agent_pb2.AttemptEnded()),
        event(attempt_ended=agent_pb2.AttemptEnded(reason=55)),
    ],
)
def test_an_event_that_is_not_understood_is_an_error(message):
    with pytest.raises(convert.ProtocolError):
        convert.events_from_pb("a", ATTEMPT, str(WORKER), [message])


def test_a_ps_takes_no_slot():
    request = convert.prepare_to_pb(PrepareAttempt(ATTEMPT, "a", (TaskId.parse("ps/0"), WORKER), ports=True))
    assert [(task.slots, task.port) for task in request.tasks] == [(0, True), (1, True)]


def test_workers_ask_for_gpus_and_parameter_servers_do_not():
    command = PrepareAttempt(ATTEMPT, "a", (TaskId.parse("ps/0"), WORKER), ports=True)
    assert [task.gpus for task in convert.prepare_to_pb(command, 0.5).tasks] == [0.0, 0.5]


def test_a_start_says_everything():
    training = Training("m:M", {"data_instances": 10}, 0.5, ("/code",), "/work", True, 0.5)
    command = StartAttempt(ATTEMPT, "a", ("h:1",), ("h:2", "h:3"), {"x": 1}, 100, 42)
    request = convert.start_to_pb(command, training, Limits(start=60.0, run=9.5), 1, 2)
    assert list(request.cluster.workers) == ["h:2", "h:3"]
    assert request.training.seed == 42
    assert request.training.train_epoch == 100
    assert convert.values_from_struct(request.training.settings.values) == {"data_instances": 10}
    assert convert.seconds_of(request.limits.run) == 9.5
    assert convert.seconds_of(request.limits.start) == 60.0


def test_a_start_says_what_is_kept():
    training = Training(
        "m:M", {}, 0.0, sync_replicas=True, sync_backup_workers=1, checkpoint_every=500, keep_model=True
    )
    command = StartAttempt(ATTEMPT, "a", (), (), {}, 100, 42, keep_model_below=0.5)
    sent = convert.start_to_pb(command, training, Limits(), 0, 1).training
    assert (sent.sync_replicas, sent.sync_backup_workers, sent.checkpoint_every) == (True, 1, 500)
    assert (sent.keep_model, sent.keep_model_below) == (True, 0.5)
    first = StartAttempt(ATTEMPT, "a", (), (), {}, 100, 42)
    assert not convert.start_to_pb(first, training, Limits(), 0, 1).training.HasField("keep_model_below")


def test_a_lease_is_longer_where_a_checkpoint_goes_there_first():
    prepare = PrepareAttempt(ATTEMPT, "a", (WORKER,), ports=False, restores=True)
    assert convert.seconds_of(convert.prepare_to_pb(prepare).lease_timeout) > convert.LEASE_TIMEOUT


def test_files_and_notes_of_a_task_come_along():
    outcome = types_pb2.TaskOutcome(status=types_pb2.TASK_STATUS_COMPLETED, notes=["slow"])
    outcome.artifacts.add(name="model.keras", size=7)
    result = convert.result_from_pb(outcome)
    assert (result.artifacts, result.notes) == ({"model.keras": 7}, ("slow",))


@pytest.mark.parametrize(("source", "steps"), [("worker/0", [500]), ("worker/1", [])])
def test_only_the_chiefs_checkpoints_count(source, steps):
    message = event(checkpoint_saved=agent_pb2.CheckpointSaved(step=500))
    _, events = convert.events_from_pb("a", ATTEMPT, source, [message])
    assert [each.step for each in events] == steps


TRIAL = Trial(
    3, 2, TrialState.FAILED, {"x": 1, "layers": [4, 5]}, failure=Failure(FailureKind.DATA, "no"),
    attempts=2, seconds=1.5, hosts=("a",), notes=("lost", "found"), metrics={"mae": 0.5},
)  # fmt: skip


def test_a_trial_comes_back_as_it_was():
    assert trial_from_pb(trial_to_pb(TRIAL)) == TRIAL


def test_a_study_comes_back_as_it_was():
    counts = TrialCounts(total=9, waiting=1, running=2, completed=3, pruned=0, failed=2, stopped=1)
    study = Study("s1", StudyState.STOPPED, (), 3, counts, TRIAL, "enough", 1000.5, 1001.5)
    status = study_from_pb(study_to_pb(study, "/out"))
    assert (status.state, status.counts, status.best) == (StudyState.STOPPED, counts, TRIAL)
    assert (status.started_at, status.ended_at, status.output_directory) == (1000.5, 1001.5, "/out")


def test_every_state_has_its_number():
    numbers = set(study_pb2.TrialState.values()) - {study_pb2.TRIAL_STATE_UNSPECIFIED}
    back = {trial_from_pb(study_pb2.Trial(number=1, state=number)).state for number in numbers}
    assert back == set(TrialState)

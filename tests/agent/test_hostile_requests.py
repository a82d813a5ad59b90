"""Requests that are too much: refused at once, and in few words."""

from __future__ import annotations

import time

import pytest

from agent.checks import MAX_TASKS, MAX_VALUES, MOST_PROBLEMS, InvalidRequestError
from agent.convert import (
    MAX_PATHS,
    MAX_STUDIES,
    prepare_request,
    probes_request,
    sign_of_life,
    start_request,
    subscribe_request,
)
from nhop.v1 import agent_pb2
from tests.contract import harness


def start(**training: object) -> agent_pb2.StartAttemptRequest:
    lease = agent_pb2.TaskLease(task=harness.task_id("worker/0"))
    message = harness.start_request(harness.attempt_id(), [lease])
    for field, value in training.items():
        setattr(message.training, field, value)
    return message


@pytest.mark.parametrize(
    "address", ["h:" + "9" * 5000, "h:٣", "h:²", "h:0", "h:65536", ":1", "h", "x" * 300 + ":1"]
)
def test_an_address_without_a_port_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"probes\[0\]\.address: must be host:port"):
        probes_request(agent_pb2.CheckReachRequest(probes=[agent_pb2.OpenProbeResponse(address=address)]))
    request = start(parameter_servers=1)
    request.cluster.ps.append(address)
    with pytest.raises(InvalidRequestError, match=r"cluster\.ps\[0\]: must be host:port"):
        start_request(request)


def test_of_very_many_problems_the_first_are_told() -> None:
    request = agent_pb2.Subscribe(positions=[agent_pb2.Position()] * 1_000_000)
    begun = time.process_time()
    with pytest.raises(InvalidRequestError) as refused:
        subscribe_request(request)
    assert len(refused.value.problems) == MOST_PROBLEMS
    assert time.process_time() - begun < 1.0


def test_more_than_there_can_be_is_not_looked_at() -> None:
    begun = time.process_time()
    with pytest.raises(InvalidRequestError, match="study_ids: must be at most"):
        sign_of_life(agent_pb2.GetInventoryRequest(study_ids=["a"] * 100 * MAX_STUDIES))
    with pytest.raises(InvalidRequestError, match="probes: must be at most"):
        probes_request(
            agent_pb2.CheckReachRequest(probes=[agent_pb2.OpenProbeResponse(address="h:1")] * 200_000)
        )
    with pytest.raises(InvalidRequestError, match="tasks: must be at most"):
        prepare_request(
            agent_pb2.PrepareAttemptRequest(
                attempt=harness.attempt_id(), tasks=harness.requirements("worker/0") * 200_000
            )
        )
    assert time.process_time() - begun < 2.0


@pytest.mark.parametrize(
    ("field", "text"),
    [("workers", f"must be 1 to {MAX_TASKS}"), ("parameter_servers", f"must be 0 to {MAX_TASKS}")],
)
def test_an_attempt_has_no_more_tasks_than_can_be_leased(field: str, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"training\.{field}: {text}"):
        start_request(start(**{field: MAX_TASKS + 1}))


def test_a_task_is_not_given_very_many_values_or_paths() -> None:
    request = start()
    request.training.settings.values.update({"list": [0] * (MAX_VALUES + 1)})
    with pytest.raises(InvalidRequestError, match=f"more than {MAX_VALUES:,} values"):
        start_request(request)
    request = start()
    request.training.python_path.extend(["/x"] * (MAX_PATHS + 1))
    with pytest.raises(InvalidRequestError, match=rf"python_path: must be at most {MAX_PATHS}"):
        start_request(request)

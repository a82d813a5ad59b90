"""What of the training goes to the tasks."""

from __future__ import annotations

from typing import Any

import pytest

from agent.checks import InvalidRequestError
from agent.convert import start_request
from nhop.v1 import agent_pb2
from tests.contract import harness


def request(**training: Any) -> agent_pb2.StartAttemptRequest:
    lease = agent_pb2.TaskLease(task=harness.task_id("worker/0"))
    message = harness.start_request(harness.attempt_id(), [lease])
    for field, value in training.items():
        setattr(message.training, field, value)
    return message


def test_what_is_to_be_kept_goes_to_the_tasks() -> None:
    _, spec, _ = start_request(
        request(sync_backup_workers=1, checkpoint_every=500, keep_model=True, keep_model_below=0.5)
    )
    assert (spec.sync_backup_workers, spec.checkpoint_every) == (1, 500)
    assert (spec.keep_model, spec.keep_model_below) == (True, 0.5)


def test_a_model_is_kept_in_any_case_where_no_bound_is_given() -> None:
    _, spec, _ = start_request(request(keep_model=True))
    assert spec.keep_model_below is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sync_backup_workers", -1),
        ("checkpoint_every", -1),
        ("keep_model_below", float("nan")),
        ("keep_model_below", float("inf")),
    ],
)
def test_what_cannot_be_is_named(field: str, value: float) -> None:
    with pytest.raises(InvalidRequestError, match=rf"training\.{field}"):
        start_request(request(**{field: value}))

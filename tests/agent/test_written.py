"""What a task has written, where the user's code had a hand in it: one task must not end a study's stream."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.attempts import AttemptDirectory
from agent.convert import event_to_pb
from agent.domain import AttemptId, Exit, StreamEvent, TaskEnded
from agent.logs import LogReader
from agent.outcome import fuse
from agent.spool import SpoolReader
from nhop.v1 import agent_pb2, types_pb2
from nhop_models.contract import TaskId, TaskStatus, frame
from tests.contract.harness import DEADLINE, RealAgent, attempt_id, outcome

CHIEF = TaskId.parse("worker/0")
ATTEMPT = AttemptId("study", 1, 1)

_scalars = st.sampled_from(
    (
        None,
        True,
        0,
        -1,
        2**63,
        -(2**63) - 1,
        10**400,
        1.5,
        1e300,
        float("nan"),
        float("inf"),
        "",
        "x",
        "\ud800",
        "\x1b",
    )
)


def made(place: Path) -> AttemptDirectory:
    """An attempt's directory, as far as its tasks' files need it."""
    directory = AttemptDirectory(place)
    directory.log_path(CHIEF).parent.mkdir(exist_ok=True)
    return directory


values = st.recursive(
    _scalars,
    lambda v: (
        st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(("m", "\ud800", "a.b")), v, max_size=3)
    ),
)
common = settings(
    max_examples=200,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def record(kind: Any, when: Any, payload: Any) -> bytes:
    return frame(json.dumps([kind, when, payload]).encode())


def sent(*events: Any) -> None:
    """They can be said in the stream."""
    for number, (when, kind) in enumerate(events):
        event_to_pb(StreamEvent(ATTEMPT, "worker/0", number + 1, when, kind)).SerializeToString()


@common
@given(
    st.sampled_from(("ready", "report", "checkpoint", "other", None)),
    st.just(1.0) | values,
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("step", "train_loss", "val_loss", "metrics", "size"), values)
    )
    | values,
)
def test_a_record_is_passed_on_or_ends_the_spool(tmp_path: Path, kind: Any, when: Any, payload: Any) -> None:
    path = tmp_path / "worker-0.reports"
    good = record("ready", 1.0, {})
    path.write_bytes(good + record(kind, when, payload) + good)
    reader = SpoolReader(path)
    found = reader.read(10)
    assert len(found) in (1, 3)
    sent(*((time, event) for _, time, event in found))


GOOD: dict[str, Any] = {
    "status": "COMPLETED", "failure_kind": None, "message": "", "detail": "", "step": 3, "train_loss": 0.5,
    "val_loss": None, "metrics": {}, "phase_seconds": {}, "artifacts": {}, "notes": [],
}  # fmt: skip


@common
@given(st.dictionaries(st.sampled_from(sorted(GOOD)), values, max_size=3))
def test_an_outcome_is_passed_on_or_counts_as_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    directory = made(tmp_path)
    directory.outcome_path(CHIEF).write_text(json.dumps({**GOOD, **changes}))
    outcome = directory.read_outcome(CHIEF)
    if not changes:
        assert outcome is not None
    result = fuse(CHIEF, Exit(exit_code=0), outcome, "", told=False, imposed=None)
    sent((1.0, TaskEnded(CHIEF, result)))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [fifo, link, folder, loop])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    directory = made(tmp_path)
    for path in (directory.spool_path(CHIEF), directory.outcome_path(CHIEF), directory.log_path(CHIEF)):
        make(path)
    begun = time.monotonic()
    reader = SpoolReader(directory.spool_path(CHIEF))
    assert reader.read(10) == []
    outcome = directory.read_outcome(CHIEF)
    assert outcome is None or outcome.status is TaskStatus.FAILED
    assert directory.log_tail(CHIEF) == ""
    with pytest.raises(OSError, match=r"regular file|directory"):
        LogReader(directory, CHIEF)
    assert time.monotonic() - begun < 5.0


@pytest.mark.parametrize("text", ["[" * 100_000, "\xff", "[]", "null", "{}", "1"])
def test_a_file_that_is_no_outcome(tmp_path: Path, text: str) -> None:
    directory = made(tmp_path)
    directory.outcome_path(CHIEF).write_text(text, encoding="latin-1")
    assert directory.read_outcome(CHIEF) is None


def test_a_record_of_very_deep_json_ends_the_spool(tmp_path: Path) -> None:
    path = tmp_path / "worker-0.reports"
    path.write_bytes(record("ready", 1.0, {}) + frame(b"[" * 100_000))
    assert len(SpoolReader(path).read(10)) == 1


async def test_a_task_that_says_too_much_at_its_end_has_failed_and_holds_nothing(agent: RealAgent) -> None:
    await agent.run(attempt_id(), "worker/0", script={"worker/0": {"metrics": 60_000}})
    failure = outcome(await agent.events(attempt_id()), "worker/0").failure
    assert failure.kind == types_pb2.FAILURE_KIND_USER_CODE
    assert "metrics" in failure.message
    inventory = await agent.stub.GetInventory(agent_pb2.GetInventoryRequest(), timeout=DEADLINE)
    assert inventory.free_slots == inventory.slots

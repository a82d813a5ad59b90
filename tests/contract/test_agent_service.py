"""What AgentService promises, whoever serves it."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from nhop.v1 import agent_pb2, types_pb2
from tests.contract.harness import (
    DEADLINE,
    GPUS,
    Harness,
    attempt_id,
    ended,
    is_kind,
    kinds,
    outcome,
    requirements,
    start_request,
    task_id,
)

FOREVER = {"worker/0": {"runs_for": None, "reports": 2}}


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def detail(error: grpc.aio.AioRpcError, message: Any) -> Any:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    assert status.details[0].Unpack(message)
    return message


# --- leases ---------------------------------------------------------------------------------


async def test_inventory_counts_slots(agent: Harness) -> None:
    inventory = await agent.inventory()
    assert (inventory.slots, inventory.free_slots) == (2, 2)


async def test_prepared_tasks_take_their_slots(agent: Harness) -> None:
    await agent.prepare(attempt_id(), "ps/0", "worker/0")
    assert (await agent.inventory()).free_slots == 1


async def test_each_task_of_a_cluster_gets_a_port_of_its_own(agent: Harness) -> None:
    prepared = await agent.prepare(attempt_id(), "ps/0", "ps/1", "worker/0")
    assert len({lease.address for lease in prepared.leases}) == 3


async def test_a_task_alone_gets_no_port(agent: Harness) -> None:
    prepared = await agent.prepare(attempt_id(), "worker/0")
    assert [lease.address for lease in prepared.leases] == [""]


async def test_prepare_again_gives_the_same_leases(agent: Harness) -> None:
    first = await agent.prepare(attempt_id(), "ps/0", "worker/0")
    assert await agent.prepare(attempt_id(), "ps/0", "worker/0") == first


async def test_a_gang_larger_than_the_free_slots_is_refused(agent: Harness) -> None:
    error = await refusal(agent.prepare(attempt_id(), "ps/0", "worker/0", "worker/1", "worker/2"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail(error, error_details_pb2.ErrorInfo()).reason == "SLOTS"


async def test_a_refused_gang_leaves_nothing_leased(agent: Harness) -> None:
    await refusal(agent.prepare(attempt_id(), "worker/0", "worker/1", "worker/2"))
    assert (await agent.inventory()).free_slots == 2


async def test_a_lease_that_is_not_started_is_released(agent: Harness) -> None:
    await agent.prepare(attempt_id(), "worker/0", timeout=0.1)
    events = await agent.events(attempt_id())
    assert events[-1].attempt_ended.reason == agent_pb2.STOP_REASON_RELEASED


async def test_stopping_a_prepared_attempt_releases_it(agent: Harness) -> None:
    await agent.prepare(attempt_id(), "worker/0")
    assert await agent.stop(attempt_id())
    await agent.events(attempt_id())
    assert (await agent.inventory()).free_slots == 2


async def test_a_newer_attempt_releases_an_older_one(agent: Harness) -> None:
    await agent.prepare(attempt_id(attempt=1), "worker/0", "worker/1")
    await agent.prepare(attempt_id(attempt=2), "worker/0", "worker/1")
    events = await agent.events(attempt_id(attempt=1))
    assert events[-1].attempt_ended.reason == agent_pb2.STOP_REASON_RELEASED


# --- GPUs -----------------------------------------------------------------------------------


def uuids(prepared: Any) -> list[list[str]]:
    return [list(lease.gpus) for lease in prepared.leases]


async def free_gpus(agent: Harness) -> list[float]:
    return [gpu.free for gpu in (await agent.inventory()).gpus]


async def test_the_inventory_names_the_gpus(agent: Harness) -> None:
    assert [gpu.uuid for gpu in (await agent.inventory()).gpus] == list(GPUS)
    assert await free_gpus(agent) == [1.0, 1.0]


async def test_each_worker_gets_a_gpu_of_its_own(agent: Harness) -> None:
    prepared = await agent.prepare(attempt_id(), "ps/0", "worker/0", "worker/1", gpus=1)
    assert uuids(prepared) == [[], ["GPU-a"], ["GPU-b"]]
    assert await free_gpus(agent) == [0.0, 0.0]


async def test_a_worker_may_have_several_gpus(agent: Harness) -> None:
    assert uuids(await agent.prepare(attempt_id(), "worker/0", gpus=2)) == [["GPU-a", "GPU-b"]]


async def test_workers_share_a_gpu(agent: Harness) -> None:
    prepared = await agent.prepare(attempt_id(), "ps/0", "worker/0", "worker/1", gpus=0.25)
    assert uuids(prepared) == [[], ["GPU-a"], ["GPU-a"]]
    assert await free_gpus(agent) == [0.5, 1.0]


async def test_tasks_that_ask_for_none_get_none(agent: Harness) -> None:
    assert uuids(await agent.prepare(attempt_id(), "worker/0")) == [[]]


async def test_more_gpus_than_are_free_are_refused_and_nothing_is_leased(agent: Harness) -> None:
    await agent.prepare(attempt_id(1), "worker/0", gpus=1)
    error = await refusal(agent.prepare(attempt_id(2), "worker/0", gpus=2))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail(error, error_details_pb2.ErrorInfo()).reason == "GPUS"
    inventory = await agent.inventory()
    assert (inventory.free_slots, await free_gpus(agent)) == (1, [0.0, 1.0])


async def test_gpus_of_an_attempt_that_is_released_are_free_again(agent: Harness) -> None:
    await agent.prepare(attempt_id(), "worker/0", gpus=2)
    await agent.stop(attempt_id())
    await agent.prepare(attempt_id(2), "worker/0", gpus=2)


async def test_gpus_of_an_attempt_that_has_ended_can_be_had_at_once(agent: Harness) -> None:
    prepared = await agent.prepare(attempt_id(), "worker/0", gpus=2)
    await agent.start(attempt_id(), prepared.leases)
    await agent.events(attempt_id())
    await agent.prepare(attempt_id(2), "worker/0", gpus=2)


async def test_gpus_are_part_of_what_was_prepared(agent: Harness) -> None:
    await agent.prepare(attempt_id(), "worker/0", gpus=1)
    error = await refusal(agent.prepare(attempt_id(), "worker/0", gpus=2))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


# --- validation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempt", "field"),
    [
        (types_pb2.AttemptId(study_id="../x", trial=1, attempt=1), "attempt.study_id"),
        (types_pb2.AttemptId(study_id="", trial=1, attempt=1), "attempt.study_id"),
        (types_pb2.AttemptId(study_id="x", trial=0, attempt=1), "attempt.trial"),
        (types_pb2.AttemptId(study_id="x", trial=1, attempt=-1), "attempt.attempt"),
    ],
)
@pytest.mark.parametrize("method", ["PrepareAttempt", "StartAttempt", "StopAttempt"])
async def test_a_wrong_attempt_id_is_named(
    agent: Harness, method: str, attempt: types_pb2.AttemptId, field: str
) -> None:
    request = {
        "PrepareAttempt": agent_pb2.PrepareAttemptRequest(attempt=attempt, tasks=requirements("worker/0")),
        "StartAttempt": start_request(attempt, []),
        "StopAttempt": agent_pb2.StopAttemptRequest(attempt=attempt, reason=agent_pb2.STOP_REASON_FAILED),
    }[method]
    error = await refusal(getattr(agent.stub, method)(request, timeout=DEADLINE))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in [v.field for v in detail(error, error_details_pb2.BadRequest()).field_violations]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda tasks: tasks.clear(), "tasks"),
        (lambda tasks: tasks.append(tasks[0]), "tasks[1].task"),
        (lambda tasks: setattr(tasks[0].task, "index", -1), "tasks[0].task.index"),
        (lambda tasks: setattr(tasks[0].task, "role", 0), "tasks[0].task.role"),
        (lambda tasks: setattr(tasks[0], "slots", -1), "tasks[0].slots"),
        (lambda tasks: setattr(tasks[0], "gpus", -1.0), "tasks[0].gpus"),
        (lambda tasks: setattr(tasks[0], "gpus", 1.5), "tasks[0].gpus"),
        (lambda tasks: setattr(tasks[0], "gpus", math.nan), "tasks[0].gpus"),
        (lambda tasks: setattr(tasks[0], "gpus", math.inf), "tasks[0].gpus"),
        (
            lambda tasks: tasks.append(agent_pb2.TaskRequirement(task=task_id("ps/0"), gpus=1)),
            "tasks[1].gpus",
        ),
    ],
)
async def test_wrong_tasks_are_named(agent: Harness, change: Any, field: str) -> None:
    tasks = requirements("worker/0")
    change(tasks)
    request = agent_pb2.PrepareAttemptRequest(attempt=attempt_id(), tasks=tasks)
    error = await refusal(agent.stub.PrepareAttempt(request, timeout=DEADLINE))
    assert field in [v.field for v in detail(error, error_details_pb2.BadRequest()).field_violations]


async def test_an_unknown_stop_reason_is_refused(agent: Harness) -> None:
    error = await refusal(agent.stop(attempt_id(), reason=99))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_first_message_of_a_stream_must_subscribe(agent: Harness) -> None:
    call = agent.stub.StreamEvents()
    await call.write(agent_pb2.StreamEventsRequest(acknowledge=agent_pb2.Acknowledge()))
    error = await refusal(asyncio.wait_for(call.read(), DEADLINE))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


# --- running --------------------------------------------------------------------------------


async def test_a_single_task_completes(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0")
    events = await agent.events(attempt_id())
    assert kinds(events, "agent") == ["task_started", "task_ended", "attempt_ended"]
    assert kinds(events, "worker/0") == ["task_ready", "report", "report", "report"]


async def test_the_outcome_carries_the_losses(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0")
    result = outcome(await agent.events(attempt_id()), "worker/0")
    assert result.status == types_pb2.TASK_STATUS_COMPLETED
    assert result.step == 30
    assert result.HasField("train_loss")
    assert result.HasField("val_loss")


async def test_the_end_of_the_chief_ends_the_others_as_finished(agent: Harness) -> None:
    await agent.run(attempt_id(), "ps/0", "worker/0", "worker/1")
    events = await agent.events(attempt_id())
    assert events[-1].attempt_ended.reason == agent_pb2.STOP_REASON_FINISHED
    stopped = types_pb2.TASK_STATUS_STOPPED
    assert [outcome(events, t).status for t in ("ps/0", "worker/1")] == [stopped, stopped]


async def test_parameter_servers_end_after_the_workers(agent: Harness) -> None:
    await agent.run(attempt_id(), "ps/0", "worker/0", "worker/1")
    events = await agent.events(attempt_id())
    order = [e.task_ended.task.role for e in events if is_kind("task_ended")(e)]
    assert order[-1] == types_pb2.TASK_ROLE_PS


async def test_events_are_numbered_without_gaps(agent: Harness) -> None:
    await agent.run(attempt_id(), "ps/0", "worker/0", "worker/1")
    events = await agent.events(attempt_id())
    for source in {e.source for e in events}:
        numbers = [e.sequence for e in events if e.source == source]
        assert numbers == list(range(1, len(numbers) + 1)), source


async def test_a_tasks_reports_come_between_its_start_and_its_end(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0")
    assert kinds(await agent.events(attempt_id())) == [
        "task_started",
        "task_ready",
        *["report"] * 3,
        "task_ended",
        "attempt_ended",
    ]


async def test_slots_are_free_when_the_attempt_has_ended(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0")
    await agent.events(attempt_id())
    assert (await agent.inventory()).free_slots == 2


async def test_start_again_changes_nothing(agent: Harness) -> None:
    prepared = await agent.prepare(attempt_id(), "worker/0")
    await agent.start(attempt_id(), prepared.leases, FOREVER)
    async with agent.follow() as stream:
        await stream.until(is_kind("report"))
        await agent.start(attempt_id(), prepared.leases, FOREVER)
        await agent.stop(attempt_id())
        assert kinds(await stream.until(ended), "agent").count("task_started") == 1


async def test_starting_what_is_not_prepared_is_not_found(agent: Harness) -> None:
    error = await refusal(agent.start(attempt_id(), [], None))
    assert error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


async def test_starting_a_valid_attempt_that_is_not_prepared_is_not_found(agent: Harness) -> None:
    request = start_request(attempt_id(), [])
    request.training.workers = 1
    error = await refusal(agent.stub.StartAttempt(request, timeout=DEADLINE))
    assert error.code() is grpc.StatusCode.NOT_FOUND


# --- failures -------------------------------------------------------------------------------


async def test_a_task_that_never_becomes_ready_fails(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0", script={"worker/0": {"ready": False}}, start=0.2)
    events = await agent.events(attempt_id())
    assert outcome(events, "worker/0").failure.kind == types_pb2.FAILURE_KIND_START_TIMEOUT
    assert events[-1].attempt_ended.reason == agent_pb2.STOP_REASON_FAILED


async def test_a_failing_worker_ends_the_attempt(agent: Harness) -> None:
    script = {**FOREVER, "worker/1": {"runs_for": 0, "ends_with": "DIVERGED"}}
    await agent.run(attempt_id(), "ps/0", "worker/0", "worker/1", script=script)
    events = await agent.events(attempt_id())
    assert outcome(events, "worker/1").failure.kind == types_pb2.FAILURE_KIND_DIVERGED
    assert events[-1].attempt_ended.reason == agent_pb2.STOP_REASON_FAILED


async def test_training_goes_on_without_a_killed_worker(agent: Harness) -> None:
    script = {"worker/0": {"runs_for": 0.5}, "worker/1": {"runs_for": 0, "dies_of": "SIGKILL", "reports": 0}}
    await agent.run(attempt_id(), "ps/0", "worker/0", "worker/1", script=script)
    events = await agent.events(attempt_id())
    assert outcome(events, "worker/1").failure.kind == types_pb2.FAILURE_KIND_KILLED
    assert outcome(events, "worker/0").status == types_pb2.TASK_STATUS_COMPLETED


async def test_training_goes_on_without_a_worker_that_lost_a_peer(agent: Harness) -> None:
    script = {"worker/0": {"runs_for": 0.5}, "worker/1": {"runs_for": 0, "ends_with": "PEER_LOST"}}
    await agent.run(attempt_id(), "ps/0", "worker/0", "worker/1", script=script)
    events = await agent.events(attempt_id())
    assert outcome(events, "worker/1").failure.kind == types_pb2.FAILURE_KIND_PEER_LOST
    assert outcome(events, "worker/0").status == types_pb2.TASK_STATUS_COMPLETED


async def test_a_failing_parameter_server_ends_the_attempt(agent: Harness) -> None:
    script = {**FOREVER, "ps/0": {"runs_for": 0, "dies_of": "SIGKILL", "reports": 0}}
    await agent.run(attempt_id(), "ps/0", "worker/0", script=script)
    events = await agent.events(attempt_id())
    assert outcome(events, "ps/0").failure.kind == types_pb2.FAILURE_KIND_KILLED
    assert events[-1].attempt_ended.reason == agent_pb2.STOP_REASON_FAILED


# --- stopping -------------------------------------------------------------------------------


async def test_stop_ends_a_running_attempt_with_the_given_reason(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0", script=FOREVER)
    assert await agent.stop(attempt_id(), agent_pb2.STOP_REASON_PRUNED)
    events = await agent.events(attempt_id())
    assert outcome(events, "worker/0").status == types_pb2.TASK_STATUS_STOPPED
    assert events[-1].attempt_ended.reason == agent_pb2.STOP_REASON_PRUNED


async def test_stopping_what_is_unknown_is_no_error(agent: Harness) -> None:
    assert not await agent.stop(attempt_id())


async def test_stopping_what_has_ended_is_no_error(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0")
    await agent.events(attempt_id())
    assert not await agent.stop(attempt_id())


@pytest.mark.parametrize("late", [1, 2])
async def test_a_late_prepare_of_a_stopped_attempt_or_an_older_one_is_refused(
    agent: Harness, late: int
) -> None:
    await agent.stop(attempt_id(attempt=2))
    error = await refusal(agent.prepare(attempt_id(attempt=late), "worker/0"))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_newer_attempt_than_the_stopped_one_is_welcome(agent: Harness) -> None:
    await agent.stop(attempt_id(attempt=2))
    assert await agent.prepare(attempt_id(attempt=3), "worker/0")


async def test_a_late_start_of_a_stopped_attempt_is_refused(agent: Harness) -> None:
    prepared = await agent.prepare(attempt_id(), "worker/0")
    await agent.stop(attempt_id())
    error = await refusal(agent.start(attempt_id(), prepared.leases))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_an_older_attempt_than_the_prepared_one_is_refused(agent: Harness) -> None:
    await agent.prepare(attempt_id(attempt=2), "worker/0")
    error = await refusal(agent.prepare(attempt_id(attempt=1), "worker/0"))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


# --- the stream -----------------------------------------------------------------------------


async def test_what_is_not_acknowledged_comes_again(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0")
    first = await agent.events(attempt_id())
    assert await agent.events(attempt_id()) == first


async def test_a_stream_resumes_after_the_given_positions(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0")
    await agent.events(attempt_id())
    have = [
        agent_pb2.Position(attempt=attempt_id(), source="worker/0", sequence=3),
        agent_pb2.Position(attempt=attempt_id(), source="agent", sequence=1),
    ]
    events = await agent.events(attempt_id(), have)
    assert [(e.source, e.sequence) for e in events] == [("worker/0", 4), ("agent", 2), ("agent", 3)]


async def test_an_acknowledged_attempt_is_forgotten(agent: Harness) -> None:
    await agent.run(attempt_id(trial=1), "worker/0")
    async with agent.follow() as stream:
        events = await stream.until(ended)
        await stream.acknowledge(events[-1])
        # What comes later on the same stream comes after the acknowledgement.
        await agent.run(attempt_id(trial=2), "worker/0")
        await stream.until(lambda e: e.attempt.trial == 2 and ended(e))
    later = await agent.events(attempt_id(trial=2))
    assert {e.attempt.trial for e in later} == {2}


async def test_an_attempt_whose_end_the_subscriber_has_is_forgotten(agent: Harness) -> None:
    await agent.run(attempt_id(trial=1), "worker/0")
    events = await agent.events(attempt_id(trial=1))
    have = [agent_pb2.Position(attempt=attempt_id(trial=1), source="agent", sequence=events[-1].sequence)]
    await agent.run(attempt_id(trial=2), "worker/0")
    await agent.events(attempt_id(trial=2), have)
    later = await agent.events(attempt_id(trial=2))
    assert {e.attempt.trial for e in later} == {2}


async def test_a_stream_shows_only_its_own_study(agent: Harness) -> None:
    await agent.run(attempt_id(study="other"), "worker/0")
    await agent.events(attempt_id(study="other"))
    await agent.run(attempt_id(study="mine"), "worker/0")
    events = await agent.events(attempt_id(study="mine"))
    assert {e.attempt.study_id for e in events} == {"mine"}


async def test_a_second_subscription_replaces_the_first(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0", script=FOREVER)
    async with agent.follow() as first:
        await first.until(is_kind("report"))
        async with agent.follow() as second:
            await second.until(is_kind("report"))
            with pytest.raises((grpc.aio.AioRpcError, AssertionError)):
                await first.until(ended)
            assert await first.call.code() is grpc.StatusCode.ABORTED


async def test_events_stream_while_the_task_runs(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0", script=FOREVER)
    async with agent.follow() as stream:
        await stream.until(is_kind("report"))
        await agent.stop(attempt_id())
        await stream.until(ended)

"""What AgentService promises of files, whoever serves it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from nhop.v1 import agent_pb2, types_pb2
from tests.contract.harness import DEADLINE, Harness, RealAgent, attempt_id, ended, is_kind, outcome

MODEL = "m" * 3_000_000
LEAVES = {"worker/0": {"artifacts": {"model.keras": MODEL, "predictions.npz": "p"}}}
SAVES = {"worker/0": {"checkpoint": "weights", "runs_for": None}}


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def fields(error: grpc.aio.AioRpcError) -> list[str]:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    violations = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(violations)
    return [violation.field for violation in violations.field_violations]


async def test_the_outcome_names_what_the_chief_left_and_it_can_be_read(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0", script=LEAVES)
    events = await agent.events(attempt_id())
    sizes = {each.name: each.size for each in outcome(events, "worker/0").artifacts}
    assert sizes == {"model.keras": len(MODEL), "predictions.npz": 1}
    assert await agent.read(attempt_id(), "model.keras") == MODEL.encode()
    assert await agent.read(attempt_id(), "predictions.npz") == b"p"


async def test_chunks_are_at_most_1_mib(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0", script=LEAVES)
    await agent.events(attempt_id())
    request = agent_pb2.ReadArtifactRequest(attempt=attempt_id(), name="model.keras")
    sizes = [len(part.data) async for part in agent.stub.ReadArtifact(request, timeout=DEADLINE)]
    assert max(sizes) <= 1 << 20


async def test_files_go_with_the_acknowledged_attempt(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0", script=LEAVES)
    async with agent.follow() as stream:
        events = await stream.until(ended)
        await stream.acknowledge(*events)
        assert await sooner_or_later(lambda: forgotten(agent))
    assert (await refusal(agent.read(attempt_id(), "model.keras"))).code() is grpc.StatusCode.NOT_FOUND


async def sooner_or_later(condition: Callable[[], Awaitable[bool]]) -> bool:
    """Whether the condition holds before the deadline."""
    for _ in range(round(DEADLINE / 0.01)):
        if await condition():
            return True
        await asyncio.sleep(0.01)
    return False


async def forgotten(agent: Harness) -> bool:
    try:
        await agent.read(attempt_id(), "predictions.npz")
    except grpc.aio.AioRpcError as error:
        return error.code() is grpc.StatusCode.NOT_FOUND
    return False


@pytest.mark.parametrize("name", ["", "../spec.json", "a/b", ".hidden", "UPPER", "x" * 65, "a\n"])
async def test_a_name_that_leads_elsewhere_is_refused(agent: Harness, name: str) -> None:
    await agent.run(attempt_id(), "worker/0", script=LEAVES)
    error = await refusal(agent.read(attempt_id(), name))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(error) == ["name"]


async def test_what_is_not_there_is_not_found(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0", script=LEAVES)
    await agent.events(attempt_id())
    for attempt, name in ((attempt_id(), "spec.json"), (attempt_id(trial=2), "model.keras")):
        assert (await refusal(agent.read(attempt, name))).code() is grpc.StatusCode.NOT_FOUND


async def test_a_checkpoint_is_announced_and_can_be_read_while_training_goes_on(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0", script=SAVES)
    async with agent.follow() as stream:
        events = await stream.until(is_kind("checkpoint_saved"))
    saved = next(event for event in events if event.WhichOneof("kind") == "checkpoint_saved")
    assert saved.source == "worker/0"
    assert saved.checkpoint_saved.step == 30
    assert saved.checkpoint_saved.artifact == types_pb2.Artifact(name="checkpoint.npz", size=7)
    assert await agent.read(attempt_id(), "checkpoint.npz") == b"weights"
    await agent.stop(attempt_id())


# --- files for an attempt -------------------------------------------------------------------


async def test_a_prepared_attempt_begins_with_what_it_was_given(agent: Harness) -> None:
    prepared = await agent.prepare(attempt_id(), "worker/0")
    await agent.give(attempt_id(), b"old")
    await agent.give(attempt_id(), b"wei", b"", b"ghts")
    await agent.start(attempt_id(), prepared.leases)
    events = await agent.events(attempt_id())
    assert list(outcome(events, "worker/0").notes) == ["went on from weights"]


@pytest.mark.parametrize("name", ["model.keras", "spec.json", "../restore.npz", ""])
async def test_only_a_checkpoint_can_be_given(agent: Harness, name: str) -> None:
    await agent.prepare(attempt_id(), "worker/0")
    error = await refusal(agent.give(attempt_id(), b"x", name=name))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(error) == ["header.artifact.name"]


@pytest.mark.parametrize("size", [4, 6])
async def test_a_file_of_another_size_than_announced_is_refused_and_not_kept(
    agent: Harness, size: int
) -> None:
    prepared = await agent.prepare(attempt_id(), "worker/0")
    error = await refusal(agent.give(attempt_id(), b"12345", size=size))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(error) == ["data"]
    await agent.start(attempt_id(), prepared.leases)
    assert list(outcome(await agent.events(attempt_id()), "worker/0").notes) == []


async def test_a_file_without_a_header_is_refused(agent: Harness) -> None:
    requests = iter([agent_pb2.WriteArtifactRequest(data=b"x")])
    error = await refusal(agent.stub.WriteArtifact(requests, timeout=DEADLINE))
    assert (error.code(), fields(error)) == (grpc.StatusCode.INVALID_ARGUMENT, ["header"])


async def test_an_agent_says_that_it_takes_a_file_before_its_content(agent: Harness) -> None:
    await agent.prepare(attempt_id(), "worker/0")
    call: Any = agent.stub.WriteArtifact(timeout=DEADLINE)
    artifact = types_pb2.Artifact(name="restore.npz", size=1)
    header = agent_pb2.ArtifactHeader(attempt=attempt_id(), artifact=artifact)
    await call.write(agent_pb2.WriteArtifactRequest(header=header))
    assert ("nhop-accepts", "yes") in tuple(await call.initial_metadata())
    call.cancel()


async def test_nothing_is_given_to_what_is_not_prepared(agent: Harness) -> None:
    assert (await refusal(agent.give(attempt_id(), b"x"))).code() is grpc.StatusCode.NOT_FOUND


async def test_nothing_is_given_to_what_was_started_or_is_over(agent: Harness) -> None:
    await agent.run(attempt_id(), "worker/0", script=SAVES)
    assert (await refusal(agent.give(attempt_id(), b"x"))).code() is grpc.StatusCode.FAILED_PRECONDITION
    await agent.stop(attempt_id())
    await agent.events(attempt_id())
    assert (await refusal(agent.give(attempt_id(), b"x"))).code() is grpc.StatusCode.FAILED_PRECONDITION


# --- the real agent's disk ------------------------------------------------------------------


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[RealAgent]:
    agent = await RealAgent.launch(tmp_path)
    try:
        yield agent
    finally:
        await agent.close()


def directory(agent: RealAgent) -> Path:
    return agent.state_dir / "attempts" / "study-t1-a1"


async def test_a_stream_that_breaks_leaves_nothing(real: RealAgent) -> None:
    await real.prepare(attempt_id(), "worker/0")
    call: Any = real.stub.WriteArtifact()
    artifact = types_pb2.Artifact(name="restore.npz", size=100)
    header = agent_pb2.ArtifactHeader(attempt=attempt_id(), artifact=artifact)

    async def files() -> set[str]:
        return {path.name for path in directory(real).iterdir()}

    async def changed() -> bool:
        return await files() != before

    async def back() -> bool:
        return await files() == before

    before = await files()
    await call.write(agent_pb2.WriteArtifactRequest(header=header))
    await call.write(agent_pb2.WriteArtifactRequest(data=b"x" * 50))
    assert await sooner_or_later(changed)
    call.cancel()
    assert await sooner_or_later(back)


@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "folder"])
async def test_what_is_not_a_regular_file_is_not_given_out(real: RealAgent, kind: str) -> None:
    await real.run(attempt_id(), "worker/0", script=LEAVES)
    await real.events(attempt_id())
    path = directory(real) / "tasks" / "artifacts" / "strange"
    if kind == "link":
        path.symlink_to(directory(real) / "spec.json")
    elif kind == "hard link":
        path.hardlink_to(directory(real) / "spec.json")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert (await refusal(real.read(attempt_id(), "strange"))).code() is grpc.StatusCode.NOT_FOUND


async def test_a_folder_that_is_a_link_is_not_followed(real: RealAgent) -> None:
    await real.run(attempt_id(), "worker/0")
    await real.events(attempt_id())
    (directory(real) / "tasks" / "artifacts").symlink_to(directory(real))
    assert (await refusal(real.read(attempt_id(), "spec.json"))).code() is grpc.StatusCode.NOT_FOUND


async def test_a_file_that_is_replaced_meanwhile_is_read_as_it_was(real: RealAgent) -> None:
    await real.run(attempt_id(), "worker/0", script=LEAVES)
    await real.events(attempt_id())
    request = agent_pb2.ReadArtifactRequest(attempt=attempt_id(), name="model.keras")
    call: Any = real.stub.ReadArtifact(request, timeout=DEADLINE)
    data = (await call.read()).data
    newer = directory(real) / "tasks" / "artifacts" / ".newer"
    newer.write_bytes(b"n" * len(MODEL))
    newer.replace(directory(real) / "tasks" / "artifacts" / "model.keras")
    while (part := await call.read()) is not grpc.aio.EOF:
        data += part.data
    assert data == MODEL.encode()


async def test_outcomes_with_files_outlive_the_agent(real: RealAgent, tmp_path: Path) -> None:
    await real.run(attempt_id(), "worker/0", script=LEAVES)
    first = await real.events(attempt_id())
    await real.kill()
    again = await RealAgent.launch(tmp_path)
    try:
        assert outcome(await again.events(attempt_id()), "worker/0") == outcome(first, "worker/0")
        assert await again.read(attempt_id(), "predictions.npz") == b"p"
    finally:
        await again.close()

"""What AgentService promises of bundles, whoever serves it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from nhop.v1 import agent_pb2
from tests.contract.harness import DEADLINE, Harness, RealAgent, attempt_id, outcome, start_request
from tests.contract.test_artifacts import fields, refusal, sooner_or_later
from tests.fakes.archives import archive, digest_of, member, packed

CODE = archive({"mine.py": "x = 1\n", "helpers/a.py": ""})


def reason(error: grpc.aio.AioRpcError) -> str:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "nhop"
    return str(info.reason)


async def start(agent: Harness, number: int = 1, **training: str) -> None:
    prepared = await agent.prepare(attempt_id(number), "worker/0")
    request = start_request(attempt_id(number), prepared.leases)
    for field, value in training.items():
        setattr(request.training, field, value)
    await agent.stub.StartAttempt(request, timeout=DEADLINE)


async def test_a_bundle_is_taken_once_and_used(agent: Harness) -> None:
    assert await agent.put(CODE[:7], CODE[7:]) == "yes"
    assert await agent.put(CODE) == "have"
    await start(agent, code=digest_of(CODE), data=digest_of(CODE))
    assert outcome(await agent.events(attempt_id()), "worker/0").step > 0


async def test_an_attempt_without_its_bundle_is_refused_and_can_be_started_once_it_is_there(
    agent: Harness,
) -> None:
    error = await refusal(start(agent, code=digest_of(CODE)))
    assert (error.code(), reason(error)) == (grpc.StatusCode.NOT_FOUND, "BUNDLE")
    await agent.put(CODE)
    await start(agent, code=digest_of(CODE))
    await agent.events(attempt_id())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"digest": ""}, "header.digest"),
        ({"digest": "../" + "0" * 61}, "header.digest"),
        ({"digest": digest_of(CODE).upper()}, "header.digest"),
        ({"size": 0}, "header.size"),
        ({"size": len(CODE) - 1}, "data"),
        ({"size": len(CODE) + 1}, "data"),
        ({"digest": "0" * 64}, "data"),
    ],
)
async def test_what_is_not_as_announced_is_refused(
    agent: Harness, changes: dict[str, Any], field: str
) -> None:
    error = await refusal(agent.put(CODE, **changes))
    assert (error.code(), fields(error)) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    assert await agent.put(CODE) == "yes", "kept, although it was refused"


async def test_content_without_a_header_is_refused(agent: Harness) -> None:
    requests = iter([agent_pb2.PutBundleRequest(data=b"x")])
    error = await refusal(agent.stub.PutBundle(requests, timeout=DEADLINE))
    assert (error.code(), fields(error)) == (grpc.StatusCode.INVALID_ARGUMENT, ["header"])


@pytest.mark.parametrize(
    "bad", [packed(member("../x")), packed(member("/x")), b"no archive"], ids=["up", "absolute", "none"]
)
async def test_an_archive_that_leads_elsewhere_is_refused(agent: Harness, bad: bytes) -> None:
    error = await refusal(agent.put(bad))
    assert (error.code(), fields(error)) == (grpc.StatusCode.INVALID_ARGUMENT, ["data"])
    await agent.prepare(attempt_id(2), "worker/0")


# --- the real agent's cache -----------------------------------------------------------------


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[RealAgent]:
    agent = await RealAgent.launch(tmp_path)
    try:
        yield agent
    finally:
        await agent.close()


def kept(agent: RealAgent) -> list[str]:
    return sorted(path.name for path in (agent.state_dir / "bundles").iterdir() if path.name != ".boot")


async def test_tasks_are_told_where_their_bundles_are(real: RealAgent) -> None:
    data = archive({"t.csv": "1,2\n"})
    await real.put(CODE)
    await real.put(data)
    await start(real, code=digest_of(CODE), data=digest_of(data))
    await real.events(attempt_id())
    spec = json.loads((real.state_dir / "attempts" / "study-t1-a1" / "spec.json").read_text())
    code = real.state_dir / "bundles" / digest_of(CODE)
    assert (spec["python_path"], spec["working_directory"]) == ([str(code)], str(code))
    assert (Path(spec["data_directory"]) / "t.csv").read_text() == "1,2\n"


async def test_an_upload_that_breaks_leaves_nothing(real: RealAgent) -> None:
    call: Any = real.stub.PutBundle()
    header = agent_pb2.BundleHeader(digest=digest_of(CODE), size=len(CODE))
    await call.write(agent_pb2.PutBundleRequest(header=header))
    await call.write(agent_pb2.PutBundleRequest(data=CODE[:10]))

    async def some() -> bool:
        return kept(real) != []

    async def none() -> bool:
        return kept(real) == []

    assert await sooner_or_later(some)
    call.cancel()
    assert await sooner_or_later(none)


async def test_two_uploads_of_the_same_bundle_both_succeed(real: RealAgent) -> None:
    await asyncio.gather(*(real.put(CODE) for _ in range(4)))
    assert kept(real) == [digest_of(CODE)]


async def test_a_refused_archive_leaves_nothing_and_is_named(real: RealAgent) -> None:
    error = await refusal(real.put(packed(member("good.py", b"x"), member("a/../../evil.py", b"x"))))
    assert "'a/../../evil.py' leads out of the folder" in str(error.details())
    assert kept(real) == []


async def test_bundles_outlive_the_agent_and_leftovers_do_not(real: RealAgent, tmp_path: Path) -> None:
    await real.put(CODE)
    await real.kill()
    left = real.state_dir / "bundles" / f".{'0' * 64}.x"
    left.mkdir()
    (left / "half.py").write_text("")
    again = await RealAgent.launch(tmp_path)
    try:
        assert kept(again) == [digest_of(CODE)]
        assert await again.put(CODE) == "have"
    finally:
        await again.close()


async def test_a_host_that_was_down_keeps_none(real: RealAgent, tmp_path: Path) -> None:
    await real.put(CODE)
    await real.kill()
    (real.state_dir / "bundles" / ".boot").write_text("another")
    again = await RealAgent.launch(tmp_path)
    try:
        assert await again.put(CODE) == "yes"
    finally:
        await again.close()

"""What a real agent does for a coordinator with many hosts: probes, and attempts left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from nhop.v1 import agent_pb2, types_pb2
from tests.contract.harness import DEADLINE, Harness, RealAgent, attempt_id, ended, is_kind, outcome

FOREVER = {"worker/0": {"runs_for": None, "reports": 2}}
SILENCE = 2.5


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[RealAgent]:
    agent = await RealAgent.launch(tmp_path, ports=[18300, 18399])
    try:
        yield agent
    finally:
        await agent.close()


async def reach(agent: Harness, *probes: tuple[str, str]) -> list[str]:
    request = agent_pb2.CheckReachRequest(
        probes=[agent_pb2.OpenProbeResponse(address=address, token=token) for address, token in probes]
    )
    return list((await agent.stub.CheckReach(request, timeout=DEADLINE)).problems)


async def open_probe(agent: Harness) -> tuple[str, str]:
    opened = await agent.stub.OpenProbe(agent_pb2.OpenProbeRequest(), timeout=DEADLINE)
    return opened.address, opened.token


# --- probes ---------------------------------------------------------------------------------


async def test_a_probe_is_within_the_range_of_task_ports(real: RealAgent) -> None:
    inventory = await real.inventory()
    assert (inventory.first_port, inventory.last_port) == (18300, 18399)
    host, _, port = (await open_probe(real))[0].rpartition(":")
    assert host == inventory.task_address
    assert 18300 <= int(port) <= 18399


async def test_each_probe_is_answered_for_in_order(real: RealAgent) -> None:
    address, token = await open_probe(real)
    other = await open_probe(real)
    problems = await reach(real, (address, token), (address, "wrong"), ("127.0.0.1:1", token), other)
    assert [bool(problem) for problem in problems] == [False, True, True, False]
    assert problems[1] == "something else answers there"
    assert "refused" in problems[2] or "connect call failed" in problems[2]


@pytest.mark.parametrize("address", ["nowhere", ":5", "127.0.0.1:0", "127.0.0.1:x"])
async def test_a_wrong_address_is_named(real: RealAgent, address: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=r"probes\[0\]\.address") as caught:
        await reach(real, (address, "token"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_no_port_for_a_probe(tmp_path: Path) -> None:
    agent = await RealAgent.launch(tmp_path, ports=[18400, 18400])
    try:
        await open_probe(agent)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await open_probe(agent)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        await agent.close()


# --- signs of life --------------------------------------------------------------------------


class Heartbeat:
    """A coordinator's, which says that it has received each answer, or never (``echoes`` False)."""

    def __init__(self, agent: Harness, *, echoes: bool = True, study: str = "study") -> None:
        self._agent = agent
        self._echoes = echoes
        self._study = study
        self._task = asyncio.create_task(self._beat())

    async def __aenter__(self) -> Heartbeat:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _beat(self) -> None:
        request = agent_pb2.GetInventoryRequest(study_ids=[self._study])
        while True:
            answer = await self._agent.stub.GetInventory(request, timeout=DEADLINE)
            if self._echoes:
                request.incarnation = answer.incarnation
                request.uptime.CopyFrom(answer.uptime)
            await asyncio.sleep(0.1)


async def runs_on(agent: Harness, seconds: float) -> bool:
    """Whether the attempt does not end within that time."""
    async with agent.follow() as stream:
        try:
            async with asyncio.timeout(seconds):
                await stream.until(ended)
        except TimeoutError:
            return True
    return False


async def test_an_attempt_whose_coordinator_is_silent_ends_with_its_host_lost(real: RealAgent) -> None:
    await real.run(attempt_id(), "worker/0", script=FOREVER, silence=SILENCE)
    events = await real.events(attempt_id())
    failure = outcome(events, "worker/0").failure
    assert failure.kind == types_pb2.FAILURE_KIND_HOST_LOST
    assert "its coordinator was out of reach for 2.5 s" in failure.message
    assert events[-1].attempt_ended.reason == agent_pb2.STOP_REASON_FAILED


async def test_a_heartbeat_keeps_an_attempt_alive(real: RealAgent) -> None:
    async with Heartbeat(real):
        await real.run(attempt_id(), "worker/0", script=FOREVER, silence=SILENCE)
        assert await runs_on(real, 1.5 * SILENCE)
    assert not await runs_on(real, DEADLINE)


@pytest.mark.parametrize(
    "useless", [{"echoes": False}, {"study": "another"}], ids=["of answers that do not arrive", "of others"]
)
async def test_a_heartbeat_that_does_not_count(real: RealAgent, useless: dict[str, Any]) -> None:
    """A connection that is cut in one direction only: requests come, answers do not arrive."""
    async with Heartbeat(real, **useless):
        await real.run(attempt_id(), "worker/0", script=FOREVER, silence=SILENCE)
        assert not await runs_on(real, DEADLINE)


async def test_an_answer_of_an_earlier_agent_does_not_count(real: RealAgent) -> None:
    await real.run(attempt_id(), "worker/0", script=FOREVER, silence=SILENCE)
    request = agent_pb2.GetInventoryRequest(study_ids=["study"], incarnation="earlier")
    request.uptime.FromSeconds(10**6)

    async def beat() -> None:
        while True:
            await real.stub.GetInventory(request, timeout=DEADLINE)
            await asyncio.sleep(0.1)

    beating = asyncio.create_task(beat())
    try:
        assert not await runs_on(real, DEADLINE)
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)


async def test_without_a_limit_silence_means_nothing(real: RealAgent) -> None:
    await real.run(attempt_id(), "worker/0", script=FOREVER, silence=0.0)
    assert await runs_on(real, SILENCE)
    await real.stop(attempt_id())


async def test_other_attempts_do_not_mind(real: RealAgent) -> None:
    await real.run(attempt_id(1), "worker/0", script=FOREVER, silence=SILENCE)
    await real.run(attempt_id(1, study="other"), "worker/0", script=FOREVER)
    await real.events(attempt_id(1))
    async with real.follow("other") as stream:
        await stream.until(is_kind("report"))
    assert (await real.inventory()).free_slots == 1
    await real.stop(attempt_id(1, study="other"))


async def test_too_many_studies_are_refused(real: RealAgent) -> None:
    request = agent_pb2.GetInventoryRequest(study_ids=["s"] * 10_001)
    with pytest.raises(grpc.aio.AioRpcError, match="study_ids") as caught:
        await real.stub.GetInventory(request, timeout=DEADLINE)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

"""Limits of a link, and how it says what is wrong."""

from __future__ import annotations

import asyncio
import socket

import grpc
import pytest

from coordinator import events as ev
from coordinator.agent_link import AgentLink
from coordinator.attempt import CHIEF
from coordinator.domain import AttemptId, StopReason
from coordinator.hosts import AgentAddress
from coordinator.instructions import CheckAttempt, StopAttempt
from coordinator.link_errors import HostUnreachableError, explain
from coordinator.patience import Patience
from nhop_models.contract import FailureKind
from tests.coordinator.studies import make_spec


@pytest.fixture
async def link_to(tmp_path):
    links = []

    def connect(target):
        links.append(AgentLink(AgentAddress(target), Patience(0.5, 0.5, 0.05, 0.3)))
        return links[-1]

    yield connect
    for link in links:
        await link.close()


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("unix:/nowhere/a.sock", "nhop-agent --listen unix:/nowhere/a.sock"),
        ("127.0.0.1:9", "nhop-agent --listen 127.0.0.1:9"),
    ],
)
async def test_where_no_agent_listens_one_is_to_be_started(link_to, target, command):
    with pytest.raises(HostUnreachableError) as error:
        await link_to(target).inventory()
    assert str(error.value).endswith(command)


async def test_a_name_that_is_not_known_is_said(link_to):
    with pytest.raises(HostUnreachableError, match="does not know a host of that name"):
        await link_to("no-such-host.invalid:7001").inventory()


async def test_an_agent_that_hangs_is_said(link_to, serve):
    agent = await serve()
    agent.hangs = True
    with pytest.raises(HostUnreachableError, match=r"no answer in time.* or the agent stuck\?$"):
        await link_to(agent.address).inventory(timeout=0.1)


async def test_a_port_that_takes_no_connection_may_be_filtered(link_to):
    """Until the connection is given up, which takes longer than an answer may."""
    with socket.socket() as full, socket.socket() as first:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first.connect(full.getsockname())  # more than one is not taken: the next waits for ever
        with pytest.raises(HostUnreachableError, match="is the host down or overloaded, its port filtered"):
            await link_to(f"127.0.0.1:{full.getsockname()[1]}").inventory(timeout=0.2)


def test_a_name_that_is_looked_up_in_vain_is_thought_of():
    """As where the name server does not answer."""
    nothing = grpc.aio.Metadata()
    late = grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, nothing, nothing, "", None)
    assert "its name looked up in vain" in explain(AgentAddress("gpu-1:7001"), late)


async def test_a_heartbeat_names_the_studies_and_the_newest_answer(link_to, serve):
    agent = await serve()
    link = link_to(agent.address)
    first = await link.inventory()
    link.follow("one")
    link.follow("two")
    await link.inventory()
    before, heartbeat = agent.heartbeats
    assert (list(before.study_ids), before.incarnation, before.HasField("uptime")) == ([], "", False)
    assert (list(heartbeat.study_ids), heartbeat.incarnation) == (["one", "two"], agent.incarnation)
    assert heartbeat.uptime.ToTimedelta().total_seconds() == pytest.approx(first.uptime, abs=1e-5)


async def test_a_link_is_unused_once_no_study_follows_it(link_to, serve):
    link = link_to((await serve()).address)
    link.follow("one")
    waiting = asyncio.ensure_future(link.unused())
    await asyncio.sleep(0)
    assert (link.in_use, waiting.done()) == (True, False)
    link.unfollow("one")
    await asyncio.wait_for(waiting, 10)
    assert not link.in_use


async def test_a_command_on_a_closed_link_has_an_outcome(link_to, serve):
    link = link_to((await serve()).address)
    await link.close()
    attempt = AttemptId("s1", 1, 1)
    event = await link.execute(StopAttempt(attempt, link.name, StopReason.RELEASED), make_spec())
    assert isinstance(event, ev.StopFailed)
    assert event.failure.kind is FailureKind.HOST_LOST
    assert "the host has left" in event.failure.message


async def test_a_check_on_a_closed_link_says_nothing(link_to, serve):
    link = link_to((await serve()).address)
    await link.close()
    attempt = AttemptId("s1", 1, 1)
    event = await link.execute(CheckAttempt(attempt, link.name, CHIEF), make_spec())
    assert event == ev.AttemptChecked(attempt, link.name, True)


async def test_a_question_on_a_closed_link_is_not_answered(link_to, serve):
    link = link_to((await serve()).address)
    await link.close()
    with pytest.raises(HostUnreachableError, match="has left"):
        await link.open_probe()


async def test_a_question_whose_link_is_closed_meanwhile_is_not_answered(link_to, serve):
    agent = await serve()
    agent.hangs = True
    link = link_to(agent.address)
    asking = asyncio.ensure_future(link.inventory(timeout=30))
    async with asyncio.timeout(10):
        while not agent.heartbeats:  # noqa: ASYNC110  (the agent tells no one)
            await asyncio.sleep(0.01)
    await link.close()
    with pytest.raises(HostUnreachableError):
        await asking

"""Bundles reach hosts before their first attempt, once, on scripted agents."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os

import pytest

from coordinator import study_run
from coordinator.agent_link import AgentLink
from coordinator.attempt import CHIEF
from coordinator.bundles import pack
from coordinator.delivery import Delivery
from coordinator.domain import (
    AttemptId,
    Cluster,
    Notice,
    PlacementRule,
    Sources,
    StageBudget,
    StudyState,
    Trial,
    TrialState,
)
from coordinator.hosts import AgentAddress
from coordinator.instructions import PrepareAttempt
from coordinator.patience import Patience
from nhop_models.contract import FailureKind
from tests.coordinator.studies import make_spec
from tests.fakes import scripted_agent as fake

ONE = (StageBudget(10, 1),)


@pytest.fixture
async def bundles(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.py").write_text("x = 1\n")
    (folder / "t.csv").write_text("1,2\n" * 600_000)
    with await pack(Sources(folder, folder / "t.csv")) as packed:
        yield packed


@pytest.fixture
async def link_to():
    """Links to agents, as they are after a first inventory."""
    links = []

    async def connect(agent):
        links.append(link := AgentLink(AgentAddress(agent.address), Patience(command=2.0)))
        await link.inventory()
        return link

    yield connect
    for link in links:
        await link.close()


class Gate:
    """Holds uploads of an agent back until it is opened."""

    def __init__(self, agent):
        self.reached, self.open = asyncio.Event(), asyncio.Event()
        agent.receiving = self

    async def __call__(self, digest):
        self.reached.set()
        await self.open.wait()


class Calls(list):
    """Calls of an agent; does something at those of one method."""

    def __init__(self, name, action):
        super().__init__()
        self._name, self._action = name, action

    def append(self, call):
        super().append(call)
        if call[0] == self._name:
            self._action()


def calls(agent, name):
    return [request for called, request in agent.calls if called == name]


def completed(coordinator):
    return {trial.number for trial in coordinator.seen(Trial) if trial.state is TrialState.COMPLETED}


def names(agent):
    return [called for called, _ in agent.calls]


# --- a whole study --------------------------------------------------------------------------


async def test_each_host_is_given_each_bundle_once_before_anything_is_prepared(coordinator, serve, bundles):
    agents = [await serve(name, slots=1) for name in "ab"]
    spec = bundles.put_into(make_spec(stages=(StageBudget(10, 6),)))
    result = await coordinator.run(spec, *agents, bundles=bundles)
    assert result.study.counts.completed == 6
    for agent in agents:
        assert names(agent)[:3] == ["PutBundle", "PutBundle", "PrepareAttempt"]
        assert names(agent).count("PutBundle") == 2
        assert agent.bundles == {bundles.code.digest: ["mine.py"], bundles.data.digest: ["t.csv"]}
        for request in calls(agent, "StartAttempt"):
            assert (request.training.code, request.training.data) == (spec.training.code, spec.training.data)


async def test_a_study_without_bundles_gives_nothing(coordinator, serve):
    agent = await serve()
    await coordinator.run(make_spec(stages=ONE), agent)
    assert "PutBundle" not in names(agent)


async def test_a_bundle_that_an_agent_has_removed_is_given_again(coordinator, serve, bundles):
    agent = await serve(slots=1)
    agent.calls = Calls("PrepareAttempt", agent.bundles.clear)
    result = await coordinator.run(bundles.put_into(make_spec(stages=ONE)), agent, bundles=bundles)
    assert result.study.counts.completed == 1
    assert names(agent) == [
        *["PutBundle"] * 2,
        "PrepareAttempt",
        "StartAttempt",
        *["PutBundle"] * 2,
        "StartAttempt",
    ]


async def test_a_host_that_takes_no_bundle_is_out_of_use_until_it_does(
    coordinator, serve, bundles, monkeypatch
):
    monkeypatch.setattr(study_run, "BRING_AGAIN", 0.05)
    full, other = await serve("a", slots=1), await serve("b", slots=1)
    full.full = True
    spec = bundles.put_into(make_spec(stages=(StageBudget(10, 200),)))
    study = asyncio.ensure_future(coordinator.run(spec, full, other, bundles=bundles))
    await coordinator.wait_for(lambda: len(completed(coordinator)) >= 2)
    told = [notice.message for notice in coordinator.seen(Notice)]
    cause = f"code {bundles.code.source}: {full.address}: the disk is full"
    why = "it cannot be given what the study needs"
    assert told == [f"host {full.address} is lost: {why}: {cause} (RESOURCE_EXHAUSTED)"]
    assert "PrepareAttempt" not in names(full)
    full.full = False
    await coordinator.wait_for(lambda: len(coordinator.seen(Notice)) == 2)
    assert coordinator.seen(Notice)[1].message == f"host {full.address} is back"
    result = await study
    assert result.study.counts.completed == 200
    assert "PrepareAttempt" in names(full)


async def test_a_host_that_comes_back_without_room_for_a_bundle_costs_no_trial(coordinator, serve, bundles):
    """Its bundles are gone with a restart of the machine, and its disk is full."""

    def lasting(request, task):
        return fake.TaskScript(runs_for=0.5)

    full, other = await serve("a", slots=1, script=lasting), await serve("b", slots=1, script=lasting)
    spec = bundles.put_into(make_spec(stages=(StageBudget(10, 8),), max_attempts=1))
    study = asyncio.ensure_future(coordinator.run(spec, full, other, bundles=bundles))
    await coordinator.wait_for(lambda: len(full.active_attempts() + other.active_attempts()) == 2)
    full.full, full.incarnation = True, "another"
    full.bundles.clear()
    result = await study
    assert {trial.state for trial in result.trials} == {TrialState.COMPLETED}
    told = [n.message for n in coordinator.seen(Notice) if "gets no trial now" in n.message]
    cause = f"code {bundles.code.source}: {full.address}: the disk is full"
    assert [message.partition(" (")[0] for message in told] == [
        f"host {full.address} gets no trial now: {cause}"
    ]


async def test_another_host_takes_over_while_one_still_receives(coordinator, serve, bundles):
    slow, quick = await serve("a", slots=1), await serve("b", slots=1)
    gate = Gate(slow)
    spec = bundles.put_into(make_spec(stages=(StageBudget(10, 4),)))
    study = asyncio.ensure_future(coordinator.run(spec, slow, quick, bundles=bundles))
    await coordinator.wait_for(lambda: len(completed(coordinator)) == 3)
    gate.open.set()
    result = await study
    assert result.study.counts.completed == 4


async def test_a_trial_is_spread_over_hosts_that_are_ready_one_after_another(coordinator, serve, bundles):
    quick, slow = await serve("a", slots=2), await serve("b", slots=2)
    gate = Gate(slow)
    cluster = Cluster(0, 2)
    spec = bundles.put_into(make_spec(stages=ONE, cluster=cluster, placement=PlacementRule.SPREAD))
    study = asyncio.ensure_future(coordinator.run(spec, quick, slow, bundles=bundles))
    await gate.reached.wait()
    async with asyncio.timeout(10):
        while names(quick).count("PutBundle") < 2:  # noqa: ASYNC110  (the agent tells no one)
            await asyncio.sleep(0.01)
    gate.open.set()
    (trial,) = (await study).trials
    assert set(trial.hosts) == {quick.address, slow.address}


async def test_a_trial_is_spread_without_a_host_that_takes_no_bundle(coordinator, serve, bundles):
    full, other = await serve("a", slots=2), await serve("b", slots=2)
    full.full = True
    cluster = Cluster(0, 2)
    spec = bundles.put_into(make_spec(stages=ONE, cluster=cluster, placement=PlacementRule.SPREAD))
    (trial,) = (await coordinator.run(spec, full, other, bundles=bundles)).trials
    assert set(trial.hosts) == {other.address}


async def test_a_lease_lasts_while_another_host_still_receives(serve, link_to, bundles):
    slow, quick = await serve("a"), await serve("b")
    gate, delivery = Gate(slow), Delivery(bundles)
    upload = asyncio.ensure_future(delivery.ensure(await link_to(slow)))
    async with asyncio.timeout(10):
        await gate.reached.wait()
    spec = bundles.put_into(make_spec(stages=ONE, cluster=Cluster(1, 2)))
    prepare = PrepareAttempt(AttemptId("s", 1, 1), quick.address, (CHIEF,), ports=True)
    await delivery.execute(await link_to(quick), prepare, spec)
    assert calls(quick, "PrepareAttempt")[0].lease_timeout.seconds > 1000
    gate.open.set()
    assert await upload is None
    await delivery.close()


async def test_a_study_that_is_stopped_does_not_wait_for_its_files(coordinator, serve, bundles):
    agent = await serve()
    gate = Gate(agent)
    spec = bundles.put_into(make_spec(stages=ONE))
    study = asyncio.ensure_future(coordinator.run(spec, agent, bundles=bundles, stop_limit=math.inf))
    await gate.reached.wait()
    coordinator.stop.set()
    async with asyncio.timeout(10):
        result = await study
    assert result.study.state is StudyState.STOPPED
    assert "PrepareAttempt" not in names(agent)


# --- one delivery ---------------------------------------------------------------------------


async def test_callers_share_an_upload(serve, link_to, bundles):
    agent = await serve()
    link, delivery = await link_to(agent), Delivery(bundles)
    assert await asyncio.gather(*(delivery.ensure(link) for _ in range(5))) == [None] * 5
    assert await delivery.ensure(link) is None
    assert names(agent) == ["PutBundle"] * 2
    await delivery.close()


@pytest.mark.parametrize(("quiet", "said"), [(0.0, True), (10.0, False)])
async def test_an_upload_that_takes_a_while_is_said(serve, link_to, bundles, monkeypatch, quiet, said):
    monkeypatch.setattr("coordinator.delivery.QUIET", quiet)
    agent = await serve()
    heard = asyncio.Queue()
    gate, link, delivery = Gate(agent), await link_to(agent), Delivery(bundles, heard.put_nowait)
    upload = asyncio.ensure_future(delivery.ensure(link))
    async with asyncio.timeout(10):
        await gate.reached.wait()
        if said:
            assert f"code goes to host {link.name}: " in (await heard.get()).message
    gate.open.set()
    assert await upload is None
    assert said or heard.empty()
    await delivery.close()


async def test_a_caller_that_is_cancelled_leaves_the_upload_to_the_others(serve, link_to, bundles):
    agent = await serve()
    gate, link, delivery = Gate(agent), await link_to(agent), Delivery(bundles)
    first, second = (asyncio.create_task(delivery.ensure(link)) for _ in range(2))
    await gate.reached.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    gate.open.set()
    assert await second is None
    await delivery.close()


async def test_an_agent_that_was_started_again_is_asked_again(serve, link_to, bundles):
    agent = await serve()
    link, delivery = await link_to(agent), Delivery(bundles)
    await delivery.ensure(link)
    agent.incarnation = "another"
    await link.inventory()
    await delivery.ensure(link)
    assert names(agent) == ["PutBundle"] * 4
    await delivery.close()


async def test_a_failed_upload_is_made_again(serve, link_to, bundles):
    agent = await serve()
    link, delivery = await link_to(agent), Delivery(bundles)
    agent.full = True
    failure = await delivery.ensure(link)
    assert failure.kind is FailureKind.RESOURCES
    agent.full = False
    assert await delivery.ensure(link) is None
    await delivery.close()


async def test_an_agent_that_is_gone_is_a_lost_host(serve, link_to, bundles):
    agent = await serve()
    link, delivery = await link_to(agent), Delivery(bundles)
    await agent.close()
    failure = await delivery.ensure(link)
    assert failure.kind is FailureKind.HOST_LOST
    assert agent.address in failure.message
    await delivery.close()


async def test_an_archive_that_is_refused_is_named_with_its_host(serve, link_to, bundles):
    agent = await serve()
    link = await link_to(agent)
    wrong = dataclasses.replace(bundles, code=dataclasses.replace(bundles.code, digest="0" * 64))
    delivery = Delivery(wrong)
    failure = await delivery.ensure(link)
    assert failure.kind is FailureKind.INTERNAL
    for words in (str(bundles.code.source), agent.address, "is not what was announced"):
        assert words in failure.message
    await delivery.close()


async def test_nothing_is_brought_once_it_has_given_up(serve, link_to, bundles):
    agent = await serve()
    link, delivery = await link_to(agent), Delivery(bundles)
    delivery.give_up()
    assert (await delivery.ensure(link)).kind is FailureKind.HOST_LOST
    assert agent.calls == []


async def test_a_bundle_of_many_pieces_arrives_whole(serve, link_to, tmp_path):
    (tmp_path / "random.bin").write_bytes(os.urandom(5_000_000))
    agent = await serve()
    with await pack(Sources(data=tmp_path / "random.bin")) as bundles:
        delivery = Delivery(bundles)
        assert await delivery.ensure(await link_to(agent)) is None
        assert agent.bundles == {bundles.data.digest: ["random.bin"]}
        await delivery.close()

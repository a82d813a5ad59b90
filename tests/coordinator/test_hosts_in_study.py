"""Hosts that join, leave, change and get lost while a study runs, on scripted agents."""

from __future__ import annotations

import asyncio
import math

import grpc
import pytest

from coordinator import events as ev
from coordinator import muster, study_run
from coordinator.agent_link import AgentLink
from coordinator.attempt import CHIEF
from coordinator.bundles import pack
from coordinator.config import load
from coordinator.domain import (
    AttemptId,
    Cluster,
    Failure,
    Notice,
    Report,
    Sources,
    StageBudget,
    StudyState,
    TaskResult,
    Training,
    Trial,
    TrialState,
)
from coordinator.host_sources import HostsFile
from coordinator.hosts import AgentAddress, HostPolicy, Usable
from coordinator.instructions import AttemptRecord
from coordinator.manager import StudyManager
from coordinator.patience import Patience
from coordinator.study_run import StudyRun
from nhop_models.contract import FailureKind, TaskStatus
from tests.coordinator.conftest import round_trip
from tests.coordinator.store_reader import read_reports
from tests.coordinator.studies import make_spec
from tests.coordinator.test_runtime import Gate, forever
from tests.fakes import scripted_agent as fake


def lasting(seconds, reports=3):
    return lambda request, task: fake.TaskScript(runs_for=seconds, reports=reports)


def until(event):
    return lambda request, task: fake.TaskScript(runs_for=math.inf, reports=1, until=event)


def prepared(agent):
    return [request.attempt.trial for method, request in agent.calls if method == "PrepareAttempt"]


class Hosts:
    """A hosts file, and a coordinator that reads it again when told."""

    def __init__(self, coordinator, file):
        self.coordinator, self.file = coordinator, file
        self.reread = asyncio.Event()

    def write(self, *lines):
        self.file.write_text("".join(f"{getattr(line, 'address', line)}\n" for line in lines))
        self.reread.set()

    def run(self, spec, *agents, fewest=None, **options):
        policy = HostPolicy(wait=0.0, fewest=fewest, source=HostsFile(self.file))
        return asyncio.ensure_future(
            self.coordinator.run(spec, *agents, policy=policy, reread=self.reread, **options)
        )

    async def told(self, words):
        await self.coordinator.wait_for(
            lambda: any(words in notice.message for notice in self.coordinator.seen(Notice))
        )

    async def ended(self, *trials):
        await self.coordinator.wait_for(
            lambda: {t.number for t in self.coordinator.seen(Trial) if t.state.ended} >= {*trials}
        )


@pytest.fixture
def hosts(coordinator, tmp_path, monkeypatch):
    monkeypatch.setattr(muster, "ASK_AGAIN", 0.05)
    return Hosts(coordinator, tmp_path / "hosts.txt")


async def test_a_host_that_joins_runs_trials(hosts, coordinator, serve):
    a, b = await serve("a", slots=1, script=forever), await serve("b", slots=1)
    study = hosts.run(make_spec(), a)
    await coordinator.wait_for(lambda: coordinator.seen(Report))
    hosts.write(a, b)
    await hosts.ended(2, 3)
    coordinator.stop.set()
    assert (await study).study.counts.completed == 2
    assert (prepared(a), prepared(b)) == ([1], [2, 3])


async def test_a_host_that_was_down_at_the_start_is_used_once_it_answers(hosts, coordinator, serve, tmp_path):
    a = await serve("a", slots=1, script=forever)
    study = hosts.run(make_spec(), a, AgentAddress(f"unix:{tmp_path}/b.sock"), fewest=1)
    await coordinator.wait_for(lambda: coordinator.seen(Report))
    b = await serve("b", slots=1)
    await hosts.ended(2, 3)
    coordinator.stop.set()
    await study
    assert prepared(b) == [2, 3]


async def test_a_host_that_leaves_ends_its_attempt_and_gets_no_other(hosts, coordinator, serve):
    told = asyncio.Event()
    a, b = await serve("a", slots=1, script=until(told)), await serve("b", slots=1)
    study = hosts.run(make_spec(stages=(StageBudget(10, 5),)), a, b)
    await coordinator.wait_for(lambda: any(r.attempt.trial == 1 for r in coordinator.seen(Report)))
    hosts.write(b)
    await hosts.told("1 attempt may end there first")
    told.set()
    result = await study
    assert [trial.attempts for trial in result.trials] == [1] * 5
    assert result.study.counts.completed == 5
    assert prepared(a) == [1]


async def test_nothing_leads_to_a_host_that_has_left(hosts, coordinator, serve):
    told = asyncio.Event()
    a, b = await serve("a", slots=1, script=until(told)), await serve("b", slots=1, script=forever)
    study = hosts.run(make_spec(), a, b)
    await coordinator.wait_for(lambda: len(coordinator.seen(Report)) > 1)
    hosts.write(b)
    await hosts.told("1 attempt may end there first")
    told.set()
    await hosts.told(f"host {a.address} has left")
    async with asyncio.timeout(10):  # it has the last acknowledgement, and notices that the stream has ended
        while a.known_attempts() or a._subscriptions:  # noqa: ASYNC110  (the agent tells no one)
            await asyncio.sleep(0.01)
    coordinator.stop.set()
    assert (await study).study.counts.completed == 1


async def test_files_of_a_trial_are_fetched_before_its_host_has_left(hosts, coordinator, serve):
    going, passed = asyncio.Event(), asyncio.Event()

    async def slowly(name):
        going.set()
        await passed.wait()

    def saves(request, task):
        return fake.TaskScript(artifacts={"model.keras": b"model"})

    a, b = await serve("a", slots=1, script=saves), await serve("b", slots=1, script=forever)
    a.reading = slowly
    training = Training("Regressor", {}, 0.0, keep_model=True)
    study = hosts.run(make_spec(training=training), a, b)
    async with asyncio.timeout(10):
        await going.wait()
    hosts.write(b)
    await hosts.told("leaves the study")
    await hosts.ended(1, 3)
    await round_trip(a)  # the study has had time to let the host go
    passed.set()
    await hosts.told(f"host {a.address} has left")
    coordinator.stop.set()
    result = await study
    assert (result.study.model_trial, result.study.model_problem) == (1, "")


async def test_a_host_leaves_while_it_is_given_what_the_study_needs(hosts, coordinator, serve, tmp_path):
    going, never = asyncio.Event(), asyncio.Event()

    async def stuck(digest):
        going.set()
        await never.wait()

    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text("")
    a, b = await serve("a", slots=1, script=forever), await serve("b", slots=1)
    b.receiving = stuck
    with await pack(Sources(tmp_path / "code")) as bundles:
        study = hosts.run(bundles.put_into(make_spec()), a, bundles=bundles)
        await coordinator.wait_for(lambda: coordinator.seen(Report))
        hosts.write(a, b)
        async with asyncio.timeout(10):
            await going.wait()
        hosts.write(a)
        await hosts.told(f"host {b.address} has left")
        coordinator.stop.set()
        await study


async def test_other_slots_are_used(hosts, coordinator, serve):
    a = await serve("a", slots=3, script=forever)
    study = hosts.run(make_spec(), AgentAddress(a.address, slots=1))
    await coordinator.wait_for(lambda: coordinator.seen(Report))
    hosts.write(f"{a.address} slots=2")
    await coordinator.wait_for(lambda: len({r.attempt for r in coordinator.seen(Report)}) == 2)
    await hosts.told("has 2 slots now")
    coordinator.stop.set()
    await study
    assert prepared(a) == [1, 2]


async def test_other_slots_of_a_host_that_was_given_its_files_in_vain_stay(
    hosts, coordinator, serve, tmp_path, monkeypatch
):
    """The first time that it joined is still tried again when it has joined with other slots."""
    monkeypatch.setattr(study_run, "BRING_AGAIN", 0.2)
    joined, post = [], StudyRun.post

    def posted(run, event):
        if isinstance(event, ev.HostJoined):
            joined.append(event.slots)
            coordinator.changed.set()
        post(run, event)

    monkeypatch.setattr(StudyRun, "post", posted)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text("")
    a, b = await serve("a", slots=1, script=forever), await serve("b", slots=2)
    b.full = True
    with await pack(Sources(tmp_path / "code")) as bundles:
        study = hosts.run(bundles.put_into(make_spec()), a, bundles=bundles)
        await coordinator.wait_for(lambda: coordinator.seen(Report))
        hosts.write(a, f"{b.address} slots=2")
        await hosts.told("is not used yet")
        b.full = False
        hosts.write(a, f"{b.address} slots=1")
        await coordinator.wait_for(lambda: len(joined) == 2)
        coordinator.stop.set()
        await study
    assert joined == [1, 1]


async def test_an_agent_that_comes_back_with_more_slots_has_these_used(hosts, coordinator, serve):
    a = await serve("a", slots=1, script=forever)
    study = hosts.run(make_spec(), a)
    await coordinator.wait_for(lambda: coordinator.seen(Report))
    a.slots, a.incarnation = 2, "another"
    await coordinator.wait_for(lambda: len({r.attempt for r in coordinator.seen(Report)}) == 2)
    coordinator.stop.set()
    await study


async def test_a_wrong_file_changes_nothing(hosts, coordinator, serve):
    a = await serve("a", slots=1, script=forever)
    study = hosts.run(make_spec(), a)
    await coordinator.wait_for(lambda: coordinator.seen(Report))
    hosts.write(a, "10.0.0.7:7001")
    await hosts.told("the hosts stay as they are")
    a.script = fake.default_script
    assert not study.done()
    coordinator.stop.set()
    assert (await study).study.state is StudyState.STOPPED


async def test_another_name_of_the_same_agent_does_not_break_the_stream(hosts, coordinator, serve, tmp_path):
    """As where the hosts file had an address and has a name now."""
    told = asyncio.Event()
    a = await serve("a", slots=1, script=until(told))
    (tmp_path / "again.sock").symlink_to(tmp_path / "a.sock")
    study = hosts.run(make_spec(stages=(StageBudget(10, 2),)), a)
    await coordinator.wait_for(lambda: coordinator.seen(Report))
    hosts.write(f"unix:{tmp_path}/again.sock")
    await hosts.told("on which attempts have not ended yet")
    told.set()
    async with asyncio.timeout(30):
        result = await study
    assert [trial.attempts for trial in result.trials] == [1, 1]
    assert result.study.state is StudyState.COMPLETED


# --- races --------------------------------------------------------------------------------------


@pytest.fixture
def back(monkeypatch):
    """An event that is set once a host has joined a study that runs."""
    back, joined = asyncio.Event(), StudyRun.host_joined

    def host_joined(run, link, usable):
        joined(run, link, usable)
        back.set()

    monkeypatch.setattr(StudyRun, "host_joined", host_joined)
    return back


async def test_a_host_that_comes_back_just_when_it_is_let_go_is_still_heard(
    hosts, coordinator, serve, back, monkeypatch
):
    def ends_the_first(items):
        return any(
            isinstance(i, AttemptRecord) and i.ended_at is not None and i.attempt.trial == 1 for i in items
        )

    gate = Gate(monkeypatch, ends_the_first)
    told = asyncio.Event()
    a, b = await serve("a", slots=1, script=until(told)), await serve("b", slots=1, script=forever)
    study = hosts.run(make_spec(), a, b)
    await coordinator.wait_for(lambda: len(coordinator.seen(Report)) >= 2)
    hosts.write(b)
    await hosts.told("1 attempt may end there first")
    told.set()
    async with asyncio.timeout(10):
        await gate.reached.wait()
    hosts.write(a, b)
    async with asyncio.timeout(10):
        await back.wait()
    gate.open.set()
    await hosts.ended(1, 3)
    coordinator.stop.set()
    assert (await study).trials[2].state is TrialState.COMPLETED


async def test_a_host_that_comes_back_while_it_leaves_is_used_again(hosts, coordinator, serve, back):
    told = asyncio.Event()
    a, b = await serve("a", slots=1, script=until(told)), await serve("b", slots=1, script=forever)
    study = hosts.run(make_spec(), a, b)
    await coordinator.wait_for(lambda: len(coordinator.seen(Report)) >= 2)
    hosts.write(b)
    await hosts.told("1 attempt may end there first")
    hosts.write(a, b)
    async with asyncio.timeout(10):
        await back.wait()
    told.set()
    await hosts.ended(1, 3)
    coordinator.stop.set()
    await study
    assert prepared(a) == [1, 3]
    assert a.heartbeats[-1].study_ids


async def test_other_slots_before_a_study_has_begun(serve, tmp_path):
    """A second stream of the study would replace the first, and end it."""
    agent = await serve("a", slots=2)
    link = AgentLink(AgentAddress(agent.address))
    manager = StudyManager({link.name: link}, {link.name: Usable(1)}, tmp_path / "runs")
    config = load({"cluster": {"ps": 0, "workers": 1}, "opt_stages": [[10, 3]]})
    managed = manager.submit(config)
    manager.host_joined(link, Usable(2))
    with managed.watch() as watcher:
        async with asyncio.timeout(10):
            while await watcher.queue.get() is not None:
                pass
    assert (managed.study.state, managed.study.reason) == (StudyState.COMPLETED, "")
    await link.close()


async def test_a_study_that_has_not_begun_is_not_left_by_its_hosts(serve, tmp_path):
    agent = await serve("a", slots=2)
    link = AgentLink(AgentAddress(agent.address))
    manager = StudyManager({link.name: link}, {link.name: Usable(1)}, tmp_path / "runs")
    managed = manager.submit(load({"cluster": {"ps": 0, "workers": 1}, "opt_stages": [[10, 3]]}))
    assert link.in_use
    manager.stop(managed.study.study_id, "enough")
    async with asyncio.timeout(10):
        await link.unused()
    await manager.close("the end")
    await link.close()


async def test_a_study_ignores_hosts_that_left_before_it_came(serve, tmp_path):
    a, b = await serve("a", slots=1, script=forever), await serve("b", slots=2)
    links = {name: AgentLink(AgentAddress(agent.address, name=name)) for name, agent in (("a", a), ("b", b))}
    manager = StudyManager(links, {"a": Usable(1), "b": Usable(1)}, tmp_path / "runs")
    config = load({"cluster": {"ps": 0, "workers": 1}, "opt_stages": [[10, 2]], "parallel_trials": 1})
    first = manager.submit(config)
    async with asyncio.timeout(10):
        while not a.active_attempts():  # noqa: ASYNC110  (the agent tells no one)
            await asyncio.sleep(0.01)
    manager.host_left("a")
    second = manager.submit(config)
    manager.stop(first.study.study_id, "enough")  # its slot on a is given back, and told to the second
    for managed in (first, second):
        with managed.watch() as watcher:
            async with asyncio.timeout(10):
                while await watcher.queue.get() is not None:
                    pass
    assert (second.study.state, second.study.reason) == (StudyState.COMPLETED, "")
    for link in links.values():
        await link.close()


async def test_a_study_knows_of_hosts_that_were_lost_before_it_came(serve, tmp_path):
    agents = {"a": await serve("a", slots=1), "b": await serve("b", slots=1)}
    links = {name: AgentLink(AgentAddress(agent.address, name=name)) for name, agent in agents.items()}
    manager = StudyManager(links, dict.fromkeys(agents, Usable(1)), tmp_path / "runs")
    config = load({"cluster": {"ps": 0, "workers": 1}, "opt_stages": [[10, 3]]})

    async def hosts_used():
        managed = manager.submit(config)
        with managed.watch() as watcher:
            async with asyncio.timeout(10):
                while await watcher.queue.get() is not None:
                    pass
        assert managed.study.state is StudyState.COMPLETED
        return {trial.hosts for trial in managed.trials.values()}

    manager.host_changed(ev.HostSilent("a"))
    manager.host_changed(ev.HostLost("a", "no answer"))
    assert await hosts_used() == {("b",)}
    assert prepared(agents["a"]) == []
    manager.host_changed(ev.HostFound("a"))
    assert await hosts_used() == {("a",), ("b",)}
    for link in links.values():
        await link.close()


async def test_a_study_that_comes_when_all_hosts_are_lost_says_that_it_waits(serve, tmp_path):
    link = AgentLink(AgentAddress((await serve("a")).address, name="a"))
    manager = StudyManager({"a": link}, {"a": Usable(1)}, tmp_path / "runs")
    manager.host_changed(ev.HostLost("a", "no answer"))
    managed = manager.submit(load({"cluster": {"ps": 0, "workers": 1}}))
    async with asyncio.timeout(10):
        while not any("waiting up to 120 s for hosts" in notice.message for notice in managed.notices):
            await managed.changed.wait()
    await manager.close("the end")
    await link.close()


async def test_what_a_host_said_last_before_it_left_does_not_end_the_study(serve, tmp_path):
    """A task that failed has a log, but its host cannot be asked for that any more."""
    told = asyncio.Event()
    agents = {"a": await serve("a", slots=1), "b": await serve("b", slots=1, script=until(told))}
    links = {name: AgentLink(AgentAddress(agent.address, name=name)) for name, agent in agents.items()}
    manager = StudyManager(links, dict.fromkeys(agents, Usable(1)), tmp_path / "runs")
    managed = manager.submit(load({"cluster": {"ps": 0, "workers": 1}, "opt_stages": [[10, 3]]}))
    manager.host_left("a")
    async with asyncio.timeout(10):
        await links["a"].unused()
    await links["a"].close()
    attempt = AttemptId(managed.spec.study_id, 3, 1, managed.run.spec.run_id)  # over, or unknown
    failure = Failure(FailureKind.USER_CODE, "it raised")
    managed.run.post(ev.TaskEnded(attempt, "a", CHIEF, TaskResult(TaskStatus.FAILED, failure=failure)))
    await round_trip(agents["b"])
    told.set()
    with managed.watch() as watcher:
        async with asyncio.timeout(10):
            while await watcher.queue.get() is not None:
                pass
    assert (managed.study.state, managed.study.reason) == (StudyState.COMPLETED, "")
    await links["b"].close()


# --- lost hosts ---------------------------------------------------------------------------------


async def test_messages_of_a_lost_host_are_refused_and_counted(hosts, coordinator, serve, monkeypatch):
    monkeypatch.setattr("coordinator.agent_link.SLOW_ANSWER", 0.05)
    a = await serve("a", slots=1, script=lasting(4.0, reports=80))
    b = await serve("b", slots=1, script=lasting(1.0))
    study = hosts.run(make_spec(stages=(StageBudget(80, 2),), parallel_trials=1), a, b)
    await coordinator.wait_for(lambda: coordinator.seen(Report))
    a.hangs = True  # it does not answer, and its stream goes on
    await hosts.told("is lost")
    result = await study
    assert [(trial.attempts, trial.state) for trial in result.trials] == [
        (2, TrialState.COMPLETED),
        (1, TrialState.COMPLETED),
    ]
    assert result.study.late_messages > 0
    shown = [r.attempt.attempt for r in coordinator.seen(Report) if r.attempt.trial == 1]
    assert shown == sorted(shown)  # none of the first after one of the second
    stored = [r for r in read_reports(coordinator.path / "study.db") if r.attempt.trial == 1]
    assert len([r for r in stored if r.attempt.attempt == 1]) == shown.count(1)


@pytest.mark.parametrize("cluster", [Cluster(0, 1), Cluster(1, 2)], ids=str)
async def test_nothing_is_late_in_a_study_without_trouble(coordinator, serve, cluster):
    result = await coordinator.run(make_spec(cluster=cluster), await serve("a"), await serve("b"))
    assert result.study.late_messages == 0


async def test_what_else_listens_in_the_place_of_an_agent_is_a_lost_host(hosts, coordinator, serve):
    a, b = await serve("a", slots=1), await serve("b", slots=1, script=forever)
    study = hosts.run(make_spec(stages=(StageBudget(10, 4),)), b, a)
    await coordinator.wait_for(lambda: any(r.attempt.trial == 1 for r in coordinator.seen(Report)))
    await b.close()
    other = grpc.aio.server()
    other.add_insecure_port(b.address)
    await other.start()
    await hosts.told("(what listens there is not an nhop-agent of this version)")
    result = await study
    assert (result.study.state, result.study.counts.completed) == (StudyState.COMPLETED, 4)
    await other.stop(None)


async def test_a_lost_host_that_comes_back_is_used_again(hosts, coordinator, serve, monkeypatch):
    monkeypatch.setattr("coordinator.agent_link.SLOW_ANSWER", 0.05)
    a, b = await serve("a", slots=1, script=forever), await serve("b", slots=1, script=forever)
    study = hosts.run(make_spec(), a, b)
    await coordinator.wait_for(lambda: len(coordinator.seen(Report)) >= 2)
    a.hangs = True
    await hosts.told("is lost")
    a.script, a.hangs = fake.default_script, False
    await hosts.told("is back")
    await hosts.ended(1, 3)
    coordinator.stop.set()
    assert (await study).trials[0].attempts == 2


async def test_a_short_silence_changes_nothing(hosts, coordinator, serve, monkeypatch):
    monkeypatch.setattr("coordinator.agent_link.SLOW_ANSWER", 0.05)
    a = await serve("a", slots=1, script=lasting(1.0))
    study = hosts.run(make_spec(stages=(StageBudget(10, 1),)), a, patience=Patience(2.0, 2.0, 0.05, 60.0))
    await coordinator.wait_for(lambda: coordinator.seen(Report))
    a.hangs = True
    before = len(a.heartbeats)
    async with asyncio.timeout(10):
        while len(a.heartbeats) < before + 3:  # noqa: ASYNC110  (the agent tells no one)
            await asyncio.sleep(0.01)
    a.hangs = False
    result = await study
    assert [trial.attempts for trial in result.trials] == [1]
    assert coordinator.seen(Notice) == []


async def test_agents_are_told_how_long_to_wait_for_their_coordinator(hosts, coordinator, serve):
    a = await serve("a", slots=1)
    await coordinator.run(make_spec(), a, patience=Patience(lost=90.0))
    (start, *_) = [request for method, request in a.calls if method == "StartAttempt"]
    assert start.limits.silence.ToTimedelta().total_seconds() == 80.0  # 8 s to end, 2 s until it begins

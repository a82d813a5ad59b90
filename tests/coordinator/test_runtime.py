"""Whole studies over gRPC, on scripted agents."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time

import pytest

from coordinator import study_run
from coordinator.agent_link import AgentLink
from coordinator.directory import StudyDirectory
from coordinator.domain import (
    AttemptId,
    Cluster,
    Notice,
    Report,
    StageBudget,
    StopReason,
    Study,
    StudyState,
    Trial,
    TrialState,
)
from coordinator.errors import HostsError, StudyFailedError
from coordinator.hosts import AgentAddress
from coordinator.instructions import AttemptRecord, PrepareAttempt, StopAttempt
from coordinator.machine import StudyMachine
from coordinator.runtime import run_study
from coordinator.store import Store
from coordinator.transfers import Transfers
from nhop.v1 import types_pb2
from nhop_models.contract import FailureKind, TaskId
from tests.coordinator.conftest import Coordinator, round_trip
from tests.coordinator.store_reader import read_reports, read_study, read_trials
from tests.coordinator.studies import make_spec
from tests.fakes import scripted_agent as fake


def fails(kind, *, trial=None, attempts=math.inf, message="scripted"):
    """A script whose chief fails with ``kind``."""

    def script(request, task):
        attempt = request.attempt
        if fake.name(task) == "worker/0" and trial in (None, attempt.trial) and attempt.attempt <= attempts:
            return fake.TaskScript(ends_with=fake.failed(kind, message))
        return fake.default_script(request, task)

    return script


class Calls(list):
    """Calls of an agent; ``first`` is set by the first."""

    def __init__(self):
        super().__init__()
        self.first = asyncio.Event()

    def append(self, call):
        super().append(call)
        self.first.set()


class Gate:
    """Holds commits with certain items back until it is opened."""

    def __init__(self, monkeypatch, condition):
        self.reached, self.open = asyncio.Event(), asyncio.Event()
        commit = Store.commit

        async def held(store, items, reports):
            if condition(items):
                self.reached.set()
                await self.open.wait()
            await commit(store, items, reports)

        monkeypatch.setattr(Store, "commit", held)


def forever(request, task):
    return fake.TaskScript(runs_for=math.inf, reports=1)


async def test_a_study_completes_and_the_store_agrees(coordinator, serve):
    spec = make_spec(stages=(StageBudget(10, 5), StageBudget(5, 3)))
    result = await coordinator.run(spec, await serve())
    assert result.study.state is StudyState.COMPLETED
    assert read_study(coordinator.path / "study.db") == result.study
    assert read_trials(coordinator.path / "study.db") == result.trials
    assert len(result.trials) == 8


async def test_reports_are_stored_and_shown_once(coordinator, serve):
    await coordinator.run(make_spec(), await serve())
    stored = read_reports(coordinator.path / "study.db")
    assert len(stored) == 9
    assert sorted(coordinator.seen(Report), key=lambda r: (r.attempt, r.sequence)) == list(stored)


async def test_agents_forget_what_is_acknowledged(coordinator, serve):
    agent = await serve()
    await coordinator.run(make_spec(), agent)
    assert agent.known_attempts() == []


async def test_nothing_is_sent_before_what_it_follows_from_is_committed(coordinator, serve, monkeypatch):
    agent, gate = await serve(), Gate(monkeypatch, lambda items: True)
    study = asyncio.ensure_future(coordinator.run(make_spec(), agent))
    await gate.reached.wait()
    await round_trip(agent)
    assert agent.calls == []
    gate.open.set()
    assert (await study).study.counts.completed == 3


async def test_nothing_is_acknowledged_before_it_is_committed(coordinator, serve, monkeypatch):
    def ends_an_attempt(items):
        return any(isinstance(item, AttemptRecord) and item.ended_at is not None for item in items)

    agent, gate = await serve(slots=1), Gate(monkeypatch, ends_an_attempt)
    study = asyncio.ensure_future(coordinator.run(make_spec(), agent))
    await gate.reached.wait()
    await round_trip(agent)
    assert len(agent.known_attempts()) == 1
    gate.open.set()
    await study
    assert agent.known_attempts() == []


async def test_a_store_that_cannot_be_written_fails_the_study(coordinator, serve, monkeypatch):
    async def full(self, items, reports):
        if reports:
            raise StudyFailedError("study.db: cannot be written (disk full)")

    monkeypatch.setattr(Store, "commit", full)
    agent = await serve(script=forever)
    result = await coordinator.run(make_spec(), agent)
    assert result.study.state is StudyState.FAILED
    assert "disk full" in result.study.reason
    assert agent.active_attempts() == []


async def test_streams_that_break_lose_nothing(coordinator, serve):
    agent = await serve(script=lambda r, t: fake.TaskScript(runs_for=0.1, reports=10))
    study = asyncio.ensure_future(coordinator.run(make_spec(), agent))
    while not study.done():
        agent.cut_streams()
        await asyncio.wait([study], timeout=0.07)
    assert study.result().study.counts.completed == 3
    assert len(read_reports(coordinator.path / "study.db")) == 30


async def test_both_hosts_run_trials(coordinator, serve):
    agents = [await serve("a", slots=1), await serve("b", slots=1)]
    result = await coordinator.run(make_spec(stages=(StageBudget(10, 6),)), *agents)
    assert {host for trial in result.trials for host in trial.hosts} == {a.address for a in agents}


async def test_a_cluster_spread_over_hosts(coordinator, serve):
    agents = [await serve("a", slots=2, first_port=20000), await serve("b", slots=2, first_port=21000)]
    result = await coordinator.run(make_spec(cluster=Cluster(2, 4)), *agents)
    assert result.study.counts.completed == 3
    start = next(request for name, request in agents[0].calls if name == "StartAttempt")
    assert len(set(start.cluster.workers)) == 4
    assert len(set(start.cluster.ps)) == 2


# --- GPUs ------------------------------------------------------------------------------------


def gpus_of(agent):
    """What each prepared attempt asked for, task by task."""
    return [[t.gpus for t in request.tasks] for method, request in agent.calls if method == "PrepareAttempt"]


async def test_workers_are_leased_gpus(coordinator, serve):
    agent = await serve(slots=4, gpus=["g0", "g1"])
    result = await coordinator.run(make_spec(cluster=Cluster(1, 2, 1)), agent)
    assert result.study.counts.completed == 3
    assert gpus_of(agent) == [[0, 1, 1]] * 3


async def test_no_more_trials_run_than_the_gpus_carry(coordinator, serve):
    agent = await serve(slots=8, gpus=["g0"])
    result = await coordinator.run(make_spec(cluster=Cluster(0, 1, 0.5), stages=(StageBudget(10, 6),)), agent)
    assert result.study.counts.completed == 6
    assert len(gpus_of(agent)) == 6  # none was refused


async def test_a_study_without_a_gpu_that_it_needs_ends_before_it_begins(coordinator, serve):
    with pytest.raises(HostsError, match="have no GPU"):
        await coordinator.run(make_spec(cluster=Cluster(0, 1, 1)), await serve())


async def test_this_machine_without_a_gpu_is_told_too(coordinator, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # also where there is one
    with (
        StudyDirectory.create(tmp_path / "out") as directory,
        pytest.raises(HostsError, match="localhost: 0"),
    ):
        await run_study(
            make_spec(cluster=Cluster(0, 1, 1)),
            directory=directory,
            agents=None,
            observer=coordinator.observe,
            stop=coordinator.stop,
        )


async def test_a_quarantined_gpu_is_told_at_the_start(coordinator, serve):
    agent = await serve(slots=2, gpus=["g0", "g1"])
    agent.gpus["g0"].quarantined = "a process is stuck"
    await coordinator.run(make_spec(cluster=Cluster(0, 1, 1)), agent)
    assert "GPU g0: a process is stuck" in coordinator.seen(Notice)[0].message


async def test_an_infrastructure_failure_is_tried_again(coordinator, serve):
    agent = await serve(script=fails(types_pb2.FAILURE_KIND_KILLED, trial=2, attempts=1))
    result = await coordinator.run(make_spec(), agent)
    assert [trial.attempts for trial in result.trials] == [1, 2, 1]
    assert result.study.counts.completed == 3


async def test_a_failure_of_the_model_is_not_tried_again_and_its_log_is_kept(coordinator, serve):
    agent = await serve(script=fails(types_pb2.FAILURE_KIND_USER_CODE, trial=2))
    result = await coordinator.run(make_spec(), agent)
    assert result.trials[1].failure.kind is FailureKind.USER_CODE
    log = coordinator.path / "logs" / "trial-2-attempt-1-worker-0.log"
    assert log.read_text() == "log of worker/0\n"


async def test_the_log_of_a_model_that_ends_the_study_is_waited_for(coordinator, serve, monkeypatch):
    read_log = Transfers.read_log

    async def slowly(*arguments):
        await asyncio.sleep(2 * study_run.LAST_CALLS)
        return await read_log(*arguments)

    monkeypatch.setattr(Transfers, "read_log", slowly)
    agent = await serve(script=fails(types_pb2.FAILURE_KIND_USER_CODE))
    result = await coordinator.run(make_spec(stages=(StageBudget(10, 1),)), agent)
    assert result.study.state is StudyState.FAILED
    log = coordinator.path / "logs" / "trial-1-attempt-1-worker-0.log"
    assert log.read_text() == "log of worker/0\n"


async def test_a_hopeless_model_ends_the_study(coordinator, serve):
    agent = await serve(script=fails(types_pb2.FAILURE_KIND_DATA, message="no such file"))
    result = await coordinator.run(make_spec(stages=(StageBudget(10, 50),)), agent)
    assert result.study.state is StudyState.FAILED
    assert "no such file" in result.study.reason
    assert len(result.trials) <= 4


async def test_a_slot_that_others_hold_is_waited_for(coordinator, serve):
    agent = await serve(slots=1)
    other = AttemptId("other", 1, 1)
    link = AgentLink(AgentAddress(agent.address))
    await link.execute(
        PrepareAttempt(other, link.name, (TaskId.parse("worker/0"),), ports=False), make_spec()
    )
    agent.calls = Calls()
    study = asyncio.ensure_future(coordinator.run(make_spec(), agent))
    await agent.calls.first.wait()
    await link.execute(StopAttempt(other, link.name, StopReason.RELEASED), make_spec())
    assert (await study).study.counts.completed == 3
    await link.close()


async def test_stopping_ends_the_attempts(coordinator, serve):
    agent = await serve(script=forever)
    study = asyncio.ensure_future(coordinator.run(make_spec(), agent))
    await coordinator.wait_for(lambda: len(coordinator.seen(Report)) == 2)
    coordinator.stop.set()
    result = await study
    assert result.study.state is StudyState.STOPPED
    assert [trial.state for trial in result.trials] == [TrialState.STOPPED] * 2
    assert agent.active_attempts() == []


async def test_stopping_does_not_wait_for_stubborn_tasks(coordinator, serve):
    agent = await serve(script=lambda r, t: fake.TaskScript(runs_for=math.inf, reports=1, stops_after=30))
    study = asyncio.ensure_future(coordinator.run(make_spec(), agent, stop_limit=0.2))
    await coordinator.wait_for(lambda: len(coordinator.seen(Report)) == 2)
    begin = time.monotonic()
    coordinator.stop.set()
    result = await study
    assert time.monotonic() - begin < 10.0
    assert result.study.state is StudyState.STOPPED
    assert read_study(coordinator.path / "study.db").state is StudyState.STOPPED


async def test_a_stop_before_the_beginning(coordinator, serve):
    coordinator.stop.set()
    result = await coordinator.run(make_spec(), await serve())
    assert result.study.state is StudyState.STOPPED
    assert not coordinator.path.exists()


async def test_a_lost_host_leaves_its_trials_to_the_other(coordinator, serve):
    def script(request, task):
        return forever(request, task) if lost_runs else fake.default_script(request, task)

    lost_runs = True
    lost = await serve("a", slots=1, script=script)
    study = asyncio.ensure_future(
        coordinator.run(make_spec(parallel_trials=1), lost, await serve("b", slots=1))
    )
    await coordinator.wait_for(lambda: coordinator.seen(Report))
    await lost.close()
    result = await study
    assert result.study.counts.completed == 3
    assert any("is lost" in notice.message for notice in coordinator.seen(Notice))


async def test_a_crash_of_ours_fails_the_study_with_its_details(coordinator, serve, monkeypatch):
    def broken(update):
        if isinstance(update, Trial):
            raise TypeError("broken observer")

    monkeypatch.setattr(coordinator, "observe", broken)
    result = await coordinator.run(make_spec(), await serve(script=forever))
    assert result.study.state is StudyState.FAILED
    assert "broken observer" in result.study.reason
    assert "Traceback" in (coordinator.path / "logs" / "coordinator.log").read_text()


async def test_unreachable_hosts_are_all_named(coordinator, tmp_path):
    class Gone:
        def __init__(self, name):
            self.address = f"unix:{tmp_path}/{name}.sock"

    with pytest.raises(HostsError) as error:
        await coordinator.run(make_spec(), Gone("x"), Gone("y"))
    assert "x.sock: no agent listens there" in str(error.value)
    assert "y.sock: no agent listens there" in str(error.value)
    assert not coordinator.path.exists()


async def test_what_can_never_be_placed_is_said_at_the_start(coordinator, serve):
    with pytest.raises(HostsError, match=r"cluster\.workers is 3, but the hosts have 2 slots"):
        await coordinator.run(make_spec(cluster=Cluster(1, 3)), await serve(slots=2))


async def test_the_study_is_shown_first_running_and_last_completed(coordinator, serve):
    await coordinator.run(make_spec(), await serve())
    states = [study.state for study in coordinator.seen(Study)]
    assert states[0] is StudyState.RUNNING
    assert states[-1] is StudyState.COMPLETED


async def test_a_store_that_cannot_be_opened_fails_the_study(coordinator, serve, monkeypatch):
    def refuse(self):
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(Store, "_open", refuse)
    result = await coordinator.run(make_spec(), await serve())
    assert result.study.state is StudyState.FAILED
    assert "study.db: cannot be written (unable to open database file)" in result.study.reason


async def test_one_agent_under_two_names_is_refused(coordinator, serve, tmp_path):
    class Again:
        address = f"unix:{tmp_path}/again.sock"

    agent = await serve()
    (tmp_path / "again.sock").symlink_to(tmp_path / "a.sock")
    with pytest.raises(HostsError, match=r"again\.sock: is the same agent as unix:.*/a\.sock"):
        await coordinator.run(make_spec(), agent, Again())


async def test_an_agent_that_comes_back_without_its_attempts_costs_an_attempt(coordinator, serve):
    agent = await serve("a", slots=1, script=forever)
    study = asyncio.ensure_future(coordinator.run(make_spec(), agent))
    await coordinator.wait_for(lambda: coordinator.seen(Report))
    await agent.close()
    await serve("a", slots=1)
    async with asyncio.timeout(20):
        result = await study
    assert result.study.counts.completed == 3
    assert [trial.attempts for trial in result.trials] == [2, 1, 1]


async def test_an_agent_that_comes_back_with_its_attempts_costs_none(coordinator, serve):
    end = asyncio.Event()
    agent = await serve("a", slots=1, script=lambda r, t: fake.TaskScript(runs_for=math.inf, until=end))
    study = asyncio.ensure_future(coordinator.run(make_spec(stages=(StageBudget(10, 1),)), agent))
    await coordinator.wait_for(lambda: coordinator.seen(Report))
    agent.incarnation = "another"
    await coordinator.wait_for(lambda: any("was restarted" in n.message for n in coordinator.seen(Notice)))
    end.set()
    result = await study
    assert [trial.attempts for trial in result.trials] == [1]


async def test_reports_of_attempts_that_are_over_are_not_kept(coordinator, serve, monkeypatch):
    """The agent's stream is late: the study has given the attempt up when its reports come."""
    machine = StudyMachine.is_live
    monkeypatch.setattr(StudyMachine, "is_live", lambda self, a: a.trial != 2 and machine(self, a))
    await coordinator.run(make_spec(), await serve())
    assert {report.attempt.trial for report in coordinator.seen(Report)} == {1, 3}
    assert {report.attempt.trial for report in read_reports(coordinator.path / "study.db")} == {1, 3}


async def test_two_runs_of_one_study_id_do_not_mix(tmp_path, serve):
    """A coordinator was lost with its attempts still running; another takes the same id."""
    agent = await serve(script=forever)
    first, second = Coordinator(tmp_path / "first"), Coordinator(tmp_path / "second")
    lost = asyncio.ensure_future(first.run(make_spec(parallel_trials=1), agent))
    await first.wait_for(lambda: first.seen(Report))
    agent.script = fake.default_script
    result = await second.run(make_spec(parallel_trials=1), agent)
    assert result.study.counts.completed == 3
    assert len(agent.active_attempts()) == 1
    first.stop.set()
    assert (await lost).study.state is StudyState.STOPPED


async def test_an_observer_that_has_no_room_fails_the_study_in_one_sentence(
    coordinator, serve, monkeypatch, caplog
):
    def full(update):
        raise StudyFailedError("no space left")

    monkeypatch.setattr(coordinator, "observe", full)
    result = await coordinator.run(make_spec(), await serve(script=forever))
    assert (result.study.state, result.study.reason) == (StudyState.FAILED, "no space left")
    assert caplog.records == []

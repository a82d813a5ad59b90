"""StudyService on a Unix socket, with scripted agents behind it and real clients before it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import nhop
from coordinator import cli
from coordinator.config import load
from coordinator.domain import Notice, Report, StudyState, Trial, TrialState
from coordinator.errors import ConfigError, HostsError, UsageError
from coordinator.host_sources import HostsFile
from coordinator.hosts import AgentAddress, HostPolicy, Usable
from coordinator.manager import ManagedStudy, ManagerClosedError, StudyManager, Watcher
from coordinator.search.space import Choice, Float, Int
from coordinator.service import serve
from coordinator.store import Store
from coordinator.study_run import StudyRun
from nhop.client import StudyExistsError, StudyNotFoundError, UnreachableError
from nhop.v1 import types_pb2
from tests.coordinator.store_reader import read_trials
from tests.fakes import scripted_agent as fake

CONFIG = {"cluster": {"ps": 0, "workers": 1}, "opt_stages": [[10, 4]], "seed": 3}


class Served:
    """A served coordinator, and what blocking clients do in threads."""

    def __init__(self, address):
        self.address = address
        self.client = nhop.Client(address)

    async def call(self, function, *arguments, **options):
        return await asyncio.to_thread(function, *arguments, **options)

    async def submit(self, config=CONFIG, **options):
        return await self.call(self.client.submit, config, **options)

    async def watch(self, study_id):
        return await self.call(lambda: list(self.client.watch(study_id)))

    async def watch_until(self, study_id, condition):
        def first():
            return next(update for update in self.client.watch(study_id) if condition(update))

        return await self.call(first)


@pytest.fixture
async def agent(tmp_path):
    agent = fake.ScriptedAgent(slots=2)
    await agent.serve(f"unix:{tmp_path}/agent.sock")
    yield agent
    await agent.close()


@pytest.fixture
async def served(agent, tmp_path):
    stop, announced = asyncio.Event(), asyncio.Event()
    address = f"unix:{tmp_path}/coordinator.sock"
    serving = asyncio.create_task(
        serve(
            address,
            agents=[AgentAddress(agent.address)],
            runs_directory=tmp_path / "runs",
            stop=stop,
            announce=lambda text: announced.set(),
        )
    )
    async with asyncio.timeout(10):
        await announced.wait()
    served = Served(address)
    yield served
    served.client.close()
    stop.set()
    await serving


def forever(request, task):
    return fake.TaskScript(runs_for=math.inf, reports=1)


async def test_a_submitted_study_completes_while_it_is_watched(served):
    study = await served.submit()
    updates = await served.watch(study.study_id)
    assert updates[-1].state is StudyState.COMPLETED
    assert updates[-1].counts.completed == 4
    assert any(isinstance(update, Report) for update in updates)
    assert {u.number for u in updates if isinstance(u, Trial)} == {1, 2, 3, 4}


async def test_clients_see_what_the_command_would_print(served, tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    (code / "mine.py").write_text("class Net:\n    pass\n")
    (code / "away").symlink_to("/etc/hostname")
    config = {**CONFIG, "nn_model": "mine:Net", "code": str(code), "trainer": "anything"}
    study = await served.submit(config)
    while_it_runs = await served.watch(study.study_id)
    afterwards = await served.watch(study.study_id)
    for updates in (while_it_runs, afterwards):
        assert updates[0].study_id == study.study_id
        note, warning = [update for update in updates if isinstance(update, Notice)]
        assert ("trainer" in note.message, note.warning) == (True, False)
        assert ("not sent: away" in warning.message, warning.warning) == (True, True)
    assert while_it_runs[-1].state is StudyState.COMPLETED


async def test_clients_see_metrics_and_notes_and_find_the_best_model(served, agent):
    def script(request, task):
        outcome = fake.completed()
        outcome.metrics["mae"] = 0.25
        outcome.notes.append("slow disk")
        return fake.TaskScript(ends_with=outcome, artifacts={"model.keras": b"model"})

    agent.script = script
    study = await served.submit()
    end = (await served.watch(study.study_id))[-1]
    assert (end.best.metrics, end.best.notes) == ({"mae": 0.25}, ("slow disk",))
    trials = await served.call(lambda: list(served.client.trials(study.study_id)))
    assert [trial.metrics for trial in trials] == [{"mae": 0.25}] * 4
    assert (Path(end.output_directory) / "best_model.keras").read_bytes() == b"model"


async def test_results_agree_with_the_store(served):
    study = await served.submit()
    end = (await served.watch(study.study_id))[-1]
    trials = await served.call(lambda: list(served.client.trials(study.study_id)))
    stored = read_trials(Path(end.output_directory) / "study.db")
    assert [(t.number, t.loss, t.parameters) for t in trials] == [
        (t.number, t.loss, t.parameters) for t in stored
    ]
    assert (await served.call(served.client.best, study.study_id)) == end.best
    assert (Path(end.output_directory) / "summary.json").exists()


async def test_yaml_and_an_id_of_the_client_s_own(served):
    study = await served.submit("opt_stages: [[10, 1]]\ncluster: {ps: 0, workers: 1}\n", study_id="mine")
    assert study.study_id == "mine"
    assert [s.study_id for s in await served.call(served.client.list)] == ["mine"]


async def test_an_id_is_taken_once(served):
    await served.submit(study_id="mine")
    with pytest.raises(StudyExistsError, match="mine"):
        await served.submit(study_id="mine")


async def test_every_problem_of_a_configuration_comes_back(served):
    with pytest.raises(ConfigError) as error:
        await served.submit({**CONFIG, "opt_stages": [[10, 0]], "nonsense": 1})
    keys = [problem.key for problem in error.value.problems]
    assert any(key.startswith("opt_stages") for key in keys)
    assert "nonsense" in keys


async def test_a_bad_id_is_named(served):
    with pytest.raises(ConfigError, match="study_id"):
        await served.submit(study_id="No Good")


async def test_what_can_never_be_placed_is_refused(served):
    with pytest.raises(HostsError, match=r"cluster\.workers is 5"):
        await served.submit({**CONFIG, "cluster": {"ps": 1, "workers": 5}})


async def test_an_unknown_study(served):
    with pytest.raises(StudyNotFoundError, match="nobody"):
        await served.call(served.client.get, "nobody")


async def test_no_best_trial_yet(served, agent):
    agent.script = forever
    study = await served.submit()
    with pytest.raises(StudyNotFoundError, match="no trial"):
        await served.call(served.client.best, study.study_id)


async def test_stopping_a_study(served, agent):
    agent.script = forever
    study = await served.submit()
    await served.watch_until(study.study_id, lambda update: isinstance(update, Report))
    await served.call(served.client.stop, study.study_id)
    end = (await served.watch(study.study_id))[-1]
    assert end.state is StudyState.STOPPED
    assert agent.active_attempts() == []


async def test_stopping_an_ended_study_leaves_it_as_it_is(served):
    study = await served.submit()
    await served.watch(study.study_id)
    assert (await served.call(served.client.stop, study.study_id)).state is StudyState.COMPLETED


async def test_studies_share_the_agents(served, agent):
    """Each of three studies gets trials done before any of them is through."""
    agent.script = lambda request, task: fake.TaskScript(runs_for=0.05)
    studies = [await served.submit({**CONFIG, "opt_stages": [[10, 10]]}) for _ in range(3)]
    ends = await asyncio.gather(*(served.watch(study.study_id) for study in studies))
    assert [end[-1].counts.completed for end in ends] == [10, 10, 10]
    order = [request.attempt.study_id for name, request in agent.calls if name == "StartAttempt"]
    assert {run_id.rpartition("-")[0] for run_id in order[:15]} == {study.study_id for study in studies}


async def test_reports_bear_the_id_of_the_study(served):
    study = await served.submit(study_id="mine")
    reports = [update for update in await served.watch(study.study_id) if isinstance(update, Report)]
    assert {report.attempt.study_id for report in reports} == {"mine"}


async def test_trials_come_in_pages(served):
    study = await served.submit()
    await served.watch(study.study_id)
    from nhop.v1 import study_pb2, study_pb2_grpc

    def pages():
        with grpc.insecure_channel(served.address) as channel:
            stub = study_pb2_grpc.StudyServiceStub(channel)
            request = study_pb2.ListTrialsRequest(study_id=study.study_id, page_size=3)
            first = stub.ListTrials(request)
            request.after_trial = first.next_after_trial
            return first, stub.ListTrials(request)

    first, second = await served.call(pages)
    assert [t.number for t in first.trials] == [1, 2, 3]
    assert [t.number for t in second.trials] == [4]
    assert second.next_after_trial == 0


def test_a_slow_watcher_is_cut_off(monkeypatch):
    monkeypatch.setattr("coordinator.manager.UPDATES_AHEAD", 2)
    watcher = Watcher()
    for number in range(3):
        watcher.put(Trial(number, 1, TrialState.RUNNING, {}))
    assert watcher.too_slow
    assert watcher.queue.get_nowait() is None


async def test_a_slow_watcher_is_told(served, agent, monkeypatch):
    agent.script = forever
    study = await served.submit()

    @contextlib.contextmanager
    def overflowing(self):
        watcher = Watcher()
        watcher.too_slow = True
        watcher.queue.put_nowait(None)
        yield watcher

    monkeypatch.setattr(ManagedStudy, "watch", overflowing)
    with pytest.raises(nhop.CoordinatorError, match="RESOURCE_EXHAUSTED"):
        await served.watch(study.study_id)


async def test_health_and_reflection(served):
    def ask():
        with grpc.insecure_channel(served.address) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
            return health.status, {s.name for s in next(answers).list_services_response.service}

    status, services = await served.call(ask)
    assert status == health_pb2.HealthCheckResponse.SERVING
    assert "nhop.v1.StudyService" in services
    assert "grpc.health.v1.Health" in services


async def test_the_plain_client_of_the_examples(served):
    example = Path(__file__).parents[2] / "examples" / "client.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(example), served.address, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert "STUDY_STATE_COMPLETED: best loss" in output.decode()
    assert "trial 1: step 300, loss" in output.decode()


async def test_the_command_asks_for_the_study_by_its_option(served, capsys):
    arguments = ["logs", "1", "--serve", served.address]
    assert await asyncio.to_thread(cli.run, arguments) == 2
    assert capsys.readouterr().err == "nhop-coordinator: --study: name the study: there is none yet\n"


async def refused(address, tmp_path):
    runs = tmp_path / "all" / "runs"
    with pytest.raises(UsageError) as error:
        await serve(address, agents=[], runs_directory=runs, stop=asyncio.Event(), announce=lambda text: None)
    assert not runs.parent.exists(), "a folder is left of what was refused"
    return str(error.value)


async def test_a_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert "in use" in await refused(f"127.0.0.1:{port}", tmp_path)


async def test_a_socket_in_use(served, tmp_path):
    assert "in use" in await refused(served.address, tmp_path)


async def test_an_address_that_cannot_be_taken_is_not_said_to_be_in_use(tmp_path):
    message = await refused("unix:/proc/nhop.sock", tmp_path)
    assert "cannot listen there (" in message
    assert "in use" not in message


async def test_a_coordinator_whose_hosts_do_not_answer_leaves_no_socket(tmp_path):
    with pytest.raises(HostsError):
        await serve(
            f"unix:{tmp_path}/served.sock",
            agents=[AgentAddress(f"unix:{tmp_path}/no-agent.sock")],
            runs_directory=tmp_path / "runs",
            stop=asyncio.Event(),
            announce=lambda text: None,
            policy=HostPolicy(wait=0.0),
        )
    assert list(tmp_path.iterdir()) == []


async def test_only_this_machine_is_served(tmp_path):
    assert "TLS" in await refused("0.0.0.0:7000", tmp_path)


def test_no_coordinator_at_all(tmp_path):
    with (
        nhop.Client(f"unix:{tmp_path}/none.sock") as client,
        pytest.raises(UnreachableError, match="--serve"),
    ):
        client.list()


async def searched(served, space):
    """The search_space of a study as its resolved configuration has it."""
    config = {**CONFIG, "opt_stages": [[10, 1]], "nn_model": "m:M", "search_space": space}
    end = (await served.watch((await served.submit(config)).study_id))[-1]
    return load(Path(end.output_directory) / "config.yaml").space


async def test_a_mapping_is_searched_as_it_is_written(served):
    space = {"drop": [0.0, 1.0], "depth": [0, 1], "names": ["1e3", "no", "é😀"], "array": np.float64(2.0)}
    searched_space = await searched(served, space)
    assert {name: searched_space[name] for name in space} == {
        "drop": Float(0.0, 1.0),
        "depth": Int(0, 1),
        "names": Choice(("1e3", "no", "é😀")),
        "array": Float(2.0, 2.0),
    }


async def test_what_no_configuration_can_hold_is_refused_by_the_client(served):
    with pytest.raises(ConfigError, match="object of type object"):
        await served.submit({"search_space": {"x": object()}})


async def test_a_page_of_trials_ends_before_it_is_too_large(served, monkeypatch):
    study = await served.submit()
    await served.watch(study.study_id)
    monkeypatch.setattr("coordinator.service.PAGE_BYTES", 1)
    trials = await served.call(lambda: list(served.client.trials(study.study_id)))
    assert [trial.number for trial in trials] == [1, 2, 3, 4]


async def test_trials_with_long_logs_stay_below_what_clients_take(served, agent):
    failure = fake.failed(types_pb2.FAILURE_KIND_KILLED, detail="x" * 16_000)
    agent.script = lambda request, task: fake.TaskScript(ends_with=failure, reports=0)
    config = {**CONFIG, "opt_stages": [[10, 300]], "max_attempts": 1}
    end = (await served.watch((await served.submit(config)).study_id))[-1]
    assert end.counts.failed == 300
    trials = await served.call(lambda: list(served.client.trials(end.study_id)))
    assert len(trials) == 300


# --- hosts that come and go ---------------------------------------------------------------------


@pytest.fixture
async def fleet(agent, tmp_path):
    """A served coordinator with a hosts file; ``write`` changes it, ``told`` waits for what it says."""
    stop, reread, file = asyncio.Event(), asyncio.Event(), tmp_path / "hosts.txt"
    said, changed = [], asyncio.Event()

    def announce(text):
        said.append(text)
        changed.set()

    serving = asyncio.create_task(
        serve(
            f"unix:{tmp_path}/coordinator.sock",
            agents=[AgentAddress(agent.address)],
            runs_directory=tmp_path / "runs",
            stop=stop,
            announce=announce,
            policy=HostPolicy(wait=0.0, source=HostsFile(file)),
            reread=reread,
        )
    )
    fleet = Served(f"unix:{tmp_path}/coordinator.sock")

    async def told(words):
        async with asyncio.timeout(10):
            while not any(words in text for text in said):
                changed.clear()
                await changed.wait()

    def write(*agents):
        file.write_text("".join(f"{getattr(each, 'address', each)}\n" for each in agents))
        reread.set()

    fleet.told, fleet.write = told, write
    await told("serving")
    yield fleet
    fleet.client.close()
    stop.set()
    await serving


@pytest.fixture
async def other(tmp_path):
    agent = fake.ScriptedAgent(slots=2)
    await agent.serve(f"unix:{tmp_path}/other.sock")
    yield agent
    await agent.close()


def prepared(agent):
    return [request.attempt.trial for method, request in agent.calls if method == "PrepareAttempt"]


async def test_a_host_that_joins_is_used_by_what_runs_and_by_what_comes(fleet, agent, other):
    agent.script = forever
    first = await fleet.submit()
    await fleet.watch_until(first.study_id, lambda update: isinstance(update, Report))
    fleet.write(agent, other)
    await fleet.watch_until(first.study_id, lambda u: getattr(u, "state", None) is TrialState.COMPLETED)
    assert prepared(other) != []
    second = await fleet.submit()
    await fleet.call(fleet.client.stop, first.study_id)
    agent.script = fake.default_script
    assert (await fleet.watch(second.study_id))[-1].counts.completed == 4


async def test_a_host_that_leaves_gets_no_new_studies(fleet, agent, other):
    fleet.write(other)
    await fleet.told(f"host {agent.address} has left")
    await fleet.told(f"host {other.address} is used: 2 slots")
    study = await fleet.submit()
    assert (await fleet.watch(study.study_id))[-1].counts.completed == 4
    assert (prepared(agent), len(prepared(other))) == ([], 4)


async def test_a_host_that_leaves_ends_what_runs_there(fleet, agent, other):
    agent.script = lambda request, task: fake.TaskScript(runs_for=0.5, reports=1)
    study = await fleet.submit()
    await fleet.watch_until(study.study_id, lambda update: isinstance(update, Report))
    fleet.write(other)
    end = (await fleet.watch(study.study_id))[-1]
    assert end.counts.completed == 4
    trials = await fleet.call(lambda: list(fleet.client.trials(study.study_id)))
    assert [trial.attempts for trial in trials] == [1] * 4
    await fleet.told(f"host {agent.address} has left")


async def test_a_restart_of_an_agent_is_said(fleet, agent):
    agent.incarnation = "another"
    await fleet.told(f"the agent of host {agent.address} was restarted")


async def test_a_wrong_hosts_file_is_said_and_the_service_goes_on(fleet):
    fleet.write("10.0.0.7:7001")
    await fleet.told("the hosts stay as they are")
    study = await fleet.submit()
    assert (await fleet.watch(study.study_id))[-1].state is StudyState.COMPLETED


async def test_a_study_that_outlives_a_lost_host_is_refused(fleet):
    with pytest.raises(HostsError, match=r"--host-limit.* must be at least 92 s"):
        await fleet.submit({**CONFIG, "stop_grace": 30.0, "terminate_grace": 9.0})
    assert not await fleet.call(fleet.client.list)


@pytest.fixture
def manager(tmp_path):
    """One without any host."""
    return StudyManager({}, {"a": Usable(2)}, tmp_path / "runs")


async def ended(managed):
    """How a study ends, as its watchers see it."""
    with managed.watch() as watcher:
        async with asyncio.timeout(10):
            while await watcher.queue.get() is not None:
                pass
    return managed.study


async def test_a_study_whose_store_cannot_be_opened_fails(manager, monkeypatch):
    def refuse(self):
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(Store, "_open", refuse)
    study = await ended(manager.submit(load(CONFIG)))
    assert study.state is StudyState.FAILED
    assert "unable to open database file" in study.reason


async def test_a_defect_fails_the_study(manager, monkeypatch):
    async def broken(self):
        raise TypeError("a defect")

    monkeypatch.setattr(StudyRun, "run", broken)
    study = await ended(manager.submit(load(CONFIG)))
    assert (study.state, study.reason) == (StudyState.FAILED, "TypeError: a defect")


async def test_results_that_cannot_be_written_are_said(served, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("coordinator.manager.write_results", full)
    end = (await served.watch((await served.submit()).study_id))[-1]
    assert end.state is StudyState.COMPLETED
    assert "the results cannot be written (No space left on device)" in end.reason


async def test_a_coordinator_that_ends_takes_no_study(served, monkeypatch):
    def closed(*arguments):
        raise ManagerClosedError("it takes no more studies")

    monkeypatch.setattr(StudyManager, "submit", closed)
    with pytest.raises(UnreachableError, match="takes no more studies"):
        await served.submit()


async def test_a_closed_manager_takes_no_study(manager, tmp_path):
    await manager.close("the coordinator ends")
    with pytest.raises(ManagerClosedError):
        manager.submit(load(CONFIG))
    assert not (tmp_path / "runs").exists()


# --- code that is sent ----------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    """A study file with a model and data, and what a client makes of it."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.py").write_text("")
    (folder / "t.csv").write_text("1,2\n3,4\n")
    (folder / "study.yaml").write_text(
        "nn_model: mine:Net\nload_data: true\nload_data_dir: t.csv\nopt_stages: [[10, 1]]\n"
        "cluster: {ps: 0, workers: 1}\n"
    )
    return folder


async def test_code_and_data_of_a_clients_file_go_to_the_hosts(served, agent, project):
    end = (await served.watch((await served.submit(project / "study.yaml")).study_id))[-1]
    assert end.state is StudyState.COMPLETED
    assert sorted(map(sorted, agent.bundles.values())) == [["mine.py", "study.yaml"], ["t.csv"]]
    (start,) = [request for name, request in agent.calls if name == "StartAttempt"]
    assert start.training.settings.values["load_data_dir"] == "t.csv"


async def test_code_that_cannot_be_packed_is_a_problem_of_its_key(served, agent, project):
    with (project / "large.bin").open("wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(ConfigError) as error:
        await served.submit(project / "study.yaml")
    (problem,) = error.value.problems
    assert problem.key == "code"
    assert "large.bin 5.0 GiB" in problem.message
    assert agent.calls == []

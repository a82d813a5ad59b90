"""Logs of tasks by StudyService of a plain run: scripted agents behind it, real clients before it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import stat
import threading
from pathlib import Path

import pytest

import nhop
from coordinator import cli
from coordinator.announcement import Announcement
from coordinator.config import load
from coordinator.domain import Notice, StudyState, Trial, TrialState
from coordinator.errors import ConfigError, HostsError
from coordinator.host_sources import HostsFile
from coordinator.hosts import AgentAddress, HostPolicy
from coordinator.launch import launch
from coordinator.link_errors import HostUnreachableError
from coordinator.service import serve
from coordinator.transfers import Transfers
from nhop.client import StudyNotFoundError
from nhop.v1 import types_pb2
from tests.fakes import scripted_agent as fake

CONFIG = {"cluster": {"ps": 0, "workers": 1}, "opt_stages": [[10, 3]], "seed": 3}
DEADLINE = 20.0


async def until(condition):
    async with asyncio.timeout(DEADLINE):
        while not (value := condition()):  # noqa: ASYNC110 - files and threads set no event
            await asyncio.sleep(0.01)
        return value


class Run:
    """A plain run under way, and a client of it."""

    def __init__(self, folder):
        self.folder = folder
        self.stop = asyncio.Event()
        self.updates = []
        self.task = None
        self.client = None
        self.readers = []

    async def launch(self, agent, config, others=(), **options):
        return await launch(
            load({**CONFIG, **config}),
            study_id="mine",
            output=self.folder,
            agents=[AgentAddress(agent.address, name="a"), *others],
            observer=self.updates.append,
            stop=self.stop,
            **options,
        )

    async def begin(self, agent, config, **options):
        self.task = asyncio.create_task(self.launch(agent, config, **options))
        announcement = await until(lambda: Announcement.read(self.folder) or self.task.done())
        assert announcement is not True, self.task.result()
        self.client = nhop.Client(announcement.address)
        return self

    async def until_ended(self, trial, state):
        def ended():
            return any(isinstance(u, Trial) and (u.number, u.state) == (trial, state) for u in self.updates)

        await until(ended)

    async def logs(self, trial, task="worker/0", **options):
        """All that is read, in one piece."""
        return b"".join(
            await asyncio.to_thread(lambda: list(self.client.logs("mine", trial, task, **options)))
        )

    def follow(self, trial, task="worker/0"):
        return Reader(self, trial, task)

    async def end(self):
        self.stop.set()
        await self.task
        if self.client is not None:
            self.client.close()


class Reader:
    """Follows a log in a thread; ``data`` is what has come, ``attempts`` of which."""

    def __init__(self, run, trial, task):
        self.data = b""
        self.attempts = []
        self._work = asyncio.create_task(asyncio.to_thread(self._read, run.client, trial, task))

    def _read(self, client, trial, task):
        for part in client.log_parts("mine", trial, task, follow=True):
            self.data += part.data
            if part.attempt not in self.attempts:
                self.attempts.append(part.attempt)

    async def has(self, data):
        await until(lambda: self.data == data or self._work.done())
        assert self.data == data

    async def ended(self):
        async with asyncio.timeout(DEADLINE):
            await self._work


@pytest.fixture
async def agent(tmp_path):
    agent = fake.ScriptedAgent(slots=1)
    await agent.serve(f"unix:{tmp_path}/agent.sock")
    yield agent
    await agent.close()


@pytest.fixture
async def start(tmp_path, agent):
    """Starts a plain run in ``out``; it is ended with the test."""
    run = Run(tmp_path / "out")

    async def begin(policy=None, reread=None, others=(), **config):
        return await run.begin(agent, config, policy=policy, reread=reread, others=others)

    yield begin
    if run.task is not None:
        await run.end()


def forever(request, task):
    return fake.TaskScript(runs_for=math.inf, reports=1, log="first\n")


def fails(kind=types_pb2.FAILURE_KIND_USER_CODE, *, trial=1, attempts=1, then=fake.TaskScript):
    """The first attempts of a trial fail; the rest does ``then``."""

    def script(request, task):
        attempt = request.attempt
        log = f"attempt {attempt.attempt}\n"
        if attempt.trial == trial and attempt.attempt <= attempts:
            return fake.TaskScript(ends_with=fake.failed(kind), log=log)
        return then(log=log)

    return script


def then_forever(log):
    return fake.TaskScript(runs_for=math.inf, reports=1, log=log)


async def test_a_running_trial_is_followed_to_its_end(start, agent):
    agent.script = forever
    run = await start()
    reader = run.follow(1)
    await reader.has(b"first\n")
    agent.say(1, "second\n")
    await reader.has(b"first\nsecond\n")
    await asyncio.to_thread(run.client.stop, "mine")
    await reader.ended()
    assert reader.data == b"first\nsecond\n"


async def test_what_a_running_task_printed_so_far(start, agent):
    agent.script = forever
    run = await start()
    await run.until_ended(1, TrialState.RUNNING)
    await until(lambda: agent.active_attempts() and any(name == "StartAttempt" for name, _ in agent.calls))
    reader = run.follow(1)
    await reader.has(b"first\n")
    assert await run.logs(1) == b"first\n"


async def test_a_trial_that_has_not_begun_is_waited_for_by_followers_alone(start, agent):
    end = asyncio.Event()
    agent.script = lambda request, task: fake.TaskScript(
        runs_for=math.inf,
        until=end if request.attempt.trial < 3 else None,
        log=f"trial {request.attempt.trial}\n",
    )
    run = await start()
    with pytest.raises(StudyNotFoundError, match="trial 3 has not begun yet; --follow waits for it"):
        await run.logs(3)
    reader = run.follow(3)
    end.set()
    await reader.has(b"trial 3\n")


async def test_a_new_attempt_is_followed(start, agent):
    agent.script = fails(types_pb2.FAILURE_KIND_KILLED, then=then_forever)
    run = await start()
    reader = run.follow(1)
    await reader.has(b"attempt 1\nattempt 2\n")
    assert reader.attempts == [1, 2]


async def test_the_log_of_a_failed_trial_is_kept(start, agent):
    agent.script = fails(then=then_forever)
    run = await start()
    await run.until_ended(1, TrialState.FAILED)
    assert await run.logs(1) == b"attempt 1\n"


async def test_the_logs_of_failed_attempts_of_a_trial_that_completed_are_kept(start, agent):
    completes = fails(types_pb2.FAILURE_KIND_KILLED, attempts=1)
    agent.script = lambda request, task: (forever if request.attempt.trial > 1 else completes)(request, task)
    run = await start()
    await run.until_ended(1, TrialState.COMPLETED)
    assert await run.logs(1) == b"attempt 1\n"


async def test_the_log_of_a_chief_whose_loss_is_no_number_is_kept(start, agent):
    def script(request, task):
        outcome = fake.completed()
        outcome.val_loss = math.nan
        return (
            fake.TaskScript(ends_with=outcome, log="nothing but NaN\n")
            if request.attempt.trial == 1
            else (forever(request, task))
        )

    agent.script = script
    run = await start()
    await run.until_ended(1, TrialState.FAILED)
    assert await run.logs(1) == b"nothing but NaN\n"


async def test_logs_of_what_did_not_fail_are_not_kept(start, agent):
    agent.script = lambda request, task: (
        fake.TaskScript() if request.attempt.trial == 1 else forever(request, task)
    )
    run = await start()
    await run.until_ended(1, TrialState.COMPLETED)
    with pytest.raises(StudyNotFoundError, match="trial 1 was not kept: only logs of tasks that failed are"):
        await run.logs(1)


@pytest.mark.parametrize(
    ("trial", "task", "error", "words"),
    [
        (4, "worker/0", StudyNotFoundError, "there is no trial 4: the study mine has 1 to 3"),
        (0, "worker/0", StudyNotFoundError, "there is no trial 0"),
        (1, "ps/0", StudyNotFoundError, "no trial has a task ps/0"),
        (1, "worker-1", StudyNotFoundError, "no trial has a task worker/1"),
        (1, "chief", ConfigError, "'chief' is not a task: ps/N or worker/N is"),
    ],
)
async def test_what_there_is_not(start, agent, trial, task, error, words):
    agent.script = forever
    run = await start()
    with pytest.raises(error, match=words):
        await run.logs(trial, task)


async def test_the_only_study_need_not_be_named(start, agent):
    agent.script = forever
    run = await start()
    reader = run.follow(1)
    await reader.has(b"first\n")
    assert b"".join(await asyncio.to_thread(lambda: list(run.client.logs("", 1)))) == b"first\n"


async def test_a_host_that_is_gone_is_said(start, agent):
    agent.script = forever
    run = await start()
    await run.follow(1).has(b"first\n")
    await agent.close()
    with pytest.raises(nhop.CoordinatorError, match="log of worker/0 of trial 1 is on a, which cannot be"):
        await run.logs(1)
    assert await asyncio.to_thread(cli.run, ["logs", "1", "--output", str(run.folder)]) == 1


async def test_a_follower_goes_on_where_its_host_was_away(start, agent, monkeypatch):
    follow_log, offsets = Transfers.follow_log, []

    async def breaking(self, attempt, task, offset=0, *, follow=True):
        offsets.append(offset)
        async with contextlib.aclosing(follow_log(self, attempt, task, offset, follow=follow)) as pieces:
            async for piece in pieces:
                yield piece
                if piece and len(offsets) == 1:
                    raise HostUnreachableError("away")

    monkeypatch.setattr(Transfers, "follow_log", breaking)
    agent.script = forever
    run = await start()
    reader = run.follow(1)
    await reader.has(b"first\n")
    await until(lambda: len(offsets) == 2)
    agent.say(1, "second\n")
    await reader.has(b"first\nsecond\n")
    assert offsets == [0, 6]


@pytest.fixture
async def other(tmp_path):
    agent = fake.ScriptedAgent(slots=1)
    await agent.serve(f"unix:{tmp_path}/other.sock")
    yield agent
    await agent.close()


async def test_a_follower_goes_on_when_its_host_is_lost_and_leaves(
    start, agent, other, tmp_path, monkeypatch
):
    """Its connection is closed while the follower waits for more."""
    monkeypatch.setattr("coordinator.agent_link.SLOW_ANSWER", 0.05)
    agent.script = forever
    other.script = lambda request, task: then_forever("second\n")
    hosts, reread = tmp_path / "hosts.txt", asyncio.Event()
    policy = HostPolicy(wait=0.0, lost=0.5, source=HostsFile(hosts))
    run = await start(policy=policy, reread=reread, opt_stages=[[10, 1]])
    reader = run.follow(1)
    await reader.has(b"first\n")
    agent.hangs = True  # it does not answer, and its stream goes on
    hosts.write_text(f"{other.address}\n")
    reread.set()
    await until(lambda: reader.attempts == [1, 2] or reader._work.done())
    await reader.has(b"first\nsecond\n")


async def test_a_study_that_ends_while_it_is_announced_leaves_no_announcement(tmp_path, agent, monkeypatch):
    write, remove = Announcement.write, Announcement.remove
    writing, removed = threading.Event(), threading.Event()

    def slow_write(self, folder):
        writing.set()
        removed.wait(0.5)
        write(self, folder)

    def tell_remove(folder):
        remove(folder)
        removed.set()

    monkeypatch.setattr(Announcement, "write", slow_write)
    monkeypatch.setattr(Announcement, "remove", tell_remove)
    run = Run(tmp_path / "out")
    study = asyncio.create_task(run.launch(agent, {}))
    await until(writing.is_set)
    run.stop.set()
    await study
    await asyncio.get_running_loop().shutdown_default_executor()
    assert Announcement.read(run.folder) is None


async def test_a_host_that_lets_no_more_logs_be_followed_is_said(start, agent):
    agent.script = forever
    run = await start()
    await run.follow(1).has(b"first\n")
    agent.followers = fake.MAX_FOLLOWERS
    with pytest.raises(nhop.CoordinatorError, match="a: too many logs are followed"):
        await run.logs(1, follow=True)


async def test_readers_are_bounded_and_make_room_when_they_go(start, agent, monkeypatch):
    monkeypatch.setattr("coordinator.service.LOG_READERS", 1)
    agent.script = forever
    run = await start()
    reader = run.follow(1)
    await reader.has(b"first\n")
    with pytest.raises(nhop.CoordinatorError, match="1 logs are read from this coordinator already"):
        await run.logs(1)
    run.client.close()
    with contextlib.suppress(nhop.CoordinatorError):
        await reader.ended()
    await until(lambda: agent.followers == 0)
    run.client = nhop.Client(Announcement.read(run.folder).address)
    assert await run.logs(1) == b"first\n"


# --- a plain run as a service ---------------------------------------------------------------


async def test_a_plain_run_answers_as_a_served_study_does(start, agent):
    run = await start()
    client = run.client
    updates = await asyncio.to_thread(lambda: list(client.watch("mine")))
    assert updates[-1].state is StudyState.COMPLETED
    assert updates[-1].output_directory == str(run.folder)


async def test_a_watcher_of_a_plain_run_sees_what_was_said_before_it_began(start, agent, tmp_path):
    gone = AgentAddress(f"unix:{tmp_path}/gone.sock", name="gone")
    agent.script = forever
    run = await start(policy=HostPolicy(wait=0.0, fewest=1), others=[gone])
    watching = run.client.watch("mine")
    update = await asyncio.to_thread(lambda: next(u for u in watching if isinstance(u, Notice)))
    watching.close()
    assert update.message == "the study begins without host gone, which is used once it answers"
    assert update in run.updates


async def test_the_state_of_a_plain_run(start, agent):
    agent.script = lambda request, task: (
        fake.TaskScript() if request.attempt.trial == 1 else forever(request, task)
    )
    run = await start()
    await run.until_ended(1, TrialState.COMPLETED)
    client = run.client
    assert [study.study_id for study in await asyncio.to_thread(client.list)] == ["mine"]
    assert (await asyncio.to_thread(client.get, "mine")).state is StudyState.RUNNING
    assert (await asyncio.to_thread(client.best, "mine")).number == 1
    assert [t.number for t in await asyncio.to_thread(lambda: list(client.trials("mine")))] == [1, 2]


async def test_a_plain_run_can_be_stopped(start, agent):
    agent.script = forever
    run = await start()
    await asyncio.to_thread(run.client.stop, "mine")
    assert (await run.task).study.state is StudyState.STOPPED


async def test_a_plain_run_takes_no_other_study(start, agent):
    agent.script = forever
    run = await start()
    with pytest.raises(HostsError, match="runs one study and takes no other"):
        await asyncio.to_thread(run.client.submit, CONFIG)


def modes(*paths):
    return [stat.S_IMODE(path.stat().st_mode) if path.exists() else None for path in paths]


async def test_only_the_owner_can_connect_and_nothing_is_left(start, agent):
    agent.script = forever
    run = await start()
    socket = Path(Announcement.read(run.folder).address.removeprefix("unix:"))
    assert modes(socket, socket.parent) == [0o600, 0o700]
    await run.end()
    assert modes(socket.parent) == [None]
    assert Announcement.read(run.folder) is None


async def test_a_socket_that_cannot_be_made_does_not_harm_the_study(tmp_path, agent, monkeypatch):
    def refuse():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coordinator.own_service.make_private_folder", refuse)
    end = asyncio.Event()
    agent.script = lambda request, task: fake.TaskScript(runs_for=math.inf, until=end)
    run = Run(tmp_path / "out")
    study = asyncio.create_task(run.launch(agent, {"opt_stages": [[10, 1]]}))

    def warnings():
        return [u.message for u in run.updates if isinstance(u, Notice) and u.warning]

    await until(warnings)
    end.set()
    assert (await study).study.state is StudyState.COMPLETED
    assert warnings() == [
        "`nhop-coordinator logs` cannot follow this study while it runs: No space left on device"
    ]


async def test_a_served_study_is_found_by_its_folder(tmp_path, agent, capsys):
    agent.script = forever
    stop, announced = asyncio.Event(), asyncio.Event()
    address = f"unix:{tmp_path}/served.sock"
    serving = asyncio.create_task(
        serve(
            address,
            agents=[AgentAddress(agent.address, name="a")],
            runs_directory=tmp_path / "runs",
            stop=stop,
            announce=lambda text: announced.set(),
        )
    )
    try:
        async with asyncio.timeout(DEADLINE):
            await announced.wait()
        with nhop.Client(address) as client:
            study = await asyncio.to_thread(client.submit, CONFIG)
            folder = Path(study.output_directory)
            follow = ["logs", "1", "--follow", "--output", str(folder)]
            reader = asyncio.create_task(asyncio.to_thread(cli.run, follow))
            told = ""

            def has_begun():
                nonlocal told
                told += capsys.readouterr().out
                return told == "first\n"

            await until(has_begun)
            await asyncio.to_thread(client.stop, study.study_id)
            assert await reader == 0
            await until(lambda: Announcement.read(folder) is None)
    finally:
        stop.set()
        await serving

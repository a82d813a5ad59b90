"""Tasks as a user of their own: who that may be, what the agent gives it, and what it cannot take."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from agent.config import AgentError, ConfigError
from agent.domain import AttemptId
from agent.left import StrangeFileError, open_left
from agent.task_places import TaskPlaces
from agent.task_reach import check_reach, first_closed
from agent.task_user import TaskUser, become, parse_task_user, why_not
from nhop.security import handshakes
from nhop.v1 import agent_pb2, types_pb2
from tests.contract.harness import DEADLINE, RealAgent, attempt_id, is_kind, outcome, pids, task_id
from tests.fakes.archives import archive, digest_of
from tests.users import ROOT, Users, needs_users, some_users

USER = TaskUser("nhop-task", 64_123, 64_124)
ALL = ("CAP_SETUID", "CAP_SETGID", "CAP_KILL")
FOREVER = {"runs_for": None, "reports": 1}


# --- who it may be --------------------------------------------------------------------------


def test_a_user_by_name_and_by_number() -> None:
    assert parse_task_user("daemon") == parse_task_user("1") == TaskUser("daemon", 1, 1)
    assert parse_task_user("64123") == TaskUser("64123", 64_123, 64_123)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no-such-user", "there is no user 'no-such-user'"),
        ("", "there is no user ''"),
        ("root", "is root"),
        ("0", "is root"),
        ("4294967295", "not the number of a user"),
        ("9" * 30, "not the number of a user"),
    ],
)
def test_who_it_may_not_be(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_task_user(text)


@pytest.mark.parametrize(
    ("uid", "groups", "held", "message"),
    [
        (USER.uid, {USER.gid}, ALL, "is the user of this agent"),
        (1000, {USER.gid}, ("CAP_KILL",), r"may not change to another user \(CAP_SETUID, CAP_SETGID\)"),
        (1000, {USER.gid}, ("CAP_SETUID", "CAP_SETGID"), r"\(CAP_KILL\)"),
        (1000, {1000}, ALL, "not in the group 64124"),
        (1000, {1000}, (*ALL, "CAP_CHOWN"), None),
        (1000, {1000, USER.gid}, ALL, None),
    ],
)
def test_what_an_agent_needs_for_it(
    uid: int, groups: set[int], held: tuple[str, ...], message: str | None
) -> None:
    problem = why_not(USER, uid, groups, held)
    assert (problem is None) == (message is None)
    assert message is None or re.search(message, problem or "")


def test_the_bounding_set_is_emptied_where_that_may_be_done() -> None:
    assert "--bounding-set=-all" in become(USER, {"CAP_SETPCAP"})
    assert "--bounding-set=-all" not in become(USER, {"CAP_SETUID"})


def test_the_first_folder_that_is_closed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "open" / "closed" / "file"
    path.parent.mkdir(parents=True)
    path.touch()
    for folder in path.parents[:-1]:
        if folder.is_relative_to(tmp_path):
            folder.chmod(0o755)
    path.parent.chmod(0o700)
    user = TaskUser("x", os.getuid() + 64_000, os.getgid() + 64_000)
    above = first_closed(tmp_path, user)
    assert first_closed(path, user) == (above or path.parent)
    path.parent.chmod(0o755)
    path.chmod(0o600)
    assert first_closed(path, user) == (above or path)


def test_a_machine_that_stalls_is_no_wrong_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of which a service manager would start the agent no more."""

    def stall(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", stall)
    with pytest.raises(AgentError, match="did not start as that user within 60 s") as error:
        check_reach(USER, tmp_path, {})
    assert error.value.exit_status == 1


# --- what tasks are told --------------------------------------------------------------------


def test_what_is_for_the_agent_alone_is_not_handed_on(tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "1", "NHOP_TLS": "/k", "XDG_CACHE_HOME": "/c"}
    assert TaskPlaces(tmp_path, None).of_zygote({**environment, "A": "b"}) == {
        "XDG_CACHE_HOME": "/c",
        "A": "b",
    }
    told = TaskPlaces(tmp_path, USER).of_zygote({**environment, "HOME": "/root", "A": "b"})
    assert told.pop("PYTHONNOUSERSITE") == "1"
    home = f"{tmp_path}/user-64123/home"
    assert told == {
        "A": "b",
        "HOME": home,
        "TMPDIR": home,
        "USER": "nhop-task",
        "LOGNAME": "nhop-task",
    }


def test_the_trace_of_the_agents_handshakes_is_not_handed_on(tmp_path: Path) -> None:
    places = TaskPlaces(tmp_path, None)
    assert places.of_zygote({**handshakes.ENVIRONMENT, "A": "b"}) == {"GRPC_VERBOSITY": "NONE", "A": "b"}
    assert places.of_zygote({"GRPC_VERBOSITY": "DEBUG"}) == {"GRPC_VERBOSITY": "DEBUG"}, "as the user says"


def test_the_place_of_temporary_files_has_a_short_name(tmp_path: Path) -> None:
    attempt = AttemptId("s" * 64, 10**18, 10**9)
    name = Path(TaskPlaces(tmp_path, USER).of_attempt(attempt)["TMPDIR"])
    assert len(str(name.relative_to(tmp_path))) <= 30, "sockets have paths of 107 bytes at most"


def test_temporary_files_stay_while_tasks_of_an_earlier_agent_may_use_them(tmp_path: Path) -> None:
    places = TaskPlaces(tmp_path, TaskUser("x", os.getuid() + 64_000, os.getgid()))
    known, unknown = AttemptId("study", 1, 1), AttemptId("study", 2, 1)
    places.open()
    for attempt in (known, unknown):
        places.furnish(attempt)
    places.open()
    folders = [Path(places.of_attempt(attempt)["TMPDIR"]) for attempt in (known, unknown)]
    assert all(folder.exists() for folder in folders)
    places.clean([known])
    assert [folder.exists() for folder in folders] == [True, False]


# --- what is not read -----------------------------------------------------------------------


def make_link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def make_hard_link(path: Path, secret: Path) -> None:
    path.hardlink_to(secret)


def make_fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [make_link, make_hard_link, make_fifo])
def test_what_is_no_plain_file_is_not_opened(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    make(tmp_path / "left", secret)
    with pytest.raises(StrangeFileError):
        open_left(tmp_path / "left")


# --- at work --------------------------------------------------------------------------------


@pytest.fixture
def users() -> Iterator[Users]:
    with some_users() as users:
        yield users


async def launch(users: Users, kind: str, **config: Any) -> RealAgent:
    inside = users.anybody() if kind == "root" else users.as_the_unit()
    return await RealAgent.launch(users.folder, inside, task_user=str(users.tasks), **config)


@pytest.fixture(params=["root", "unit"])
async def agent(request: pytest.FixtureRequest, users: Users) -> AsyncIterator[RealAgent]:
    """A real agent, of root or with the few capabilities that the unit leaves to it."""
    agent = await launch(users, request.param)
    try:
        yield agent
    finally:
        await agent.close()


async def start_forever(agent: RealAgent, *tasks: str, **script: Any) -> dict[str, int]:
    await agent.run(attempt_id(), *tasks, script={task: {**FOREVER, **script} for task in tasks})
    async with agent.follow() as stream:
        await stream.until(is_kind("report"))
        return pids(stream.seen)


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def until_empty(*folders: Path) -> None:
    async with asyncio.timeout(DEADLINE):
        while any(map(listing, folders)):  # noqa: ASYNC110 - another process empties them
            await asyncio.sleep(0.02)


def status_of(pid: int) -> dict[str, str]:
    return dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def can(users: Users, *command: object) -> bool:
    """Whether the tasks' user can do what the command does."""
    identity = (f"--reuid={users.tasks}", f"--regid={users.tasks}", "--clear-groups")
    ran = subprocess.run(["setpriv", *identity, *map(str, command)], capture_output=True, check=False)
    return ran.returncode == 0


@needs_users
async def test_tasks_run_as_their_user_with_no_privilege(agent: RealAgent, users: Users) -> None:
    tasks = await start_forever(agent, "ps/0", "worker/0")
    for pid in tasks.values():
        process = psutil.Process(pid)
        assert set(process.uids()) == set(process.gids()) == {users.tasks}
        status = status_of(pid)
        assert [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0] * 4
        assert (status["NoNewPrivs"].strip(), status["Groups"].strip()) == ("1", "")


@needs_users
async def test_what_the_user_can_do_with_the_files_of_an_agent(agent: RealAgent, users: Users) -> None:
    await start_forever(agent, "worker/0")
    attempt = agent.state_dir / "attempts/study-t1-a1"
    for folder in (agent.state_dir, agent.state_dir / "attempts", attempt, agent.state_dir / "bundles"):
        assert can(users, "test", "-x", folder)
        assert not can(users, "ls", folder)
        assert not can(users, "touch", folder / "new")
    for name in ("attempt.json", "agent.reports"):
        assert not can(users, "cat", attempt / name)
    for name in ("spec.json", "lease"):
        assert can(users, "cat", attempt / name)
        assert not can(users, "test", "-w", attempt / name)
        assert not can(users, "rm", "-f", attempt / name)
    assert not can(users, "cat", agent.state_dir / "zygote.log")
    assert can(users, "touch", attempt / "tasks" / "new")


@needs_users
async def test_what_a_task_closed_to_others_goes_with_its_attempt(agent: RealAgent, users: Users) -> None:
    await agent.run(attempt_id(), "worker/0", script={"worker/0": {"closes": True, "reports": 1}})
    attempts, temporary = agent.state_dir / "attempts", agent.state_dir / f"user-{users.tasks}" / "tmp"
    async with agent.follow() as stream:
        events = await stream.until(is_kind("attempt_ended"))
        assert outcome(events, "worker/0").status == types_pb2.TASK_STATUS_COMPLETED
        assert "closed-worker-0" in listing(attempts / "study-t1-a1" / "tasks")
        assert listing(temporary)
        await stream.acknowledge(events[-1])
        await until_empty(attempts, temporary)


@needs_users
@pytest.mark.parametrize("what", ["daemon", "child"])
async def test_what_a_task_leaves_running_is_ended(agent: RealAgent, what: str) -> None:
    await start_forever(agent, "worker/0", leaves=what, ignores=["SIGUSR1", "SIGTERM"])
    left = int((agent.state_dir / "attempts/study-t1-a1/tasks/left").read_text())
    assert psutil.pid_exists(left)
    await agent.stop(attempt_id())
    events = await agent.events(attempt_id())
    assert outcome(events, "worker/0").status == types_pb2.TASK_STATUS_STOPPED
    assert not psutil.pid_exists(left)


@needs_users
@pytest.mark.parametrize("kind", ["root", "unit"])
async def test_a_new_agent_ends_the_tasks_of_an_earlier_one(users: Users, kind: str) -> None:
    agent = await launch(users, kind)
    try:
        tasks = await start_forever(agent, "ps/0", "worker/0", closes=True)
    finally:
        await agent.kill()
    agent = await launch(users, kind)
    try:
        events = await agent.events(attempt_id())
        assert outcome(events, "worker/0").failure.kind == types_pb2.FAILURE_KIND_HOST_LOST
        assert not any(map(psutil.pid_exists, tasks.values()))
        async with agent.follow() as stream:
            await stream.acknowledge((await stream.until(is_kind("attempt_ended")))[-1])
            await until_empty(agent.state_dir / "attempts", agent.state_dir / f"user-{users.tasks}" / "tmp")
    finally:
        await agent.close()


@needs_users
async def test_a_log_that_leads_to_the_keys_is_not_read(agent: RealAgent, users: Users) -> None:
    key = users.folder / "tls.key"
    key.write_text("a secret")
    os.chown(key, users.agent, users.agent)
    key.chmod(0o600)
    await agent.run(attempt_id(), "worker/0", script={"worker/0": {"log": "hello"}})
    await agent.events(attempt_id())
    log = agent.state_dir / "attempts/study-t1-a1/tasks/worker-0.log"
    log.unlink()
    log.symlink_to(key)
    request = agent_pb2.ReadLogRequest(attempt=attempt_id(), task=task_id("worker/0"))
    with pytest.raises(grpc.aio.AioRpcError, match="not a regular file"):
        _ = [part async for part in agent.stub.ReadLog(request, timeout=DEADLINE)]


@needs_users
async def test_a_process_that_is_no_task_is_never_signalled(users: Users) -> None:
    bystander = await asyncio.create_subprocess_exec("sleep", "100")
    agent = await launch(users, "root", zygote_arguments=["--names", str(bystander.pid)])
    try:
        await agent.run(attempt_id(), "worker/0")
        events = await agent.events(attempt_id())
        assert "is no task of its" in outcome(events, "worker/0").failure.message
        assert bystander.returncode is None
    finally:
        await agent.close()
        bystander.kill()
        await bystander.wait()


@pytest.fixture
def left_alone() -> Iterator[tuple[int, psutil.Process]]:
    """The number of a process group whose first process is gone, and one that is in it still."""
    shell = subprocess.Popen(
        ["sh", "-c", "sleep 100 >&2 & echo $!"], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    left = psutil.Process(int(shell.communicate()[0]))
    try:
        yield shell.pid, left
    finally:
        left.kill()


@needs_users
async def test_the_group_of_a_process_that_is_gone_is_never_signalled(
    users: Users, left_alone: tuple[int, psutil.Process]
) -> None:
    group, bystander = left_alone
    agent = await launch(users, "root", zygote_arguments=["--names", str(group)])
    try:
        await agent.run(attempt_id(), "worker/0")
        await agent.events(attempt_id())
        assert bystander.status() != psutil.STATUS_ZOMBIE  # raises where it is gone
    finally:
        await agent.close()


@needs_users
async def test_code_is_read_and_never_written(agent: RealAgent, users: Users) -> None:
    packed = archive({"package/model.py": "x = 1"})
    await agent.put(packed)
    bundle = agent.state_dir / "bundles" / digest_of(packed)
    assert can(users, "cat", bundle / "package/model.py")
    assert can(users, "ls", bundle, bundle / "package")
    for path in (bundle / "new", bundle / "package/new", bundle / "package/model.py"):
        assert not can(users, "touch", path)


# --- wrong use ------------------------------------------------------------------------------


def start(users: Users, *inside: str, state: Path | None = None, user: object = None) -> tuple[int, str]:
    options = ("--listen", f"unix:{users.folder}/a.sock", "--state-dir", str(state or users.folder / "state"))
    of_tasks = () if user is None else ("--task-user", str(user))
    command = [*inside, sys.executable, "-m", "agent", *options, *of_tasks]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    return ran.returncode, ran.stderr


@needs_users
def test_capabilities_are_not_handed_on_to_tasks(users: Users) -> None:
    status, said = start(users, *users.as_the_unit())
    assert (status, said.count("\n")) == (2, 1)
    assert "CAP_KILL, CAP_SETGID, CAP_SETUID" in said
    assert "--task-user" in said


@needs_users
def test_a_state_directory_out_of_the_users_reach(users: Users) -> None:
    closed = users.folder / "closed"
    closed.mkdir(mode=0o700)
    status, said = start(users, *users.anybody(), state=closed / "state", user=users.tasks)
    assert (status, said.count("\n")) == (2, 1)
    assert f"cannot reach the state directory {closed}/state: {closed} is closed to it" in said


@needs_users
def test_an_installation_out_of_the_users_reach(users: Users) -> None:
    copy = users.folder / "nhop_models"
    shutil.copytree(ROOT / "nhop_models", copy)
    copy.chmod(0o700)
    script = f'mount --bind "{copy}" "{ROOT}/nhop_models" && exec "$@"'
    inside = (*users.anybody(), "unshare", "-m", "sh", "-c", script, "sh")
    status, said = start(users, *inside, user=users.tasks)
    assert (status, said.count("\n")) == (2, 1)
    assert (
        f"--task-user {users.tasks} cannot use {sys.executable}: {ROOT}/nhop_models is closed to it" in said
    )
    assert "/opt/nhop" in said


@needs_users
def test_a_user_without_tensorflow(users: Users) -> None:
    script = f'mount -t tmpfs tmpfs "{Path(sysconfig.get_path("purelib"), "tensorflow")}" && exec "$@"'
    inside = (*users.anybody(), "unshare", "-m", "sh", "-c", script, "sh")
    status, said = start(users, *inside, user=users.tasks)
    assert (status, said.count("\n")) == (2, 1)
    assert "with NHOP and TensorFlow" in said

"""The real agent with real small processes: ends, leftovers, and what happens when others die."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.domain import TaskStarted
from agent.event_log import EventLog
from nhop.v1 import agent_pb2, types_pb2
from tests.contract.harness import DEADLINE, RealAgent, attempt_id, ended, is_kind, kinds, outcome, pids

FOREVER = {"runs_for": None, "reports": 2}


async def eventually(condition: Callable[[], bool]) -> None:
    """For what no event tells: the state of other processes and files."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def not_running(pid: int) -> bool:
    """Whether it has ended, reaped or not."""
    return gone(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def zygote_of(agent: RealAgent) -> int:
    for child in psutil.Process(agent.process.pid).children():
        if any("zygote.py" in word for word in child.cmdline()):
            return child.pid
    raise AssertionError("no zygote")


async def run_to_end(agent: RealAgent, script: dict[str, Any], *tasks: str, **limits: float) -> Any:
    await agent.run(attempt_id(), *(tasks or ("worker/0",)), script=script, **limits)
    return await agent.events(attempt_id())


async def start_forever(agent: RealAgent, *tasks: str, silence: float = 0.0, **script: Any) -> dict[str, int]:
    """Starts tasks that train until they are stopped; their pids, once the chief reports."""
    scripts = {"worker/0": {**FOREVER, **script}}
    limits = {"stop_grace": 0.2, "terminate_grace": 0.2, "silence": silence}
    await agent.run(attempt_id(), *tasks, script=scripts, **limits)
    async with agent.follow() as stream:
        events = await stream.until(is_kind("report"))
        return pids(await stream.until(lambda _: len(pids(events)) == len(tasks)))


# --- how tasks end --------------------------------------------------------------------------


async def test_a_task_that_crashes(agent: RealAgent) -> None:
    events = await run_to_end(agent, {"worker/0": {"dies_of": "SIGSEGV", "log": "about to crash"}})
    result = outcome(events, "worker/0")
    assert (result.failure.kind, result.signal) == (types_pb2.FAILURE_KIND_CRASHED, signal.SIGSEGV)
    assert result.failure.detail == "about to crash"


async def test_a_task_that_ends_the_process_itself(agent: RealAgent) -> None:
    events = await run_to_end(agent, {"worker/0": {"exits": 3, "log": "bye"}})
    result = outcome(events, "worker/0")
    assert result.failure.kind == types_pb2.FAILURE_KIND_USER_CODE
    assert "exit code 3" in result.failure.message
    assert result.exit_code == 3


@pytest.mark.parametrize(
    ("ignores", "dies_of"), [(["SIGUSR1"], None), (["SIGUSR1", "SIGTERM"], signal.SIGKILL)]
)
async def test_a_task_that_ignores_signals_is_gone_by_the_deadline(
    agent: RealAgent, ignores: list[str], dies_of: signal.Signals | None
) -> None:
    tasks = await start_forever(agent, "worker/0", ignores=ignores)
    await agent.stop(attempt_id())
    result = outcome(await agent.events(attempt_id()), "worker/0")
    assert result.status == types_pb2.TASK_STATUS_STOPPED
    assert (result.signal or None) == dies_of
    assert gone(tasks["worker/0"])


@pytest.mark.parametrize("what", ["daemon", "child"])
async def test_what_a_task_leaves_behind_is_gone_with_the_attempt(agent: RealAgent, what: str) -> None:
    script = {"worker/0": {**FOREVER, "leaves": what}}
    await agent.run(attempt_id(), "worker/0", script=script)
    async with agent.follow() as stream:
        await stream.until(is_kind("report"))
        left = int((agent.state_dir / "attempts/study-t1-a1/tasks/left").read_text())
        assert not gone(left)
        await agent.stop(attempt_id())
        await stream.until(ended)
    assert gone(left)


async def test_a_damaged_spool_is_used_up_to_the_damage(agent: RealAgent) -> None:
    events = await run_to_end(agent, {"worker/0": {"damages": True}})
    assert kinds(events, "worker/0") == ["task_ready", "report", "report", "report"]
    assert ended(events[-1])


# --- the zygote -----------------------------------------------------------------------------


async def test_running_tasks_survive_the_zygote(agent: RealAgent) -> None:
    tasks = await start_forever(agent, "ps/0", "worker/0")
    os.kill(zygote_of(agent), signal.SIGKILL)
    await eventually(lambda: psutil.Process(tasks["worker/0"]).ppid() == agent.process.pid)
    await agent.stop(attempt_id())
    events = await agent.events(attempt_id())
    results = [outcome(events, task) for task in tasks]
    assert [r.status for r in results] == [types_pb2.TASK_STATUS_STOPPED] * 2
    assert [r.exit_code for r in results] == [0, 0]


async def test_a_new_zygote_forks_after_the_old_one_died(agent: RealAgent) -> None:
    old = zygote_of(agent)
    os.kill(old, signal.SIGKILL)
    events = await run_to_end(agent, {})
    assert outcome(events, "worker/0").status == types_pb2.TASK_STATUS_COMPLETED
    assert zygote_of(agent) != old


async def test_a_zygote_that_hangs_is_replaced(agent: RealAgent) -> None:
    tasks = await start_forever(agent, "worker/0")
    os.kill(zygote_of(agent), signal.SIGSTOP)
    await agent.stop(attempt_id())
    events = await agent.events(attempt_id())
    assert outcome(events, "worker/0").status == types_pb2.TASK_STATUS_STOPPED
    assert gone(tasks["worker/0"])


async def hang_while_forking(agent: RealAgent, **limits: float) -> None:
    """Starts a task that a zygote which no longer moves is to fork."""
    before = attempt_id(study="before")
    await agent.run(before, "worker/0")
    await agent.events(before)  # the zygote is ready
    os.kill(zygote_of(agent), signal.SIGSTOP)
    await agent.run(attempt_id(), "ps/0", "worker/0", stop_grace=0.1, terminate_grace=0.1, **limits)


async def test_a_stop_ends_a_fork_that_the_zygote_never_answers(agent: RealAgent) -> None:
    await hang_while_forking(agent)
    await agent.stop(attempt_id())
    events = await agent.events(attempt_id())
    assert outcome(events, "worker/0").status == types_pb2.TASK_STATUS_STOPPED
    assert (await agent.inventory()).free_slots == 2


async def test_the_run_limit_ends_a_fork_that_the_zygote_never_answers(agent: RealAgent) -> None:
    await hang_while_forking(agent, run=0.2)
    events = await agent.events(attempt_id())
    assert outcome(events, "worker/0").failure.kind == types_pb2.FAILURE_KIND_TIME_LIMIT


async def test_an_agent_ends_while_a_fork_is_never_answered(agent: RealAgent) -> None:
    await hang_while_forking(agent)
    assert await agent.terminate() == 0


async def test_a_fork_whose_answer_was_lost_is_ended_and_repeated(tmp_path: Path) -> None:
    marker = tmp_path / "lost"
    agent = await RealAgent.launch(tmp_path, zygote_arguments=["--lose-fork", str(marker)])
    try:
        events = await run_to_end(agent, {"worker/0": {"runs_for": 0.3}})
        assert outcome(events, "worker/0").status == types_pb2.TASK_STATUS_COMPLETED
        assert kinds(events).count("task_ready") == 1
        assert gone(int(marker.read_text()))
    finally:
        await agent.close()


async def test_a_zygote_that_keeps_dying_fails_the_forks_with_its_last_words(tmp_path: Path) -> None:
    agent = await RealAgent.launch(tmp_path, zygote_arguments=["--broken"])
    try:
        result = outcome(await run_to_end(agent, {}), "worker/0")
        assert result.failure.kind == types_pb2.FAILURE_KIND_INTERNAL
        assert "broken on purpose" in result.failure.detail
    finally:
        await agent.close()


# --- the agent's end ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_all_attempts_in_order(agent: RealAgent, number: signal.Signals) -> None:
    tasks = await start_forever(agent, "ps/0", "worker/0")
    async with agent.follow() as stream:
        await stream.until(is_kind("report"))
        agent.process.send_signal(number)
        events = await stream.until(ended)
    assert events[-1].attempt_ended.reason == agent_pb2.STOP_REASON_SHUTDOWN
    assert await agent.process.wait() == 0
    assert all(gone(pid) for pid in tasks.values())


async def test_a_second_sigterm_ends_them_at_once(agent: RealAgent) -> None:
    script = {"worker/0": {**FOREVER, "ignores": ["SIGUSR1", "SIGTERM"]}}
    await agent.run(attempt_id(), "worker/0", script=script, stop_grace=60.0)
    async with agent.follow() as stream:
        tasks = pids(await stream.until(is_kind("report")))
    log = agent.state_dir.parent / "stderr"
    agent.process.send_signal(signal.SIGTERM)
    await eventually(lambda: "shutting down" in log.read_text())
    agent.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(agent.process.wait(), DEADLINE) == 0
    assert gone(tasks["worker/0"])


async def test_the_end_of_the_parent_pipe_ends_the_agent(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    agent = await RealAgent.launch(tmp_path, parent_pipe=reading)
    os.close(reading)
    tasks = await start_forever(agent, "worker/0")
    os.close(writing)
    assert await asyncio.wait_for(agent.process.wait(), DEADLINE) == 0
    assert gone(tasks["worker/0"])
    await agent.channel.close()


async def test_nothing_is_left_of_an_agent_that_ended(agent: RealAgent) -> None:
    zygote = zygote_of(agent)
    assert await agent.terminate() == 0
    assert gone(zygote)
    assert not (agent.state_dir.parent / "agent.sock").exists()


async def test_tasks_of_a_dead_agent_end_by_themselves(tmp_path: Path) -> None:
    agent = await RealAgent.launch(tmp_path, orphan_limit=0.5)
    tasks = await start_forever(agent, "ps/0", "worker/0")
    await agent.kill()
    await eventually(lambda: all(gone(pid) for pid in tasks.values()))


async def test_tasks_of_an_agent_that_hangs_end_before_their_coordinator_gives_the_host_up(
    tmp_path: Path,
) -> None:
    agent = await RealAgent.launch(tmp_path, orphan_limit=60.0)
    try:
        tasks = await start_forever(agent, "ps/0", "worker/0", silence=1.0)
        agent.process.send_signal(signal.SIGSTOP)
        await eventually(lambda: all(not_running(pid) for pid in tasks.values()))
    finally:
        agent.process.send_signal(signal.SIGCONT)
        await agent.close()


async def test_leases_are_renewed_while_the_agent_lives(tmp_path: Path) -> None:
    agent = await RealAgent.launch(tmp_path, orphan_limit=2.0)
    try:
        events = await run_to_end(agent, {"worker/0": {"runs_for": 3.0}})
        assert outcome(events, "worker/0").status == types_pb2.TASK_STATUS_COMPLETED
    finally:
        await agent.close()


async def test_an_acknowledged_attempt_leaves_no_files(agent: RealAgent) -> None:
    await agent.run(attempt_id(), "worker/0")
    attempts = agent.state_dir / "attempts"
    async with agent.follow() as stream:
        events = await stream.until(ended)
        await stream.acknowledge(events[-1])
        await eventually(lambda: not list(attempts.iterdir()))


# --- a coordinator that does not come back --------------------------------------------------


async def test_nothing_is_left_of_a_study_that_nobody_follows_any_more(tmp_path: Path) -> None:
    agent = await RealAgent.launch(tmp_path, abandon_limit=0.3)
    try:
        tasks = await start_forever(agent, "ps/0", "worker/0")
        await eventually(lambda: not list((agent.state_dir / "attempts").iterdir()))
        assert all(gone(pid) for pid in tasks.values())
        assert (await agent.inventory()).free_slots == 2
    finally:
        await agent.close()


async def test_a_study_that_is_followed_is_not_given_up(tmp_path: Path) -> None:
    agent = await RealAgent.launch(tmp_path, abandon_limit=2.0)
    try:
        script = {"worker/0": {"runs_for": 3.0}}
        assert outcome(await run_to_end(agent, script), "worker/0").status == types_pb2.TASK_STATUS_COMPLETED
    finally:
        await agent.close()


async def test_a_new_agent_deletes_what_nobody_asks_for(tmp_path: Path) -> None:
    agent = await RealAgent.launch(tmp_path)
    await run_to_end(agent, {})
    await agent.kill()
    agent = await RealAgent.launch(tmp_path, abandon_limit=0.3)
    try:
        await eventually(lambda: not list((agent.state_dir / "attempts").iterdir()))
    finally:
        await agent.close()


# --- a new agent ----------------------------------------------------------------------------


async def test_a_new_agent_ends_what_ran_and_says_so(tmp_path: Path) -> None:
    agent = await RealAgent.launch(tmp_path)
    tasks = await start_forever(agent, "ps/0", "worker/0")
    await agent.kill()
    agent = await RealAgent.launch(tmp_path)
    try:
        events = await agent.events(attempt_id())
        assert outcome(events, "worker/0").failure.kind == types_pb2.FAILURE_KIND_HOST_LOST
        assert events[-1].attempt_ended.reason == agent_pb2.STOP_REASON_FAILED
        assert kinds(events, "worker/0") == ["task_ready", "report", "report"]
        assert all(gone(pid) for pid in tasks.values())
        assert (await agent.inventory()).free_slots == 2
    finally:
        await agent.close()


async def test_a_trial_that_completed_while_the_agent_was_down_has_completed(tmp_path: Path) -> None:
    agent = await RealAgent.launch(tmp_path)
    script = {"worker/0": {"runs_for": 1.0, "reports": 4}}
    await agent.run(attempt_id(), "ps/0", "worker/0", script=script)
    async with agent.follow() as stream:
        await stream.until(is_kind("report"))
    await agent.kill()
    await eventually((tmp_path / "state/attempts/study-t1-a1/tasks/worker-0.outcome.json").exists)
    agent = await RealAgent.launch(tmp_path)
    try:
        events = await agent.events(attempt_id())
        assert outcome(events, "worker/0").status == types_pb2.TASK_STATUS_COMPLETED
        assert outcome(events, "ps/0").status == types_pb2.TASK_STATUS_STOPPED
        assert events[-1].attempt_ended.reason == agent_pb2.STOP_REASON_FINISHED
        assert kinds(events, "worker/0").count("report") == 4
    finally:
        await agent.close()


async def test_events_that_nobody_acknowledged_survive_the_agent(tmp_path: Path) -> None:
    agent = await RealAgent.launch(tmp_path)
    before = await run_to_end(agent, {})
    await agent.kill()
    agent = await RealAgent.launch(tmp_path)
    try:
        assert await agent.events(attempt_id()) == before
    finally:
        await agent.close()


async def test_the_end_comes_where_the_power_was_lost_with_the_last_events(tmp_path: Path) -> None:
    """A coordinator has more than the disk: what the new agent says of the attempt is news to it."""
    agent = await RealAgent.launch(tmp_path)
    tasks = await start_forever(agent, "ps/0", "worker/0")
    async with agent.follow() as stream:
        seen = await stream.until(lambda e: e.source == "agent" and e.sequence == 2)
    await agent.kill()
    for pid in tasks.values():
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda pid=pid: gone(pid))
    os.truncate(tmp_path / "state/attempts/study-t1-a1/agent.reports", 0)
    agent = await RealAgent.launch(tmp_path)
    try:
        has = [agent_pb2.Position(attempt=attempt_id(), source="agent", sequence=2)]
        events = await agent.events(attempt_id(), has)
        assert min(e.sequence for e in events if e.source == "agent") > max(e.sequence for e in seen)
        assert events[-1].attempt_ended.reason == agent_pb2.STOP_REASON_FAILED
        async with agent.follow(positions=has) as stream:
            await stream.acknowledge(events[-1])
            await eventually(lambda: not list((agent.state_dir / "attempts").iterdir()))
    finally:
        await agent.close()


async def test_a_process_that_took_over_the_pid_of_a_task_is_left_alone(tmp_path: Path) -> None:
    agent = await RealAgent.launch(tmp_path)
    tasks = await start_forever(agent, "worker/0")
    await agent.kill()
    os.kill(tasks["worker/0"], signal.SIGKILL)
    await eventually(lambda: gone(tasks["worker/0"]))
    bystander = await asyncio.create_subprocess_exec("sleep", "60")
    path = tmp_path / "state/attempts/study-t1-a1/agent.reports"
    (time, started), *_ = EventLog.read(path).events
    assert isinstance(started, TaskStarted)
    path.unlink()
    EventLog(path).append(time, TaskStarted(started.task, bystander.pid, started.start_ticks))
    agent = await RealAgent.launch(tmp_path)
    try:
        events = await agent.events(attempt_id())
        assert outcome(events, "worker/0").failure.kind == types_pb2.FAILURE_KIND_HOST_LOST
        assert bystander.returncode is None
    finally:
        await agent.close()
        bystander.kill()
        await bystander.wait()

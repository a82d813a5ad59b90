"""The session around a scripted ``launch``: signals, exit statuses, a terminal that goes away."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator import cli
from coordinator.domain import Notice, Stage, StageBudget, Study, StudyState, Trial, TrialCounts, TrialState
from coordinator.errors import HostsError, StudyFailedError
from coordinator.runtime import StudyResult

BEST = Trial(1, 1, TrialState.COMPLETED, {"learning_rate": 0.1}, 0.25, 0.5, 0.25)
STUDY = Study(
    "s", StudyState.COMPLETED, (Stage(1, StageBudget(10, 1), {}, BEST),), 1, TrialCounts(1, completed=1), BEST
)


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Puts a coroutine in the place of ``launch``; it is called with launch's keywords."""

    def script(body):
        async def launch(config, **keywords):
            study = await body(**keywords)
            return StudyResult(study, (), tmp_path)

        monkeypatch.setattr("coordinator.session.launch", launch)

    return script


@pytest.mark.parametrize(
    ("state", "status"), [(StudyState.COMPLETED, 0), (StudyState.FAILED, 1), (StudyState.STOPPED, 130)]
)
def test_the_exit_status_is_the_studys(scripted, capsys, state, status):
    async def body(**_):
        return replace(STUDY, state=state, reason="for a reason")

    scripted(body)
    assert cli.run([]) == status
    out, err = capsys.readouterr()
    assert "best loss 0.25 in trial 1" in out
    assert ("the study failed: for a reason" in err) == (status == 1)


@pytest.mark.parametrize(("error", "status"), [(HostsError("no\nhosts"), 3), (StudyFailedError("not up"), 1)])
def test_errors_keep_their_exit_status(scripted, capsys, error, status):
    async def body(**_):
        raise error

    scripted(body)
    assert cli.run([]) == status
    assert capsys.readouterr().err.splitlines() == [f"nhop-coordinator: {x}" for x in str(error).split("\n")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_study_in_order(scripted, capsys, number):
    if signal.getsignal(number) is signal.SIG_IGN:  # as under nohup, which is respected
        signal.signal(number, signal.SIG_DFL)

    async def body(stop, **_):
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stop.wait(), 10)
        return replace(STUDY, state=StudyState.STOPPED)

    scripted(body)
    assert cli.run([]) == 130
    assert "stopping" in capsys.readouterr().out


def test_a_second_signal_ends_at_once(tmp_path):
    code = """
import asyncio, os, signal
import coordinator.session
async def launch(config, *, stop, **_):
    os.kill(os.getpid(), signal.SIGINT)
    await stop.wait()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()
coordinator.session.launch = launch
from coordinator.cli import main
import sys; sys.argv = ["nhop-coordinator"]
main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False
    )
    assert (ended.returncode, ended.stderr) == (130, "")


def test_a_terminal_that_goes_away_does_not_end_the_study(tmp_path):
    code = """
import asyncio, sys
import coordinator.session
from coordinator.domain import Notice
async def launch(config, *, observer, **_):
    await asyncio.to_thread(sys.stdin.read)
    for number in range(5):
        observer(Notice("x" * 1000))
    print("went on", file=sys.stderr)
    sys.stderr.flush()
    raise SystemExit(7)
coordinator.session.launch = launch
from coordinator.cli import main
sys.argv = ["nhop-coordinator"]
main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == "went on\n"
        assert process.wait(30) == 7


def test_output_and_hosts_are_passed_on(scripted, tmp_path):
    seen = {}

    async def body(output, agents, study_id, **_):
        seen.update(output=output, targets=[agent.target for agent in agents], study_id=study_id)
        return STUDY

    scripted(body)
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("localhost:7001\n")
    assert cli.run(["--output", "out", "--hosts", str(hosts)]) == 0
    assert (seen["output"], seen["targets"]) == (Path("out"), ["localhost:7001"])


def test_updates_are_shown(scripted, capsys):
    async def body(observer, **_):
        observer(Notice("a host is lost", warning=True))
        return STUDY

    scripted(body)
    cli.run([])
    assert "a host is lost" in capsys.readouterr().out

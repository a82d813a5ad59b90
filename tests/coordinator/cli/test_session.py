"""The session around a scripted ``launch``: signals, exit statuses, a terminal that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator import cli
from coordinator.domain import Notice, Stage, StageBudget, Study, StudyState, Trial, TrialCounts, TrialState
from coordinator.errors import HostsError, StudyFailedError
from coordinator.host_sources import HostsFile
from coordinator.hosts import HostPolicy
from coordinator.runtime import StudyResult
from nhop.security.client import Security

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


def test_sigterm_may_come_twice(scripted, capsys):
    async def body(stop, **_):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(stop.wait(), 10)
        for _ in range(20):  # the loop takes the second in one of its next rounds
            await asyncio.sleep(0)
        return replace(STUDY, state=StudyState.STOPPED)

    scripted(body)
    assert cli.run([]) == 130
    assert capsys.readouterr().out.count("stopping") == 1


def test_a_second_signal_ends_at_once_and_leaves_no_socket(tmp_path):
    code = """
import asyncio, os, signal
import coordinator.session
from coordinator.sockets import make_private_folder
async def launch(config, *, stop, **_):
    (make_private_folder() / "coordinator.sock").touch()
    os.kill(os.getpid(), signal.SIGINT)
    await stop.wait()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()
coordinator.session.launch = launch
from coordinator.cli import main
import sys; sys.argv = ["nhop-coordinator"]
main()
"""
    with tempfile.TemporaryDirectory() as short:  # as paths of sockets have to be
        environment = {**os.environ, "XDG_RUNTIME_DIR": short}
        ended = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, timeout=30, cwd=tmp_path, env=environment, check=False,
        )  # fmt: skip
        assert (ended.returncode, ended.stderr, [*Path(short).iterdir()]) == (130, "", [])


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


HANGING_UP = """
import asyncio, os, signal, sys
from pathlib import Path
import coordinator.session
from coordinator.domain import Study, StudyState, TrialCounts
from coordinator.runtime import StudyResult
async def launch(config, *, stop, reread, **_):
    print("up", flush=True)
    again = asyncio.create_task(reread.wait())
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((again, stopped), return_when=asyncio.FIRST_COMPLETED)
    Path("seen").write_text("stopped" if stopped.done() else "read again")
    return StudyResult(Study("s", StudyState.STOPPED, (), 1, TrialCounts(1)), (), Path("."))
coordinator.session.launch = launch
signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in sys.argv else signal.SIG_DFL)
from coordinator.cli import main
sys.argv = ["nhop-coordinator", *(["--hosts", "hosts.txt"] if "hosts" in sys.argv else [])]
main()
"""


def until(condition, what):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


@contextlib.contextmanager
def session(tmp_path, *words, terminal=False):
    """A session of its own, on a terminal or without one; gives the process and the terminal's other end."""
    (tmp_path / "hosts.txt").write_text("localhost:7001")
    ours, theirs = pty.openpty()
    other_end = os.fdopen(ours, "rb", buffering=0)

    def take_terminal():
        os.setsid()
        if terminal:
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-c", HANGING_UP, *words],
        cwd=tmp_path,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=take_terminal,  # noqa: PLW1509  (no thread of ours holds a lock)
    )
    os.close(theirs)
    try:
        assert process.stdout.readline() == b"up\n", process.stderr.read()
        yield process, other_end
    finally:
        other_end.close()
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("words", "seen"),
    [(["hosts"], "read again"), (["hosts", "nohup"], "read again"), ([], "stopped")],
    ids=["hosts", "hosts under nohup", "no hosts"],
)
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "no terminal"])
def test_a_hangup_reads_the_hosts_again_or_stops(tmp_path, words, terminal, seen):
    with session(tmp_path, *words, terminal=terminal) as (process, _):
        process.send_signal(signal.SIGHUP)
        until((tmp_path / "seen").exists, "the signal")
        until((tmp_path / "seen").read_text, "what it did")
    assert (tmp_path / "seen").read_text() == seen


def test_without_hosts_a_hangup_under_nohup_is_nothing(tmp_path):
    with session(tmp_path, "nohup") as (process, _):
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)  # after it; the only one that counts
        until((tmp_path / "seen").exists, "the signal")
        process.communicate(timeout=30)
    assert process.returncode == 130  # a second one would have ended it at once, with nothing seen


@pytest.mark.parametrize("words", [["hosts"], []], ids=["hosts", "no hosts"])
def test_a_terminal_that_is_gone_stops_the_study(tmp_path, words):
    with session(tmp_path, *words, terminal=True) as (_, terminal):
        terminal.close()
        until((tmp_path / "seen").exists, "the signal")
        until((tmp_path / "seen").read_text, "what it did")
    assert (tmp_path / "seen").read_text() == "stopped"


def test_under_nohup_a_terminal_may_go(tmp_path):
    with session(tmp_path, "hosts", "nohup", terminal=True) as (_, terminal):
        terminal.close()
        until((tmp_path / "seen").exists, "the signal")
        until((tmp_path / "seen").read_text, "what it did")
    assert (tmp_path / "seen").read_text() == "read again"


def test_what_is_about_hosts_is_passed_on(scripted, tmp_path):
    seen = {}

    async def body(policy, **_):
        seen.update(policy=policy)
        return STUDY

    scripted(body)
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("localhost:7001\nlocalhost:7002\n")
    options = ["--min-hosts", "1", "--wait-hosts", "5", "--host-limit", "30", "--insecure"]
    assert cli.run(["--hosts", str(hosts), *options]) == 0
    assert seen["policy"] == HostPolicy(5.0, 1, 30.0, HostsFile(hosts), Security())


def test_output_and_hosts_are_passed_on(scripted, tmp_path):
    seen = {}

    async def body(output, agents, study_id, **_):
        seen.update(output=output, targets=[agent.target for agent in agents], study_id=study_id)
        return STUDY

    scripted(body)
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("localhost:7001\n")
    assert cli.run(["--output", "out", "--hosts", str(hosts)]) == 0
    assert (seen["output"], seen["targets"]) == ("out", ["localhost:7001"])


def test_updates_are_shown(scripted, capsys):
    async def body(observer, **_):
        observer(Notice("a host is lost", warning=True))
        return STUDY

    scripted(body)
    cli.run([])
    assert "a host is lost" in capsys.readouterr().out

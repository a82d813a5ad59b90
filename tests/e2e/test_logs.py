"""Logs of tasks as a user sees them while their model trains."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import Commands

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]

TALKS = """
import time
from pathlib import Path

def train(hp, context):
    print("the model says hello")
    context.report(0, loss=1.0)
    while not Path("{folder}/go").exists() and not context.should_stop():
        time.sleep(0.02)
    print("the model says goodbye")
    return {{"val_loss": 1.0}}

def fail(hp, context):
    print("the model says hello")
    raise ValueError("the model is broken")
"""


@pytest.fixture
def study(commands: Commands) -> Callable[[str], subprocess.Popen[str]]:
    """Starts a study of one trial of a function of the user's, in the folder ``out``."""

    def start(function: str) -> subprocess.Popen[str]:
        (commands.folder / "talks.py").write_text(TALKS.format(folder=commands.folder))
        return commands.start(
            "nhop-coordinator",
            *("with", f"nn_model=talks:{function}", "opt_stages=[[10,1]]", "cluster={ps: 0, workers: 1}"),
            *("--output", "out"),
        )

    return start


def follow(commands: Commands, *options: object) -> subprocess.Popen[str]:
    """A follower of trial 1 whose study has begun."""
    commands.wait_for((commands.folder / "out" / "study.db").exists, "the store")
    return commands.start("nhop-coordinator", "logs", "1", "--follow", "--output", "out", *options)


def read_line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return process.stdout.readline()


def test_what_a_model_prints_is_followed_while_it_trains_and_to_its_end(commands, study):
    process = study("train")
    follower = follow(commands)
    assert read_line(follower) == "the model says hello\n"
    assert process.poll() is None
    (commands.folder / "go").touch()
    out, err = follower.communicate(timeout=60)
    assert follower.returncode == 0, err
    assert out == "the model says goodbye\n"
    assert err == "== trial 1, attempt 1, worker/0 on localhost ==\n"
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert not (commands.folder / "out" / "coordinator.json").exists()


def test_ctrl_c_ends_a_follower_quietly_and_the_study_goes_on(commands, study):
    process = study("train")
    follower = follow(commands)
    read_line(follower)
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=20)
    assert follower.returncode == 130
    assert err.strip() == "== trial 1, attempt 1, worker/0 on localhost =="
    assert process.poll() is None
    (commands.folder / "go").touch()
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_failed_trials_last_lines_are_shown_and_its_log_is_kept(commands, study):
    process = study("fail")
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "    ValueError: the model is broken" in out.splitlines()
    assert "    its log: out/logs/trial-1-attempt-1-worker-0.log" in out.splitlines()
    kept = commands.coordinator("logs", "1", "--output", "out")
    assert kept.stdout.startswith("the model says hello\nTraceback")
    assert kept.stdout.endswith("ValueError: the model is broken\n")

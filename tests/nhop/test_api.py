"""``import nhop`` is cheap, and ``run_study`` works wherever it is called."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import nhop
from tests.fakes import scripted_agent as fake

CONFIG = {"cluster": {"ps": 0, "workers": 1}, "opt_stages": [[10, 3]], "seed": 3}


@pytest.fixture
def agent(tmp_path):
    """A scripted agent in a thread and loop of its own; its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    agent = fake.ScriptedAgent()
    address = asyncio.run_coroutine_threadsafe(agent.serve(f"unix:{tmp_path}/agent.sock"), loop).result(10)
    yield address
    asyncio.run_coroutine_threadsafe(agent.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_study_from_a_program(agent, tmp_path):
    result = nhop.run_study(CONFIG, hosts=[agent], output=tmp_path / "out")
    assert [trial.state.value for trial in result.trials] == ["completed"] * 3
    assert result.study.best.loss == min(trial.loss for trial in result.trials)
    assert (result.directory / "summary.json").exists()


def test_a_study_from_a_file(agent, tmp_path):
    (tmp_path / "study.yaml").write_text("cluster: {ps: 0, workers: 1}\nopt_stages: [[10, 2]]\n")
    (tmp_path / "hosts.txt").write_text(agent)
    result = nhop.run_study(tmp_path / "study.yaml", hosts=tmp_path / "hosts.txt", output=tmp_path / "out")
    assert len(result.trials) == 2


async def test_inside_a_running_loop(agent, tmp_path):
    """As in a cell of a notebook."""
    result = nhop.run_study(CONFIG, hosts=[agent], output=tmp_path / "out")
    assert result.study.counts.completed == 3


def test_what_happens_is_shown_if_asked_for(agent, tmp_path, capsys):
    nhop.run_study(CONFIG, hosts=[agent], output=tmp_path / "silent")
    assert capsys.readouterr().out == ""
    nhop.run_study(CONFIG, hosts=[agent], output=tmp_path / "shown", show=True)
    shown = capsys.readouterr().out
    (host,) = [line for line in shown.splitlines() if line.startswith(agent)]
    assert host.endswith("ready")
    assert "learning_rate=" in shown


def test_a_bad_configuration(tmp_path):
    with pytest.raises(nhop.ConfigError, match="nonsense"):
        nhop.run_study({"nonsense": 1}, output=tmp_path / "out")


def test_unreachable_hosts(tmp_path):
    with pytest.raises(nhop.HostsError, match="no agent listens there"):
        nhop.run_study(CONFIG, hosts=[f"unix:{tmp_path}/none.sock"], wait_hosts=0, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_hosts": 0}, "--min-hosts 0: must be at least 1"),
        ({"min_hosts": 2}, "--min-hosts 2: hosts lists 1"),
        ({"wait_hosts": float("nan")}, "--wait-hosts nan: must be from 0 to 86400 seconds"),
        ({"wait_hosts": -1.0}, "--wait-hosts -1"),
        ({"host_limit": float("nan")}, "--host-limit nan"),
        ({"hosts": None, "min_hosts": 1}, "--min-hosts is for --hosts"),
        ({"hosts": "ec2:train"}, "--hosts ec2:train: 'train' is not TAG=VALUE"),
        ({"hosts": Path("ec2:train")}, "ec2:train: the hosts file cannot be read"),
        ({"hosts": None, "insecure": True}, "--insecure is for --hosts"),
    ],
    ids=str,
)
def test_what_fits_no_hosts(tmp_path, options, words):
    options = {"hosts": [f"unix:{tmp_path}/none.sock"], "wait_hosts": 0.0} | options
    with pytest.raises(nhop.UsageError, match=words):
        nhop.run_study(CONFIG, output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_taken(agent, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.db").write_text("")
    with pytest.raises(nhop.UsageError, match="already holds a study"):
        nhop.run_study(CONFIG, hosts=[agent], output=tmp_path / "out")


@pytest.mark.parametrize("statement", ["import nhop", "from nhop.v1 import agent_pb2"])
def test_importing_loads_nothing_heavy(statement):
    heavy = ("grpc", "numpy", "tensorflow", "coordinator", "rich", "pydantic")
    code = f"{statement}\nimport sys\nprint(*sorted(set({heavy}) & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_every_public_name_is_there():
    assert all(getattr(nhop, name) is not None for name in nhop.__all__)
    assert set(nhop.__all__) <= set(dir(nhop))


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="nonsense"):
        nhop.nonsense  # noqa: B018

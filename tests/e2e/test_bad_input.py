"""What goes wrong for a user: one clear message, the right exit status, nothing left behind."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from tests.e2e.conftest import SCRIPTS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

QUICK = ["cluster={ps: 0, workers: 1}", "opt_stages=[[20,3]]", "data_instances=200", "batch_size=[10,20]"]


def check_refused(run, status, *words):
    assert run.returncode == status, run.stdout + run.stderr
    text = run.stdout + run.stderr
    assert "Traceback" not in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.yaml"], ["missing.yaml", "does not exist"]),
        (["broken.yaml"], ["broken.yaml:2"]),
        (["with", "opt_epoch=0"], ["opt_epoch"]),
        (["with", "lerning_rate=[0.1,0.2]"], ["lerning_rate", "learning_rate"]),
        (["with", "batch_size=[200,100]"], ["batch_size"]),
        (["with", "batch_size=[]"], ["batch_size"]),
        (["with", "batch_size=many", "hidden_layers=[-1,2]"], ["batch_size", "hidden_layers"]),
        (["with", "load_data=true", "load_data_dir=none.csv"], ["none.csv"]),
        (["with", "nn_model=no spaces here"], ["nn_model"]),
        (["--hosts", "none.txt"], ["none.txt"]),
        (["--hosts", "bad_port.txt"], ["bad_port.txt:1", "port"]),
        (["--hosts", "twice.txt"], ["twice.txt:2"]),
        (["--hosts", "far.txt"], ["TLS"]),
        (["--output", "/proc/none/out"], ["/proc/none"]),
        (["--output", "file"], ["file"]),
        (["--no-such-option"], ["--no-such-option"]),
    ],
)
def test_wrong_usage_and_configuration(commands, arguments, words):
    (commands.folder / "broken.yaml").write_text("seed: 1\nopt_epoch: [1,\n")
    (commands.folder / "bad_port.txt").write_text("127.0.0.1:99999\n")
    (commands.folder / "twice.txt").write_text("127.0.0.1:7001\n127.0.0.1:7001\n")
    (commands.folder / "far.txt").write_text("192.0.2.1:7001\n")
    (commands.folder / "file").write_text("")
    run = commands.coordinator(*arguments)
    check_refused(
        run,
        3 if "hosts" in arguments[0] and arguments[1] != "none.txt" and run.returncode == 3 else 2,
        *words,
    )
    assert not (commands.folder / "runs").exists()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_standard_stream_does_no_harm(commands, closed):
    script = f'exec "{SCRIPTS}/nhop-coordinator" --dry-run {closed}'
    run = subprocess.run(
        ["sh", "-c", script], cwd=commands.folder, env=commands.environment, timeout=60, check=False
    )
    assert run.returncode == 0


def test_an_unreachable_host(commands):
    (commands.folder / "hosts.txt").write_text("127.0.0.1:9\n")
    words = ("--hosts", "hosts.txt", "--wait-hosts", "0", "--output", "out")
    check_refused(commands.coordinator(*words), 3, "127.0.0.1:9")


def test_more_workers_than_could_ever_be_placed(commands):
    address = f"127.0.0.1:{29801 + os.getpid() % 100}"
    commands.agent("--listen", address, "--slots", 2, "--state-dir", "agent")
    (commands.folder / "hosts.txt").write_text(address)
    run = commands.coordinator(
        "with", "cluster={ps: 1, workers: 3}", "--hosts", "hosts.txt", "--output", "out"
    )
    check_refused(run, 3, "3", "2", "slots")


def test_an_output_directory_that_holds_a_study(commands):
    first = commands.coordinator("with", *QUICK, "--output", "out")
    assert first.returncode == 0, first.stderr
    before = (commands.folder / "out" / "summary.json").read_bytes()
    check_refused(commands.coordinator("with", *QUICK, "--output", "out"), 2, "out", "already holds a study")
    assert (commands.folder / "out" / "summary.json").read_bytes() == before


def test_an_address_in_use(commands):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        agent = commands.start("nhop-agent", "--listen", address, "--state-dir", "agent")
        out, err = agent.communicate(timeout=30)
        assert agent.returncode == 2
        assert address in err
        assert "Traceback" not in out + err
        check_refused(commands.coordinator("--serve", address), 2, address)


@pytest.mark.parametrize("address", ["0.0.0.0:7001", "192.0.2.1:7001", "[::]:7001"])
def test_other_addresses_than_loopback_need_tls(commands, address):
    agent = commands.start("nhop-agent", "--listen", address, "--state-dir", "agent")
    _, err = agent.communicate(timeout=30)
    assert agent.returncode == 2
    assert "--tls FOLDER" in err
    check_refused(commands.coordinator("--serve", address), 2, "need TLS")


MODELS = """
import numpy as np
from nhop_models import NNModel
class InBuild(NNModel):
    def load_data(self, hp):
        x = np.ones((10, 1)); return (x, x), (x, x)
    def build_model(self, hp):
        raise ValueError("no layers today")
class InData(NNModel):
    def load_data(self, hp):
        raise OSError("the disk is elsewhere")
class InTraining(InBuild):
    def build_model(self, hp):
        import keras
        return keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    def train_model(self, training):
        training.step()
        raise KeyError("lost")
"""


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("models:Nowhere", ["has no Nowhere"]),
        ("nowhere:Model", ["no module 'nowhere'"]),
        ("models:InBuild", ["no layers today", "models.py"]),
        ("models:InData", ["the disk is elsewhere", "models.py"]),
        ("models:InTraining", ["lost", "models.py"]),
    ],
)
def test_a_model_that_does_not_work(commands, model, words):
    (commands.folder / "models.py").write_text(MODELS)
    run = commands.coordinator("with", f"nn_model={model}", *QUICK, "--output", "out")
    check_refused(run, 1, *words)


@pytest.mark.parametrize(
    ("table", "words"),
    [("1,2\n3\n", "t.csv:2"), ("a,b\n1,2\n3,x\n", "not a number"), ("1,2\n", "1 row")],
)
def test_a_table_that_cannot_be_used(commands, table, words):
    (commands.folder / "t.csv").write_text(table)
    run = commands.coordinator("with", "load_data=true", "load_data_dir=t.csv", *QUICK, "--output", "out")
    check_refused(run, 1, words)

"""Data and results on an S3 server: moto's, on loopback."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3

import numpy as np
import pytest

from tests.fakes.s3 import s3_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

QUICK = ["cluster={ps: 0, workers: 1}", "batch_size=[10,20]", "hidden_layers=[1,2]", "load_data=true"]


@pytest.fixture
def s3(commands):
    with s3_server() as server:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            commands.environment.pop(name, None)
        commands.environment.update(server.environment)
        yield server


@pytest.fixture
def table(s3):
    x = np.random.default_rng(1).normal(size=(200, 3))
    rows = np.column_stack([x, x.sum(axis=1)])
    return s3.write("data/table.csv", "\n".join(",".join(f"{v:.4f}" for v in row) for row in rows).encode())


def results(commands):
    (folder,) = (commands.folder / "runs").iterdir()
    return folder


def test_a_study_whose_data_and_results_are_on_s3(commands, s3, table):
    url = s3.url("studies/first")
    data = f"load_data_dir={table}"
    run = commands.coordinator("--output", url, "with", *QUICK, data, "opt_stages=[[20,3]]")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    folder = results(commands)
    assert f"results in {folder} and at {url}" in run.stdout
    here = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert s3.names("studies/first") == here
    assert {"config.yaml", "trials.csv", "best_config.yaml", "best_model.keras", "study.db"} <= set(here)
    summary = json.loads(s3.read("studies/first/summary.json"))
    assert summary["trials"]["completed"] == 3
    fetched = commands.folder / "study.db"
    fetched.write_bytes(s3.read("studies/first/study.db"))
    with sqlite3.connect(fetched) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    again = commands.coordinator("--output", url, "with", *QUICK, data)
    assert again.returncode == 2
    assert f"{url}: already holds a study" in again.stderr
    assert [path.name for path in (commands.folder / "runs").iterdir()] == [folder.name]

    for file in folder.rglob("*"):
        if file.is_file():
            assert b"a-secret" not in file.read_bytes(), file


def test_trials_share_what_one_of_them_has_fetched(commands, s3, table):
    words = ["with", *QUICK, f"load_data_dir={table}", "opt_stages=[[20,4]]"]
    run = commands.coordinator("--output", "out", *words)
    assert run.returncode == 0, run.stdout + run.stderr
    assert s3.requests.count("GET", f"/{s3.bucket}/data/table.csv") == 1


def test_a_missing_key_ends_the_study_with_its_url(commands, s3):
    url = s3.url("none.csv")
    words = ["with", *QUICK, f"load_data_dir={url}", "opt_stages=[[20,5]]"]
    run = commands.coordinator("--output", s3.url("failed"), *words)
    assert run.returncode == 1
    assert f"{url}: it does not exist: correct the URL" in run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    assert json.loads(s3.read("failed/summary.json"))["status"] == "failed"


def test_a_server_that_is_gone_at_the_end_costs_only_the_copy(commands, s3, table):
    commands.environment["AWS_MAX_ATTEMPTS"] = "1"
    url = s3.url("out")
    words = ["with", *QUICK, f"load_data_dir={table}", "opt_stages=[[20,100000]]", "time_budget=1h"]
    study = commands.start("nhop-coordinator", "--output", url, *words)
    commands.wait_for(lambda: (commands.folder / "runs").exists() and results(commands), "the folder")
    folder = results(commands)

    def completed():
        database = folder / "study.db"
        if not database.exists():
            return False
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as reader:
            try:
                return reader.execute("SELECT count(*) FROM trials WHERE state = 'completed'").fetchone()[0]
            except sqlite3.OperationalError:
                return False

    commands.wait_for(completed, "a trial")
    s3.stop()
    study.terminate()
    out, err = study.communicate(timeout=90)
    assert study.returncode == 1, out + err
    assert f"the results could not be copied to {url}: nobody answers there" in err
    assert f"all of them are in {folder}" in err
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
    assert "Traceback" not in out + err


def test_an_interrupted_study_is_copied(commands, s3, table):
    words = ["with", *QUICK, f"load_data_dir={table}", "opt_stages=[[1000000,10]]"]
    study = commands.start("nhop-coordinator", "--output", s3.url("out"), *words)
    commands.wait_for(lambda: commands.processes("nhop-worker"), "a worker")
    study.terminate()
    out, err = study.communicate(timeout=60)
    assert study.returncode == 130, out + err
    assert json.loads(s3.read("out/summary.json"))["status"] == "stopped"


def test_a_bucket_that_is_not_there_is_refused_before_anything_starts(commands, s3):
    run = commands.coordinator("--output", "s3://misspelt/out", "with", "cluster={ps: 0, workers: 1}")
    assert run.returncode == 2
    assert "s3://misspelt/out: cannot be used for the results: it does not exist" in run.stderr
    assert not (commands.folder / "runs").exists()


@pytest.fixture
def silent(commands):
    """An endpoint that takes connections, and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        commands.environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{listening.getsockname()[1]}"
        yield listening


def test_a_signal_ends_the_wait_for_a_server_that_does_not_answer(commands, s3, silent):
    study = commands.start("nhop-coordinator", "--output", s3.url("out"), "with", QUICK[0])
    connection, _ = silent.accept()
    with connection:
        study.terminate()
        out, err = study.communicate(timeout=30)
    assert study.returncode == 130, out + err
    assert "interrupted before it began" in out
    assert "Traceback" not in out + err


def test_a_second_signal_ends_the_copy_at_once(commands, s3, table):
    words = ["with", *QUICK, f"load_data_dir={table}", "opt_stages=[[1000000,10]]"]
    study = commands.start("nhop-coordinator", "--output", s3.url("out"), *words)
    commands.wait_for(lambda: commands.processes("nhop-worker"), "a worker")
    s3.fall_silent()
    study.terminate()
    commands.wait_for((results(commands) / "summary.json").exists, "the results")
    study.send_signal(signal.SIGINT)
    study.communicate(timeout=10)
    assert study.returncode == 130


def test_a_server_of_studies_keeps_them_in_a_folder(commands, s3):
    run = commands.coordinator("--serve", "127.0.0.1:0", "--output", s3.url("out"))
    assert run.returncode == 2
    assert "--serve keeps its studies in a folder of this machine" in run.stderr


def test_a_dry_run_writes_nothing(commands, s3):
    url = s3.url("out")
    run = commands.coordinator("--dry-run", "--output", url)
    assert run.returncode == 0, run.stderr
    assert f"copied to {url} at the end" in run.stdout
    assert s3.names("out") == []

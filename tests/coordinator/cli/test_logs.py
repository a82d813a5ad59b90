"""``nhop-coordinator logs`` without a coordinator; with one: tests/coordinator/test_task_logs.py."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from coordinator import cli
from coordinator.announcement import Announcement
from coordinator.directory import StudyDirectory


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def keep(name, data=b"a line\n", run="out"):
    folder = Path(run, "logs")
    folder.mkdir(parents=True, exist_ok=True)
    Path(run, "config.yaml").touch()
    (folder / name).write_bytes(data)


def check(capsys, arguments, status=0):
    """What the command writes to stdout and stderr."""
    assert cli.run(["logs", *arguments]) == status
    return capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "TRIAL"),
        (["none"], "TRIAL"),
        (["0"], "TRIAL"),
        (["1", "chief"], "TASK 'chief' must be worker/N or ps/N"),
        (["1", "--study", "mine"], "--study goes with --serve"),
        (["1", "--serve", "x", "--output", "out"], "--output and --serve"),
        (["1", "--serve", "http://localhost:7000"], "the address of a coordinator"),
        (["1"], "runs: there is no run; name the folder of a study with --output"),
        (["1", "--output", "."], "is not the output directory of a study"),
        (["1", "--output", "none"], "is not the output directory of a study"),
        (["1", "--no-such"], "see nhop-coordinator logs --help"),
    ],
)
def test_wrong_usage(capsys, arguments, words):
    out, err = check(capsys, arguments, 2)
    assert out == ""
    assert words in err
    assert all(line.startswith("nhop-coordinator: ") for line in err.splitlines())


def test_options_come_behind_the_word(capsys):
    assert cli.run(["--output", "out", "logs", "1"]) == 2
    assert "`logs` comes before its options" in capsys.readouterr().err


def test_help(capsys):
    assert "--follow" in check(capsys, ["--help"]).out


def test_a_kept_log(capsys):
    keep("trial-3-attempt-1-worker-0.log")
    out, err = check(capsys, ["3", "--output", "out"])
    assert (out, err) == ("a line\n", "== trial 3, attempt 1, worker/0 ==\n")


@pytest.mark.parametrize("task", ["ps/1", "ps-1"])
def test_the_log_of_another_task(capsys, task):
    keep("trial-3-attempt-1-worker-0.log")
    keep("trial-3-attempt-1-ps-1.log", b"of the server\n")
    assert check(capsys, ["3", task, "--output", "out"]).out == "of the server\n"


def test_all_attempts_are_shown_the_earliest_first(capsys):
    for number in (10, 2, 1):
        keep(f"trial-3-attempt-{number}-worker-0.log", f"{number}\n".encode())
    out, err = check(capsys, ["3", "--output", "out"])
    assert out == "1\n2\n10\n"
    assert [line.split()[4] for line in err.splitlines()] == ["1,", "2,", "10,"]


def test_what_a_task_printed_cannot_command_the_terminal(capsys):
    keep("trial-1-attempt-1-worker-0.log", b"\x1b[2J10%\r20%\r\n\xff\xc3\xa9 end")
    assert check(capsys, ["1", "--output", "out"]).out == "\ufffd[2J10%\n20%\n\ufffd\u00e9 end"


def test_a_log_that_was_not_kept(capsys):
    keep("trial-3-attempt-1-ps-0.log")
    err = check(capsys, ["3", "--output", "out"], 2).err
    assert "the log of worker/0 of trial 3 was not kept" in err
    assert "of trial 3 there is ps/0 of attempt 1" in err


def test_a_trial_that_there_never_was(capsys):
    keep("trial-1-attempt-1-worker-0.log")
    Path("out/trials.csv").write_text("trial,stage\n1,1\n2,1\n")
    assert "there is no trial 3, the study had 2" in check(capsys, ["3", "--output", "out"], 2).err


def test_the_newest_run_is_meant_by_default(capsys):
    for age, name in enumerate(("new", "old")):
        keep("trial-1-attempt-1-worker-0.log", name.encode(), run=f"runs/{name}")
        os.utime(f"runs/{name}/config.yaml", (1000 - age, 1000 - age))
    assert check(capsys, ["1"]).out == "new"


@pytest.mark.parametrize(("running", "meant"), [(True, "announced"), (False, "new")])
def test_a_run_under_way_goes_before_newer_ones(capsys, running, meant):
    """One whose coordinator was killed does not, though it is announced still."""
    for age, name in enumerate(("new", "announced")):
        keep("trial-1-attempt-1-worker-0.log", name.encode(), run=f"runs/{name}")
        os.utime(f"runs/{name}/config.yaml", (1000 - age, 1000 - age))
    Announcement("unix:none.sock", "mine").write(Path("runs/announced"))
    with StudyDirectory.create("runs/announced") if running else contextlib.nullcontext():
        assert check(capsys, ["1"]).out == meant


def test_no_coordinator_where_one_was_named(capsys):
    err = check(capsys, ["1", "--serve", "unix:none.sock"], 1).err
    assert "no coordinator answers at unix:none.sock" in err


def test_a_damaged_announcement_is_none(capsys):
    keep("trial-1-attempt-1-worker-0.log")
    Path("out/coordinator.json").write_text("{")
    assert check(capsys, ["1", "--output", "out"]).out == "a line\n"

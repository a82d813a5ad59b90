from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from coordinator import cli
from coordinator.config import load
from coordinator.host_sources import HostsFile
from coordinator.hosts import HostPolicy
from nhop.security.client import Security


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def check(capsys, arguments, status, *words):
    """The command ends with ``status``, and every line on stderr is the program's own."""
    assert cli.run(arguments) == status
    out, err = capsys.readouterr()
    assert all(line.startswith("nhop-coordinator: ") for line in err.strip().splitlines()), err
    assert all(word in err for word in words), err
    return out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.yaml"], ["none.yaml: does not exist"]),
        (["with", "opt_epoch=0", "sed=1"], ["opt_epoch=0", "did you mean seed?"]),
        (["--no-such-option"], ["--no-such-option", "--help"]),
        (["--output"], ["--output"]),
        (["--output", "", "--dry-run"], ["--output is empty"]),
        (["--output", "", "--serve", "localhost:0"], ["--output is empty"]),
        (["--output", "s3:/bucket/x", "--dry-run"], ["--output s3:/bucket/x: a URL has two slashes"]),
        (["--hosts", "none.txt"], ["none.txt", "cannot be read"]),
        (["--hosts", "."], ["cannot be read"]),
        (["--hosts", "binary.txt"], ["UTF-8"]),
        (["--hosts", "far.txt"], ["far.txt:1", "TLS"]),
        (["--min-hosts", "1"], ["--min-hosts is for --hosts"]),
        (["--insecure"], ["--insecure is for --hosts and --serve"]),
        (["--min-hosts", "0", "--hosts", "two.txt"], ["--min-hosts"]),
        (["--wait-hosts", "nan", "--hosts", "two.txt"], ["--wait-hosts nan"]),
        (["--host-limit", "nan", "--hosts", "two.txt"], ["--host-limit nan"]),
        (["--min-hosts", "3", "--hosts", "two.txt"], ["--min-hosts 3: two.txt lists 2"]),
        (["--host-limit", "13", "--hosts", "two.txt"], ["--host-limit), which must be at least 14 s"]),
        (["--host-limit", "90", "--hosts", "two.txt", "with", "stop_grace=60"], ["at least 138 s"]),
        (["--serve", "localhost:1", "--host-limit", "13", "--hosts", "two.txt"], ["at least 14 s"]),
        (["--wait-hosts", "-1"], ["--wait-hosts"]),
        (["--serve", "localhost:0", "study.yaml"], ["--serve"]),
        (["--serve", "localhost:7000", "--dry-run"], ["--serve"]),
        (["print_config", "--dry-run"], ["print_config takes no --dry-run"]),
        (["--dry-run", "--output", "file"], ["file"]),
        (["--dry-run", "with", "train_log_dir=file"], ["file", "cannot be made the output directory"]),
    ],
)
def test_wrong_usage(capsys, arguments, words):
    Path("binary.txt").write_bytes(b"\xff")
    Path("far.txt").write_text("192.0.2.1:7001")
    Path("two.txt").write_text("localhost:1\nlocalhost:2")
    Path("file").write_text("")
    before = set(Path().iterdir())
    assert check(capsys, arguments, 2, *words) == ""
    assert set(Path().iterdir()) == before


def test_the_version(capsys):
    assert check(capsys, ["--version"], 0).startswith("nhop-coordinator 0.")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(capsys, option):
    assert "print_config" in check(capsys, [option], 0)


def test_print_config_shows_what_load_reads(capsys):
    Path("study.yaml").write_text("opt_epoch: 7\n")
    out = check(capsys, ["print_config", "study.yaml", "with", "cluster.ps=0"], 0)
    config = load(out)
    assert (config.stages[0].opt_epoch, config.cluster.ps) == (7, 0)


def test_keys_without_effect_are_said(capsys):
    check(capsys, ["print_config", "with", "trainer=x"], 0, "note: trainer has no effect")


def test_a_dry_run_shows_the_plan_and_starts_nothing(capsys, tmp_path):
    arguments = ["--dry-run", "--output", "out", "with", "opt_stages=[[1000,4],[700,3]]", "cluster.ps=2"]
    out = check(capsys, arguments, 0)
    for words in ("4 trials of 1000 steps", "2 PS + 2 workers", "0.0001 to 0.001", "relu or tanh", "out"):
        assert words in out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_shows_what_is_not_known_before_the_start(capsys):
    out = check(capsys, ["--dry-run", "with", "num_gpus=1"], 0)
    assert "0.5 GPU for each worker" in out
    assert "GPUs counted when the study starts" in out


def test_a_dry_run_finds_what_can_never_be_placed(capsys):
    check(capsys, ["--dry-run", "with", "slots=2", "cluster.workers=3"], 3, "cluster.workers is 3")


def test_a_dry_run_asks_the_hosts(capsys):
    Path("hosts.txt").write_text("unix:none.sock\n")
    check(capsys, ["--dry-run", "--hosts", "hosts.txt"], 3, "unix:none.sock")


def test_a_dry_run_waits_for_no_host_and_names_all_that_do_not_answer(capsys):
    Path("hosts.txt").write_text("unix:one.sock\nunix:two.sock\n")
    out = check(capsys, ["--dry-run", "--hosts", "hosts.txt"], 3, "one.sock: no agent", "two.sock: no agent")
    assert "unix:one.sock" in out  # the table says it, too
    assert "each trial" not in out


def test_hosts_off_this_machine_need_consent_and_are_warned_of(capsys):
    Path("hosts.txt").write_text("192.0.2.1\n192.0.2.2\n192.0.2.3\n192.0.2.4\nlocalhost\n")
    arguments = ["--hosts", "hosts.txt", "--insecure", "--min-hosts", "9"]
    check(capsys, ["--hosts", "hosts.txt"], 2, "hosts.txt:1: 192.0.2.1 (and 3 more): ", "--insecure")
    check(capsys, arguments, 2, "--min-hosts 9")  # before anything is asked
    arguments = ["--hosts", "hosts.txt", "--insecure", "with", "opt_epoch=0"]
    check(capsys, arguments, 2, "opt_epoch")


def test_what_is_not_encrypted_is_warned_of(capsys):
    hosts = HostPolicy(source=HostsFile(Path("hosts.txt")), security=Security())
    Path("hosts.txt").write_text("192.0.2.1\n192.0.2.2\n192.0.2.3\n192.0.2.4\nlocalhost\n")
    assert len(cli._read_hosts(hosts)) == 5
    assert capsys.readouterr().err == (
        "nhop-coordinator: warning: --insecure: what goes to 192.0.2.1:7001, 192.0.2.2:7001, 192.0.2.3:7001, "
        "192.0.2.4:7001 is neither encrypted nor authenticated\n"
    )


def test_consent_for_hosts_on_this_machine_is_no_reason_to_warn(capsys):
    Path("hosts.txt").write_text("localhost\nunix:a.sock\n")
    cli._read_hosts(HostPolicy(source=HostsFile(Path("hosts.txt")), security=Security()))
    assert capsys.readouterr().err == ""


def test_a_defect_is_one_line_and_a_file(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("coordinator.config.load", lambda *_, **__: 1 / 0)
    check(capsys, [], 1, "internal error: ZeroDivisionError", str(tmp_path))
    (file,) = tmp_path.iterdir()
    assert "Traceback" in file.read_text()


def test_an_interrupt_before_the_start(capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("coordinator.config.load", interrupted)
    check(capsys, [], 130)


def test_a_reader_that_goes_away_is_no_error():
    script = Path(sysconfig.get_path("scripts")) / "nhop-coordinator"
    command = f"'{script}' print_config | true"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False)
    assert ended.stderr == ""


def test_what_the_command_does_not_import():
    code = (
        "import sys; sys.argv = ['nhop-coordinator', 'print_config']\n"
        "from coordinator.cli import run; run(['print_config'])\n"
        "import coordinator.session\n"
        "print([name for name in ('tensorflow', 'keras', 'agent') if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert ended.stdout.splitlines()[-1] == "[]"


def test_code_that_is_too_large_is_one_line(capsys):
    Path("mine.py").write_text("")
    with Path("large.bin").open("wb") as file:
        file.truncate(5 << 30)
    Path("study.yaml").write_text("nn_model: mine:Net")
    Path("hosts.txt").write_text("unix:none.sock\n")
    for option in ([], ["--dry-run"]):
        check(capsys, [*option, "study.yaml", "--hosts", "hosts.txt"], 2, "code: ", "large.bin 5.0 GiB")
    assert not Path("runs").exists()

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator import process

ROOT = Path(__file__).resolve().parents[2]


def run(limits, program):
    """Runs a program of Python in a process of its own, with limits of bash's ulimit."""
    return subprocess.run(
        ["bash", "-c", f'{limits}; exec "$0" -c "$1"', sys.executable, program],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip


def test_the_command_may_have_as_many_open_files_as_the_system_lets_it():
    program = "from coordinator import process; process.take_over(); process.check_file_limit(700)"
    ended = run("ulimit -Hn 800; ulimit -Sn 128", program)
    assert ended.returncode == 0, ended.stderr


def test_too_many_agents_for_the_limit_are_told_before_anything_is_tried(tmp_path):
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("".join(f"127.0.0.1:{port}\n" for port in range(10001, 10301)))
    program = (
        "import sys; from coordinator.cli import main; "
        f"sys.argv[1:] = ['--dry-run', '--hosts', {str(hosts)!r}]; main()"
    )
    ended = run("ulimit -n 128", program)
    assert ended.returncode == 3
    assert ended.stderr.count("\n") == 1
    assert "300 agents need some 400 open files, and this process may have 128" in ended.stderr


def test_a_program_that_uses_nhop_keeps_its_garbage_to_itself():
    before = gc.get_freeze_count()
    process.settle()
    assert gc.get_freeze_count() == before


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setattr(process._Process, "unsettled", True)
    before = gc.get_freeze_count()
    yield
    if not before:
        gc.unfreeze()


def test_objects_that_are_there_when_work_begins_are_not_looked_at_again(own):
    process.settle()
    assert gc.get_freeze_count() > 1000

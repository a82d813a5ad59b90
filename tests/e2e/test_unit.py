"""The agent as the unit of `nhop-agent install` starts it, with real TensorFlow and without systemd."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.as_systemd import names_of
from tests.e2e.conftest import MARKER, ROOT, SCRIPTS, Commands, summary
from tests.users import needs_users, some_users

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    needs_users,
    pytest.mark.skipif(
        shutil.which("systemd-sysusers") is None or ctypes.util.find_library("seccomp") is None,
        reason="needs systemd-sysusers, systemd-analyze and libseccomp (Debian: systemd)",
    ),
]


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """The end of a notify socket that is systemd's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0nhop-{uuid.uuid4().hex}")
        manager.settimeout(60)
        yield manager


def said(manager: socket.socket, name: str) -> None:
    """Waits until systemd is told so."""
    while f"{name}=1" not in manager.recv(4096).decode().splitlines():
        pass


def test_the_filter_of_the_unit_has_what_a_filter_is_for() -> None:
    assert {"setresuid", "pidfd_send_signal", "mknodat", "sched_setaffinity"} <= names_of("@system-service")
    assert not {"mount", "ptrace", "bpf", "kexec_load"} & names_of("@system-service")


def test_a_study_on_an_agent_as_its_unit_starts_it(commands: Commands, manager: socket.socket) -> None:
    with some_users() as users:
        root, state = users.folder / "root", users.folder / "state"
        address = f"127.0.0.1:{28_000 + os.getpid() % 500}"
        script = SCRIPTS / "nhop-agent"
        install = ("install", "--root", root, "--command", script, "--listen", address, "--slots", 2)
        process = commands.start("nhop-agent", *install)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
        (root / "etc").chmod(0o755)
        sysusers = ["systemd-sysusers", f"--root={root}", f"{root}/etc/sysusers.d/nhop.conf"]
        subprocess.run(sysusers, check=True, capture_output=True)
        inside = (*users.anybody(), "unshare", "-m", sys.executable, "-m", "tests.as_systemd", root, state)
        notify = f"NOTIFY_SOCKET=@{manager.getsockname()[1:].decode()}"
        agent = subprocess.Popen(
            [*map(str, inside), notify, f"{MARKER}={commands.mark}", f"PYTHONPATH={ROOT}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        )  # fmt: skip
        try:
            said(manager, "READY")
            (commands.folder / "hosts.txt").write_text(address)
            study = ("with", "opt_stages=[[300,2]]", "cluster={ps: 1, workers: 2}", "opt_tolerance=0")
            running = commands.start(
                "nhop-coordinator", *study, "--hosts", commands.folder / "hosts.txt", "--output", "out"
            )
            tasks = commands.wait_for(lambda: commands.processes("nhop-worker"), "a worker")
            user = user_number(root, "nhop-task")
            assert set(tasks[0].uids()) == {user}
            status = Path(f"/proc/{tasks[0].pid}/status").read_text().splitlines()
            assert {"Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"} <= set(status)
            out, err = running.communicate(timeout=120)
            assert running.returncode == 0, out + err
            assert summary(commands.folder / "out")["trials"]["completed"] == 2
            assert (commands.folder / "out" / "best_model.keras").exists()
            agent.terminate()
            said(manager, "STOPPING")
            assert agent.wait(30) == 0
            assert commands.processes() == []
        finally:
            agent.kill()
            log, _ = agent.communicate()
            print(log)


def user_number(root: Path, name: str) -> int:
    lines = (root / "etc/passwd").read_text().splitlines()
    return next(int(line.split(":")[2]) for line in lines if line.startswith(f"{name}:"))

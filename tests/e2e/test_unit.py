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
from tests.users import is_hidden, needs_users, some_users

missing = [name for name in ("systemd-sysusers", "systemd-analyze", "setpriv") if shutil.which(name) is None]
missing += [] if ctypes.util.find_library("seccomp") else ["libseccomp"]
missing += [] if "\toverlay\n" in Path("/proc/filesystems").read_text() else ["the overlay file system"]
missing += ["a checkout that is not below /tmp"] if is_hidden() else []
needs_systemd = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)} (Debian: systemd)")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    needs_users,
    needs_systemd,
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


MODEL = """
import pathlib, tensorflow as tf

def train(hp, context):
    for path in ("/etc/nhop/tls", "/etc/nhop/tls/tls.key", "/proc/1/environ"):
        try:
            pathlib.Path(path).read_bytes()
        except PermissionError:
            continue
        raise AssertionError(path)
    context.report(1, loss=float(tf.constant(0.5)))
    return {"val_loss": 0.5}
"""
STUDY = """
nn_model: mine:train
opt_stages: [[1, 1]]
opt_tolerance: 0
cluster: {ps: 0, workers: 1}
"""


def install(commands: Commands, root: Path, address: str) -> None:
    """All that the README has a user do on a host, below a folder."""
    script = SCRIPTS / "nhop-agent"
    words = ("install", "--root", root, "--command", script, "--listen", address, "--slots", 2)
    process = commands.start("nhop-agent", *words)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    environment = root / "etc/nhop/agent.env"
    environment.write_text(environment.read_text().replace("#NHOP_TLS=", "NHOP_TLS="))
    sysusers = ["systemd-sysusers", f"--root={root}", f"{root}/etc/sysusers.d/nhop.conf"]
    subprocess.run(sysusers, check=True, capture_output=True)
    for words in (("init",), ("issue", "agent", "here", "127.0.0.1")):
        issued = commands.coordinator("certs", *words, "--dir", commands.folder / "certs")
        assert issued.returncode == 0, issued.stderr
    folder = root / "etc/nhop/tls"
    shutil.copytree(commands.folder / "certs/agents/here", folder)
    user = user_number(root, "nhop")
    for path in (folder, *folder.iterdir()):
        os.chown(path, user, user)
        path.chmod(0o700 if path.is_dir() else 0o600)
    for path in (root, root / "etc", root / "etc/nhop"):
        path.chmod(0o755)


def test_a_study_on_an_agent_as_its_unit_starts_it(commands: Commands, manager: socket.socket) -> None:
    with some_users() as users:
        root, state = users.folder / "root", users.folder / "state"
        address = f"127.0.0.1:{28_000 + os.getpid() % 500}"
        install(commands, root, address)
        inside = (*users.anybody(), "unshare", "-m", sys.executable, "-m", "tests.as_systemd", root, state)
        notify = f"NOTIFY_SOCKET=@{manager.getsockname()[1:].decode()}"
        agent = subprocess.Popen(
            [*map(str, inside), notify, f"{MARKER}={commands.mark}", f"PYTHONPATH={ROOT}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        )  # fmt: skip
        try:
            said(manager, "READY")
            (commands.folder / "hosts.txt").write_text(address)
            hosts = ("--hosts", commands.folder / "hosts.txt", "--tls", commands.folder / "certs/coordinator")
            cluster = ("with", "opt_stages=[[300,2]]", "cluster={ps: 1, workers: 2}", "opt_tolerance=0")
            running = commands.start("nhop-coordinator", *cluster, *hosts, "--output", "out")
            tasks = commands.wait_for(lambda: commands.processes("nhop-worker"), "a worker")
            assert set(tasks[0].uids()) == {user_number(root, "nhop-task")}
            status = Path(f"/proc/{tasks[0].pid}/status").read_text().splitlines()
            assert {"Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"} <= set(status)
            out, err = running.communicate(timeout=120)
            assert running.returncode == 0, out + err
            assert summary(commands.folder / "out")["trials"]["completed"] == 2
            assert (commands.folder / "out" / "best_model.keras").exists()

            project = commands.folder / "project"
            project.mkdir()
            (project / "study.yaml").write_text(STUDY)
            (project / "mine.py").write_text(MODEL)
            done = commands.coordinator(project / "study.yaml", *hosts, "--output", "own")
            assert done.returncode == 0, done.stdout + done.stderr

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

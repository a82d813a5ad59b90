"""A study whose tasks run as a user of their own: what they reach, and what is left, with real TensorFlow."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.conftest import Commands, summary
from tests.users import Users, needs_users, some_users

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180), needs_users]

MODEL = """
import os, pathlib, tempfile
import tensorflow as tf
from nhop_models.fetching import fetch

def refused(work):
    try:
        work()
    except PermissionError:
        return True
    return False

def train(hp, context):
    key, state, url, uid = pathlib.Path("KEY"), pathlib.Path("STATE"), "URL", int("UID")
    attempt = next(pathlib.Path(f"/proc/self/fd/{n}").readlink() for n in (1,)).parents[1]
    assert attempt.parent == state / "attempts", attempt
    assert os.getuid() == uid and os.getgroups() == []
    for path in (key, state / "zygote.log", state / "lock"):
        assert refused(path.read_bytes), path
    for name in ("attempt.json", "agent.reports"):
        assert refused((attempt / name).read_bytes), name
    for folder in (state, state / "attempts", attempt, state / "bundles", key.parent):
        assert refused(lambda: list(folder.iterdir())), folder
        assert refused((folder / "new").touch), folder
    for name in ("lease", "spec.json", "attempt.json", "agent.reports", "doorbell"):
        assert refused((attempt / name).unlink), name
        assert refused(lambda: (attempt / name).rename(attempt / "other")), name
    code = pathlib.Path(__file__).parent
    assert code.parent == state / "bundles"
    assert refused((code / "new").touch) and refused(lambda: open(__file__, "a"))
    assert refused(lambda: os.kill(context_agent(), 0))
    for name in ("mem", "environ"):
        assert refused(lambda: open(f"/proc/{zygote()}/{name}", "rb").close()), name
        open(f"/proc/self/{name}", "rb").close()

    assert pathlib.Path.home().is_relative_to(state) and (pathlib.Path.home() / "cache").touch() is None
    hidden = pathlib.Path(tempfile.mkdtemp()) / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "file").touch()
    hidden.chmod(0)
    assert hidden.is_relative_to(state)
    assert fetch(url + "/x.csv").read_text() == "1,2"

    os.umask(0o077)
    weight = tf.Variable(hp["learning_rate"])
    context.report(1, loss=float(weight * 2))
    return {"val_loss": float(weight)}

def context_agent():
    return parent_of(zygote())

def zygote():
    return parent_of("self")

def parent_of(process):
    return int(pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
"""
STUDY = """
nn_model: mine:train
opt_stages: [[1, 2]]
opt_tolerance: 0
parallel_trials: 1
cluster: {ps: 0, workers: 1}
learning_rate: [0.05, 0.1]
"""


@pytest.fixture
def users() -> Iterator[Users]:
    with some_users() as users:
        yield users


@contextmanager
def served() -> Iterator[tuple[str, list[str]]]:
    """A file at a URL, and the paths that were fetched whole so far."""
    fetched: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "3")
            self.send_header("ETag", '"one"')
            self.end_headers()

        def do_GET(self) -> None:
            fetched.append(self.path)
            self.do_HEAD()
            self.wfile.write(b"1,2")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("kind", [pytest.param("root", marks=pytest.mark.deploy), "unit"])
def test_a_task_reaches_its_own_places_and_no_others(commands: Commands, users: Users, kind: str) -> None:
    inside = users.anybody() if kind == "root" else users.as_the_unit()
    keys = users.folder / "tls"
    keys.mkdir(mode=0o700)
    key = keys / "tls.key"
    key.write_text("secret")
    key.chmod(0o600)
    for path in (keys, key):
        os.chown(path, users.agent if kind == "unit" else 0, -1)
    state, project = users.folder / "state", commands.folder / "project"
    project.mkdir()
    with served() as (url, fetched):
        places = {"KEY": key, "STATE": state, "URL": url, "UID": users.tasks}
        model = MODEL
        for name, value in places.items():
            model = model.replace(f'"{name}"', f'"{value}"')
        (project / "study.yaml").write_text(STUDY)
        (project / "mine.py").write_text(model)
        address = f"127.0.0.1:{27900 + os.getpid() % 90}"
        options = ("--state-dir", state, "--task-user", users.tasks, "--slots", 1)
        agent = commands.agent("--listen", address, *options, inside=inside)
        (commands.folder / "hosts.txt").write_text(address)
        ran = commands.coordinator(
            project / "study.yaml", "--hosts", commands.folder / "hosts.txt", "--output", "out"
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert summary(commands.folder / "out")["trials"]["completed"] == 2
        assert len(fetched) == 1, "the second trial finds what the first has fetched"
        commands.wait_for(lambda: not list((state / "attempts").iterdir()), "the attempts to be deleted")
        home, temporary = (state / f"user-{users.tasks}" / name for name in ("home", "tmp"))
        commands.wait_for(lambda: not list(temporary.iterdir()), "temporary files to be deleted")
        assert (home / "cache").exists()
        agent.terminate()
        assert agent.wait(20) == 0
    assert commands.processes() == []

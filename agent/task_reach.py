"""Whether the user of the tasks reaches what it needs: Python, NHOP, TensorFlow, and its places.

Asked of a process that runs as that user, at the agent's start: a zygote that dies, or tasks that fail one
by one, say it later and less clearly.
"""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import nhop_models.contract
from agent.config import AgentError, UsageError
from agent.task_user import TaskUser, become, capabilities

PROBE_SECONDS = 60.0
_PROBE = """
import os, sys, importlib.util as util
base, contract, state = sys.argv[1:]
found = util.find_spec("nhop_models.contract")
if sys.base_prefix != base or found is None or found.origin != contract:
    sys.exit(3)
if util.find_spec("tensorflow") is None or not os.access(util.find_spec("tensorflow").origin, os.R_OK):
    sys.exit(3)
sys.exit(0 if os.access(state, os.X_OK) else 4)
"""
_NO_PYTHON, _NO_STATE = 3, 4
ELSEWHERE = "install NHOP where every user can read it, such as /opt/nhop/.venv"


def check_reach(user: TaskUser, state_dir: Path, environment: Mapping[str, str]) -> None:
    """Raises UsageError where the user cannot use this installation, or reach the state directory.

    AgentError where that is not known in time. ``environment`` is what the zygote will have.
    """
    python = (
        sys.executable,
        "-P",
        "-c",
        _PROBE,
        sys.base_prefix,
        nhop_models.contract.__file__,
        str(state_dir),
    )
    command = [*become(user, capabilities()), *python]
    try:
        probe = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PROBE_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired as error:
        # Of a machine that stalls: a service manager tries it again.
        raise AgentError(
            f"--task-user {user.name}: Python did not start as that user within {PROBE_SECONDS:g} s; is the "
            "machine, or a file system on the way, stuck?"
        ) from error
    except OSError as error:
        raise UsageError(f"--task-user {user.name}: {shlex.join(command[:6])} ...: {error}") from error
    if probe.returncode == 0:
        return
    needed = [Path(sys.base_prefix), Path(sys.prefix), Path(nhop_models.contract.__file__)]
    closed = next((c for c in (first_closed(p, user) for p in needed) if c is not None), None)
    if probe.returncode == _NO_STATE:
        closed = first_closed(state_dir, user)
        where = f": {closed} is closed to it" if closed is not None else ""
        problem = f"cannot reach the state directory {state_dir}{where}; choose another with --state-dir"
    elif closed is not None:
        problem = f"cannot use {sys.executable}: {closed} is closed to it; {ELSEWHERE}"
    else:
        said = probe.stderr.strip().rpartition("\n")[2] or f"exit status {probe.returncode}"
        problem = f"cannot use {sys.executable} with NHOP and TensorFlow ({said}); {ELSEWHERE}"
    raise UsageError(f"--task-user {user.name} {problem}")


def first_closed(path: Path, user: TaskUser) -> Path | None:
    """The first folder on the way, or the file itself, that its permissions close to the user."""
    for each in _way(path):
        try:
            status = each.stat()
        except OSError:
            return each
        if not status.st_mode & _bit(status, user, enter=stat.S_ISDIR(status.st_mode)):
            return each
    return None


def _way(path: Path) -> Iterator[Path]:
    for each in dict.fromkeys((path.absolute(), Path(os.path.realpath(path)))):
        yield from reversed(each.parents)
        yield each


def _bit(status: os.stat_result, user: TaskUser, *, enter: bool) -> int:
    """The bit of the mode that lets the user in."""
    bits = (stat.S_IXUSR, stat.S_IXGRP, stat.S_IXOTH) if enter else (stat.S_IRUSR, stat.S_IRGRP, stat.S_IROTH)
    if status.st_uid == user.uid:
        return bits[0]
    return bits[1] if status.st_gid == user.gid else bits[2]

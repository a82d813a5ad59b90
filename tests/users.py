"""Users other than root for tests, by number: nothing is added to the machine."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from agent.task_reach import first_closed
from agent.task_user import TaskUser

ROOT = Path(__file__).resolve().parents[1]
AGENTS_CAPABILITIES = "-all,+setuid,+setgid,+kill"
"""What the unit leaves to the agent."""
_OPEN = """
set -e
mount --make-rprivate /
stash=$1; closed=$2; count=$3; shift 3
i=0
while [ $i -lt $count ]; do
    i=$((i + 1))
    mkdir -p "$stash/$i"
    eval "mount --rbind \\"\\${$i}\\" \\"$stash/$i\\""
done
mount -t tmpfs -o mode=755 tmpfs "$closed"
i=0
while [ $i -lt $count ]; do
    i=$((i + 1))
    mkdir -p "$1"
    mount --rbind "$stash/$i" "$1"
    shift
done
exec "$@"
"""


@cache
def why_not() -> str:
    """Why this machine has no other users for tests; empty: it has."""
    if os.geteuid() != 0:
        return "needs root, to be other users"
    missing = [name for name in ("setpriv", "unshare", "mount") if shutil.which(name) is None]
    if missing:
        return f"needs util-linux ({', '.join(missing)})"
    tried = subprocess.run(
        ["unshare", "-m", "mount", "--make-rprivate", "/"], capture_output=True, check=False
    )
    return "" if tried.returncode == 0 else "needs mount namespaces"


def is_hidden() -> bool:
    """Whether this checkout lies where a service has a folder of its own, and does not see it."""
    places = [Path(path).resolve() for path in (sys.base_prefix, sys.prefix, ROOT)]
    return any(place.is_relative_to(folder) for place in places for folder in ("/tmp", "/var/tmp"))


needs_users = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are users")


@dataclass(frozen=True)
class Users:
    """``agent`` and ``tasks`` are numbers that are nobody's; ``folder`` may be entered by everybody."""

    agent: int
    tasks: int
    folder: Path

    def anybody(self) -> tuple[str, ...]:
        """What to put before a command so that every user can read this Python and this source."""
        nobody = TaskUser("nobody", self.agent, self.agent)
        packages = Path(sysconfig.get_path("purelib"))
        needed = {Path(os.path.realpath(path)) for path in (sys.base_prefix, sys.prefix, packages, ROOT)}
        closed = {folder for path in needed if (folder := first_closed(path, nobody)) is not None}
        command: list[str] = []
        for number, folder in enumerate(closed):
            below = sorted(str(path) for path in needed if path.is_relative_to(folder))
            command += ["unshare", "-m", "sh", "-c", _OPEN, "sh", f"{self.folder}/stash-{number}"]
            command += [str(folder), str(len(below)), *below]
        return tuple(command)

    def as_the_unit(self) -> tuple[str, ...]:
        """What to put before an agent so that it runs as by systemd: no root, and few capabilities."""
        return (
            *self.anybody(),
            *("setpriv", f"--reuid={self.agent}", f"--regid={self.agent}", f"--groups={self.tasks}"),
            *(f"--inh-caps={AGENTS_CAPABILITIES}", f"--ambient-caps={AGENTS_CAPABILITIES}"),
            *(f"--bounding-set={AGENTS_CAPABILITIES}", "--no-new-privs"),
        )


@contextmanager
def some_users() -> Iterator[Users]:
    """Two users, and a folder of the first, which is removed."""
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    agent, tasks = random.sample([n for n in range(61_200, 64_900) if n not in taken], 2)
    folder = Path(tempfile.mkdtemp(prefix="nhop-users-"))
    os.chown(folder, agent, agent)
    folder.chmod(0o755)
    try:
        yield Users(agent, tasks, folder)
    finally:
        shutil.rmtree(folder)

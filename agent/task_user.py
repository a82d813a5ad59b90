"""The user that tasks run as, where it is not the agent's own: who it is, and how a process becomes it.

The zygote becomes it through util-linux' ``setpriv``, before it runs a line of ours: all tasks are its
children, and none of them can get any privilege back.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from agent.config import ConfigError, UsageError

SETPRIV = "setpriv"
NEEDED = ("CAP_SETUID", "CAP_SETGID", "CAP_KILL")
"""What an agent that is not root needs to start, to signal and to end tasks of another user."""
_NUMBERS = {"CAP_CHOWN": 0, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SETPCAP": 8}
_LARGEST_ID = 2**32 - 2


@dataclass(frozen=True, slots=True)
class TaskUser:
    """``gid`` is the group by which the agent lets its tasks into folders."""

    name: str
    uid: int
    gid: int

    def let_in(self, path: Path, mode: int) -> None:
        """Gives a file or folder of the agent's to the group, with these permissions; raises OSError."""
        os.chown(path, -1, self.gid, follow_symlinks=False)
        path.chmod(mode)  # not the mode of its making: of that the umask takes something away

    def owns(self, pid: int) -> bool | None:
        """Whether a process runs as this user; None where it is gone."""
        try:
            status = Path(f"/proc/{pid}/status").read_bytes()
        except OSError:
            return None
        # Not the owner of the folder, who is root where a process cannot be traced.
        real = next(line for line in status.splitlines() if line.startswith(b"Uid:")).split()[1]
        return int(real) == self.uid


def parse_task_user(text: str) -> TaskUser:
    """From a name or a number, which need not have a name; ConfigError where it cannot be the tasks'."""
    try:
        entry = pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except (KeyError, OverflowError):
        if not text.isdecimal():
            raise ConfigError(f"there is no user {text!r} on this machine; make it with useradd") from None
        if int(text) > _LARGEST_ID:
            raise ConfigError(f"{text} is not the number of a user") from None
        user = TaskUser(text, int(text), int(text))
    else:
        user = TaskUser(entry.pw_name, entry.pw_uid, entry.pw_gid)
    if user.uid == 0 or user.gid == 0:
        raise ConfigError(f"{text} is root, or of its group: name a user for tasks alone, such as nhop-task")
    return user


def become(user: TaskUser, held: Collection[str]) -> tuple[str, ...]:
    """What to put before a command so that it runs as the user, for good and with no privilege at all.

    ``held`` are the capabilities of this process: without CAP_SETPCAP the bounding set stays as it is,
    which says nothing where no privilege can be gained.
    """
    groups = (f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups")
    bounds = ("--bounding-set=-all",) if "CAP_SETPCAP" in held else ()
    return (SETPRIV, *groups, "--inh-caps=-all", "--ambient-caps=-all", *bounds, "--no-new-privs", "--")


def capabilities(kind: str = "CapEff") -> frozenset[str]:
    """Those of this process that matter here; ``kind`` as in ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    bits = next((int(line.split()[1], 16) for line in lines if line.startswith(f"{kind}:")), 0)
    return frozenset(name for name, number in _NUMBERS.items() if bits >> number & 1)


def check_task_user(user: TaskUser | None) -> None:
    """Raises UsageError where this process cannot have its tasks run as the user, in all ways at once.

    Without a user of their own tasks have all privileges of the agent: it must have none to pass on.
    """
    if user is None:
        passed_on = capabilities("CapAmb")
        if passed_on:
            raise UsageError(
                f"tasks would have what this process may do ({', '.join(sorted(passed_on))}): give them a "
                "user of their own with --task-user, or start the agent without these capabilities"
            )
        return
    problem = why_not(user, os.geteuid(), {os.getegid(), *os.getgroups()}, capabilities())
    if problem is None and shutil.which(SETPRIV) is None:
        problem = f"{SETPRIV} is not there: install util-linux"
    if problem is not None:
        raise UsageError(f"--task-user {user.name}: {problem}")


def why_not(user: TaskUser, uid: int, groups: Collection[int], held: Collection[str]) -> str | None:
    """Why an agent with these ids and capabilities cannot have its tasks run as the user; None: it can."""
    if user.uid == uid:
        return "is the user of this agent, whose keys and files tasks must not reach: name another one"
    missing = [name for name in NEEDED if name not in held]
    if missing:
        return (
            f"this process may not change to another user ({', '.join(missing)}): run the agent as root, or "
            "by the unit that `nhop-agent install` writes"
        )
    if user.gid not in groups and "CAP_CHOWN" not in held:
        return f"this agent is not in the group {user.gid} of that user: add its user to that group"
    return None

"""Starts the service of a unit file as systemd would, as far as that is possible without it.

    unshare -m python -m tests.as_systemd ROOT STATE [NAME=VALUE ...]

ROOT is what `nhop-agent install --root` and systemd-sysusers have written, STATE a folder for its state. Done
are users and capabilities, the filter of system calls (with libseccomp, which systemd uses as well), the
read-only file system with a /tmp of its own, limits, and the environment. Not done is what needs control
groups (devices, addresses, numbers of tasks) or more than names in the filter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

from agent.units import ENVIRONMENT, UNIT

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def directives(text: str) -> dict[str, list[str]]:
    """The values of each key of a unit, in order."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not key.startswith(("#", "[")):
            found.setdefault(key, []).append(value)
    return found


def variables(text: str) -> dict[str, str]:
    """Of an environment file."""
    lines = [line.partition("=") for line in text.splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in lines}


def command(line: str, environment: dict[str, str]) -> list[str]:
    """What ExecStart= means: ``${NAME}`` is one word, ``$NAME`` any number of them."""
    words: list[str] = []
    for word in shlex.split(line):
        if match := re.fullmatch(r"\$(\w+)", word):
            words += shlex.split(environment.get(match[1], ""))
        else:
            whole = re.sub(r"\$\{(\w+)\}", lambda m: environment.get(m[1], ""), word)
            words.append(whole.replace("$$", "$").replace("%%", "%"))
    return words


def names_of(group: str) -> set[str]:
    """The system calls of a group, and of those in it."""
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
    )
    names: set[str] = set()
    for word in (line.strip() for line in listed.stdout.splitlines()[1:]):
        if word.startswith("@"):
            names |= names_of(word)
        elif word and not word.startswith("#"):
            names.add(word)
    return names


def allow_only(names: set[str]) -> None:
    """Every other system call of this process, and of its children, fails with EPERM."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_rule_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint)
    library.seccomp_load.argtypes = (ctypes.c_void_p,)
    context = library.seccomp_init(_ERRNO | errno.EPERM)
    for name in names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # otherwise it is of another architecture
            library.seccomp_rule_add(context, _ALLOW, number, 0)
    if library.seccomp_load(context) != 0:
        sys.exit("the filter cannot be loaded")


def mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def close_the_file_system(root: Path, state: Path, service: dict[str, list[str]]) -> None:
    """ProtectSystem=strict, PrivateTmp=, StateDirectory=, and the users that the service knows."""
    mount("--make-rprivate", "/")
    mount("-t", "overlay", "-o", f"lowerdir={root}/etc:/etc", "overlay", "/etc")  # users, too
    (name,) = service["StateDirectory"]
    user = pwd.getpwnam(service["User"][0])
    state.mkdir(exist_ok=True)
    os.chown(state, user.pw_uid, user.pw_gid)
    state.chmod(int(service["StateDirectoryMode"][0], 8))
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/var/lib")
    Path("/var/lib", name).mkdir()
    mount("--bind", state, f"/var/lib/{name}")
    assert service["ProtectSystem"] == ["strict"]
    assert service["PrivateTmp"] == ["yes"]
    mount("-o", "remount,bind,ro", "/")
    for temporary in ("/tmp", "/var/tmp"):
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", temporary)


def main() -> None:
    root, state, *given = sys.argv[1:]
    service = directives((Path(root) / UNIT.relative_to("/")).read_text())
    listed = variables((Path(root) / ENVIRONMENT.relative_to("/")).read_text())
    extra = dict(text.split("=", 1) for text in given)
    names = set().union(*(names_of(group) for line in service["SystemCallFilter"] for group in line.split()))
    close_the_file_system(Path(root), Path(state), service)
    (user,) = service["User"]
    environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "USER": user, "LOGNAME": user}
    environment |= {"HOME": pwd.getpwnam(user).pw_dir, "STATE_DIRECTORY": "/var/lib/nhop", **listed, **extra}
    environment["WATCHDOG_USEC"] = str(int(service["WatchdogSec"][0]) * 1_000_000)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(int(service["UMask"][0], 8))
    os.chdir("/")
    kept = service["AmbientCapabilities"][0].split()
    bits = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in kept)])
    (group,), (groups,) = service["Group"], service["SupplementaryGroups"]
    identity = (f"--reuid={user}", f"--regid={group}", f"--groups={groups}")
    privileges = (f"--inh-caps={bits}", f"--ambient-caps={bits}", f"--bounding-set={bits}", "--no-new-privs")
    start = command(service["ExecStart"][0], environment)
    allow_only(names)
    os.execvpe("setpriv", ["setpriv", *identity, *privileges, "--", *start], environment)


if __name__ == "__main__":
    main()

"""What an agent is told at its start."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from agent.archive import ArchiveLimits
from agent.gpus import GpuInventory, NvmlInventory
from nhop._listening import is_loopback, is_wildcard

if TYPE_CHECKING:
    from agent.task_user import TaskUser
    from nhop.security.rotation import Rotation

DEFAULT_PORTS = (20000, 29999)  # below the ephemeral range of Linux, which begins at 32768
MAX_UNIX_PATH_BYTES = 107
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9_])?")


class ConfigError(ValueError):
    """A value that the agent cannot work with, in the user's words."""


class AgentError(Exception):
    """The agent cannot start or go on; the message says why and what to do."""

    exit_status = 1


class UsageError(AgentError):
    """What the command line names cannot be used, as when another agent uses it."""

    exit_status = 2


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where the agent listens: an address of this machine and a port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """From ``host:port``, ``[::1]:port`` or ``unix:/path``; ConfigError for anything else."""
        if text.startswith("unix:"):
            return cls(path=_unix_path(text))
        host, colon, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not colon or not bare or host != (f"[{bare}]" if ":" in bare else bare):
            raise ConfigError(f"{text!r} is not an address: expected host:port, [::1]:port or unix:/path")
        if not port.isdecimal() or not 0 <= int(port) <= 65535:
            raise ConfigError(f"{text!r}: the port must be a number from 0 to 65535")
        return cls(host=bare, port=int(port))

    def check(self, *, tls: bool, insecure: bool) -> None:
        """Raises ConfigError where anybody could use the agent, unless they may (``insecure``)."""
        if self.path is not None and tls:
            raise ConfigError(f"'{self}' takes no --tls: only its user can open that socket")
        if self.path is not None or is_loopback(self.host) or tls:
            return
        if not insecure:
            raise ConfigError(
                f"'{self}' is not on loopback: without TLS anyone who reaches it could run code here. "
                "Name this host's certificate with --tls FOLDER (nhop-coordinator certs issue makes it), or, "
                "in a network where you trust every machine, add --insecure"
            )
        if self.is_wildcard:
            raise ConfigError(
                f"'{self}' is every interface of this machine: with --insecure name the one address by which "
                "the coordinator reaches it"
            )

    @property
    def is_wildcard(self) -> bool:
        """Whether it is every interface of this machine."""
        return self.path is None and _is_wildcard(self.host)

    @property
    def task_host(self) -> str:
        """Where other hosts reach tasks of this one, unless it is told otherwise."""
        return self.host if self.path is None and not is_loopback(self.host) else "127.0.0.1"

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path is not None else join_port(self.host, self.port)


def join_port(host: str, port: int) -> str:
    """``host:port``, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_advertised(text: str) -> str:
    """A host's name or address without a port; ConfigError for anything else."""
    host = text.removeprefix("[").removesuffix("]")
    if _is_address(host):
        if _is_wildcard(host):
            raise ConfigError(
                f"{text!r} is every interface: name one address by which other hosts reach this"
            )
        return host
    if not _NAME.fullmatch(host) or re.fullmatch(r"[0-9.]+", host):
        raise ConfigError(
            f"{text!r} is not the name or address of a host (it has no port: tasks choose theirs)"
        )
    return host


def _unix_path(text: str) -> Path:
    path = Path(text.removeprefix("unix:"))
    if not path.is_absolute():
        raise ConfigError(f"{text!r}: the path of a Unix socket must be absolute, as in unix:/run/nhop.sock")
    if len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
        raise ConfigError(f"{text!r}: the path of a Unix socket has at most {MAX_UNIX_PATH_BYTES} bytes")
    return path


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_wildcard(host: str) -> bool:
    return not host or is_wildcard(host)


def parse_port_range(text: str) -> tuple[int, int]:
    """From ``LOW-HIGH``, both inclusive; ConfigError for anything else."""
    low, dash, high = text.partition("-")
    if not dash or not low.isdecimal() or not high.isdecimal() or not 1024 <= int(low) <= int(high) <= 65535:
        raise ConfigError(f"{text!r} is not a port range: expected LOW-HIGH, from 1024 to 65535")
    return int(low), int(high)


def usable_cores() -> int:
    """CPU cores that this process and its tasks may use."""
    return len(os.sched_getaffinity(0))


def default_state_dir(port: int) -> Path:
    """Where the agent of a port keeps its state: below XDG_STATE_HOME, or ~/.local/state."""
    home = os.environ.get("XDG_STATE_HOME", "")
    base = Path(home) if home.startswith("/") else Path.home() / ".local" / "state"
    return base / "nhop" / f"agent-{port}"


def default_zygote_command() -> tuple[str, ...]:
    """The zygote of ``nhop_models``, in the interpreter that runs the agent."""
    return (sys.executable, "-P", "-m", "nhop_models.runtime.zygote")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """``lease_timeout``, ``orphan_limit`` and ``gpu_release_limit`` in seconds.

    Tasks end by themselves when no agent has lived for ``orphan_limit``, or for the shorter time that their
    coordinator asks for; a lease that is not started
    within ``lease_timeout`` is released; attempts of a study to which nobody has subscribed for
    ``abandon_limit`` are stopped and forgotten. A GPU on which an attempt is still seen
    ``gpu_release_limit`` after its end is quarantined. ``parent_pipe``: the agent ends when this
    descriptor does. ``advertise``: where tasks of other hosts reach those of this one; empty: at the
    address at which the agent listens, or where that is every interface, the first of its certificate.
    ``tls``: the agent's certificate; None: without TLS. ``task_user``: whom the tasks run as; None: the
    agent's own user.
    """

    listen: ListenAddress
    state_dir: Path
    slots: int = field(default_factory=usable_cores)
    ports: tuple[int, int] = DEFAULT_PORTS
    orphan_limit: float = 60.0
    lease_timeout: float = 30.0
    abandon_limit: float = 600.0
    gpu_release_limit: float = 10.0
    parent_pipe: int | None = None
    advertise: str = ""
    tls: Rotation | None = None
    task_user: TaskUser | None = None
    zygote_command: tuple[str, ...] = field(default_factory=default_zygote_command)
    gpus: GpuInventory = field(default_factory=NvmlInventory)
    bundle_limits: ArchiveLimits = field(default_factory=ArchiveLimits)

    @property
    def task_host(self) -> str:
        """The name or address at which tasks of other hosts reach those of this one."""
        named = self.tls.files.hosts if self.tls is not None and self.listen.is_wildcard else ()
        return self.advertise or next(iter(named), self.listen.task_host)

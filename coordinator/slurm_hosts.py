"""The nodes of a Slurm allocation as hosts: ``--hosts slurm:``."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

from coordinator.errors import HostsError, UsageError
from coordinator.hosts import DEFAULT_PORT, NEEDS_TLS, AgentAddress
from coordinator.listed_hosts import Listed, addresses_of

SLURM = "slurm:"
_WHERE = "--hosts slurm"
SCONTROL_LIMIT = 20.0
"""Seconds for scontrol, which asks nobody: it only expands a list."""


@dataclass(frozen=True, slots=True)
class SlurmHosts:
    """The nodes of the allocation that this process runs in, by their names; an agent on each at ``port``."""

    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> SlurmHosts:
        """From ``slurm:`` or ``slurm:PORT``; raises UsageError."""
        port = text.removeprefix(SLURM)
        if not port:
            return cls()
        if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
            raise UsageError(f"--hosts {text}: after 'slurm:' goes nothing, or the port of all agents")
        return cls(int(port))

    def read(self, *, refusal: str = NEEDS_TLS) -> tuple[AgentAddress, ...]:
        """The nodes; UsageError outside of an allocation, HostsError where Slurm cannot list them."""
        nodes = os.environ.get("SLURM_JOB_NODELIST")
        if not nodes:
            raise UsageError(
                f"{_WHERE}: SLURM_JOB_NODELIST is not set, so this runs in no Slurm allocation; "
                "start it by sbatch or salloc, or list the hosts in a file"
            )
        names = _expand(nodes)
        return addresses_of(_WHERE, [Listed(name, f"{name}:{self.port}") for name in names], refusal=refusal)

    def __str__(self) -> str:
        return SLURM if self.port == DEFAULT_PORT else f"{SLURM}{self.port}"


def _expand(nodes: str) -> list[str]:
    """The names in a list of nodes such as ``n[1-3,7]``."""
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", nodes],
            capture_output=True,
            text=True,
            check=False,
            timeout=SCONTROL_LIMIT,
        )
    except FileNotFoundError:
        raise UsageError(
            f"{_WHERE}: needs Slurm's command scontrol, which is not in PATH here; load its module, or "
            "list the hosts in a file"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostsError(f"{_WHERE}: scontrol does not list the nodes of {nodes!r}: {error}") from None
    names = done.stdout.split()
    if done.returncode or not names:
        why = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise HostsError(f"{_WHERE}: scontrol does not list the nodes of {nodes!r}: {why}")
    return names

"""What ``--hosts`` can name: a file, tags of EC2 instances, or the Slurm allocation around."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coordinator.ec2_hosts import EC2, Ec2Hosts
from coordinator.errors import UsageError
from coordinator.hosts import NEEDS_TLS, AgentAddress, HostSource, read_hosts
from coordinator.slurm_hosts import SLURM, SlurmHosts


def parse_source(text: str) -> HostSource:
    """What a text after ``--hosts`` names; UsageError where it cannot be that.

    A file whose name begins like another source is written with its folder: ``./ec2:x``.
    """
    if not text:  # an unset variable of a script
        raise UsageError("--hosts is empty; name a file that lists the hosts, one host[:port] a line")
    if text.startswith(EC2):
        return Ec2Hosts.parse(text)
    if text.startswith(SLURM):
        return SlurmHosts.parse(text)
    return HostsFile(Path(text))


@dataclass(frozen=True, slots=True)
class HostsFile:
    """A hosts file."""

    path: Path

    def read(self, *, refusal: str = NEEDS_TLS) -> tuple[AgentAddress, ...]:
        """As ``read_hosts``."""
        return read_hosts(self.path, refusal=refusal)

    def __str__(self) -> str:
        return str(self.path)

"""A Slurm cluster of the tests' own: Debian's slurmctld and slurmd, each node in a network namespace."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.network import Network

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")

CONFIGURATION = """
ClusterName=nhop
SlurmctldHost=control(10.77.0.2)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
KillWait=20
ReturnToService=2
SlurmctldPort=6817
SlurmdPort=6818
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    if os.geteuid() != 0:
        return "Slurm's daemons are started as root"
    absent = [name for name in COMMANDS if shutil.which(name, path=_path()) is None]
    return f"needs {', '.join(absent)}: apt install slurm-wlm munge" if absent else ""


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Slurm:
    """Nodes n1, n2, ... at the addresses of the network's hosts; ``folder`` holds all that they keep."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.folder = folder
        self.names = [f"n{number}" for number in range(1, len(network.namespaces))]
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """All daemons; returns once all nodes are idle."""
        (self.folder / "state").mkdir()
        for name in self.names:
            (self.folder / f"spool-{name}").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        addresses = {name: self.network.address(i) for i, name in enumerate(self.names, start=1)}
        nodes = "\n".join(f"NodeName={n} NodeAddr={a} CPUs=2 State=UNKNOWN" for n, a in addresses.items())
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(folder=self.folder, nodes=nodes))
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "hosts").write_text(
            "127.0.0.1 localhost\n10.77.0.2 control\n" + "".join(f"{a} {n}\n" for n, a in addresses.items())
        )
        files = {
            "--key-file": key,
            "--socket": self.folder / "munge.sock",
            "--pid-file": self.folder / "munged.pid",
            "--seed-file": self.folder / "munged.seed",
        }
        self._daemon("munged", "--foreground", "--force", *(w for pair in files.items() for w in pair))
        self.wait_for((self.folder / "munge.sock").exists, "munged")
        self._daemon(*self.at(0, "control"), "slurmctld", "-D")
        for number, name in enumerate(self.names, start=1):
            self._daemon(*self.at(number, name), "slurmd", "-D", "-N", name)
        self.wait_for(
            lambda: self.control("sinfo", "-h", "-o", "%T %D") == f"idle {len(self.names)}", "nodes"
        )

    def at(self, number: int, name: str) -> tuple[object, ...]:
        """What to put before a command so that it runs on a machine of that name, which knows the others."""
        there = (
            f"hostname {name} && mount --bind {self.folder}/hosts /etc/hosts && "
            'mount -t tmpfs none /sys/fs/cgroup && exec "$@"'
        )
        return (*self.network.inside(number), "unshare", "--uts", "--mount", "sh", "-c", there, "sh")

    def log(self) -> str:
        """The end of what the daemons say."""
        return (self.folder / "daemons.log").read_text()[-3000:]

    def control(self, *command: object, **environment: str) -> str:
        """What a command says that runs where the controller does."""
        done = subprocess.run(
            [str(word) for word in (*self.at(0, "control"), *command)],
            capture_output=True,
            text=True,
            check=False,
            env=self.environment | environment,
            cwd=self.folder,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{self.log()}"
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends all daemons, and what jobs have left."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        left = [pid for number in range(len(self.names) + 1) for pid in self.network.processes(number)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            self.wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), f"the end of {pid}")

    def _daemon(self, *command: object) -> None:
        log = (self.folder / "daemons.log").open("ab")
        with log:
            self._daemons.append(
                subprocess.Popen(
                    [str(word) for word in command],
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                )
            )


@contextmanager
def slurm_of(nodes: int) -> Iterator[Slurm]:
    """A cluster of that many nodes, of which nothing is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="nhop-slurm-") as folder, Network(nodes).made() as network:
        slurm = Slurm(network, Path(folder))
        try:
            slurm.start()
            yield slurm
        finally:
            slurm.stop()

"""deploy/slurm/nhop.sbatch as a user submits it, on a Slurm of two nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import network
from tests import slurm
from tests.e2e.conftest import ROOT, SCRIPTS, Commands, summary
from tests.slurm import Slurm, slurm_of

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.deploy,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing()),
    pytest.mark.skipif(not network.usable(), reason="network namespaces need root and iproute2"),
]


class Job:
    """The script's job in a cluster, of a user whose home is ``home``."""

    def __init__(self, cluster: Slurm, commands: Commands) -> None:
        self.cluster = cluster
        self.commands = commands
        self.home, self.temporary = cluster.folder / "home", cluster.folder / "tmp"
        self.output, self._log = commands.folder / "out", commands.folder / "log"
        self._id = ""

    def submit(self, *arguments: object) -> None:
        for folder in (self.home, self.temporary):
            folder.mkdir()
        environment = self.commands.environment | {
            "PATH": f"{SCRIPTS}:{self.cluster.environment['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
        }
        environment.pop("SLURM_CONF", None)
        said = self.cluster.control(
            *("sbatch", "--parsable", "--nodes=2", "--cpus-per-task=2", "--output", self._log),
            *(ROOT / "deploy/slurm/nhop.sbatch", "--output", self.output, *arguments),
            **environment,
        )
        self._id = said.partition(";")[0]

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def wait_for_its_end(self) -> str:
        """Its state as Slurm tells it."""
        queue = ("squeue", "-h", "-j", self._id, "-t", "all", "-o", "%T")
        busy = ("PENDING", "RUNNING", "COMPLETING", "")
        self.cluster.wait_for(lambda: self.cluster.control(*queue) not in busy, "the job", 120)
        return self.cluster.control(*queue)

    def cancel(self) -> None:
        self.cluster.control("scancel", self._id)

    def check_nothing_is_left(self) -> None:
        self.cluster.wait_for(lambda: not self.commands.processes(), "the end of all processes")
        assert list(self.temporary.iterdir()) == [], "an agent's state is left"
        jobs = self.home / ".cache/nhop/jobs"
        assert list(jobs.iterdir()) == [], "keys are left"


@pytest.fixture
def job(commands: Commands) -> Iterator[Job]:
    with slurm_of(2) as cluster:
        yield Job(cluster, commands)


STUDY = ("cluster={ps: 1, workers: 2}", "placement=spread", "opt_tolerance=0")


def test_a_job_is_a_study_on_all_its_nodes_with_tls(job: Job) -> None:
    job.submit("with", "opt_stages=[[100,3]]", *STUDY)
    assert job.wait_for_its_end() == "COMPLETED", job.log
    assert summary(job.output)["trials"]["completed"] == 3, job.log
    assert "(2 slots, TLS)" in job.log
    hosts = (job.output / "trials.csv").read_text()
    assert "n1:" in hosts and "n2:" in hosts
    job.check_nothing_is_left()


def test_a_cancelled_job_keeps_its_results_and_leaves_nothing_else(job: Job) -> None:
    job.submit("with", "opt_stages=[[100,1000]]", *STUDY)
    job.cluster.wait_for(lambda: " completed, loss" in job.log, "a trial", 120)
    job.cancel()
    assert job.wait_for_its_end() == "CANCELLED", job.log
    result = summary(job.output)
    assert result["status"] == "stopped"
    assert result["trials"]["completed"] >= 1, job.log
    assert (job.output / "best_model.keras").exists()
    job.check_nothing_is_left()


def test_a_study_that_cannot_run_fails_the_job(job: Job) -> None:
    job.submit("with", "no_such_key=1")
    assert job.wait_for_its_end() == "FAILED"
    assert "no_such_key" in job.log
    job.check_nothing_is_left()

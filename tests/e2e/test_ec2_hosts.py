"""A study on hosts that EC2 lists, as moto plays it, with addresses of this machine."""

from __future__ import annotations

import signal

import pytest

from tests.e2e.conftest import Commands, summary
from tests.fakes.aws import Instances, aws_server

pytestmark = [pytest.mark.e2e, pytest.mark.deploy, pytest.mark.timeout(180)]

STUDY = ("with", "opt_stages=[[200,24]]", "cluster={ps: 0, workers: 1}", "opt_tolerance=0")


def test_instances_with_a_tag_are_the_hosts_and_are_listed_anew_on_a_signal(commands: Commands) -> None:
    with aws_server() as server:
        instances = Instances(
            "127.77.0.0/16",
            endpoint_url=server.endpoint,
            region_name="us-east-1",
            aws_access_key_id="an-id",
            aws_secret_access_key="a-secret",
        )
        commands.environment |= server.environment
        hosts = f"ec2:nhop={instances.tag}"
        refused = commands.coordinator("--hosts", hosts, "--dry-run")
        assert (refused.returncode, refused.stderr) == (
            3,
            f"nhop-coordinator: --hosts {hosts}: no running instance has these tags; look at the tags, the "
            "region and the account\n",
        )
        for number in (1, 2):
            commands.agent(
                *("--listen", f"127.77.0.{10 + number}:7001", "--slots", 1),
                *("--state-dir", commands.folder / str(number)),
            )
        instances.run("127.77.0.11")
        run = commands.start("nhop-coordinator", "--hosts", hosts, "--output", "out", *STUDY)
        assert run.stdout is not None
        said = []
        for line in run.stdout:  # until it trains on the only host
            said.append(line)
            if "trial 1 completed" in line:
                break
        instances.run("127.77.0.12", nhop_slots=1)
        run.send_signal(signal.SIGHUP)
        out, err = run.communicate(timeout=100)
        assert run.returncode == 0, err
        assert "127.77.0.12" not in "".join(said)
        result = summary(commands.folder / "out")
        assert result["trials"]["completed"] == 24, out
        assert "127.77.0.12:7001" in (commands.folder / "out" / "trials.csv").read_text()

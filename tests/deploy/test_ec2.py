import base64
import hashlib
import importlib.util
import os
import shlex
import subprocess
from pathlib import Path

import boto3
import pytest
from click.testing import CliRunner
from moto import mock_aws

from agent.config import DEFAULT_PORTS
from coordinator.host_sources import parse_source
from coordinator.hosts import DEFAULT_PORT
from tests import containers
from tests.deploy.manifests import ROOT

pytestmark = pytest.mark.deploy

FOLDER = ROOT / "deploy" / "ec2"
PACKAGE = "https://example.org/nhop-0.1.0-py3-none-any.whl"
SHA256 = hashlib.sha256(b"the wheel\n").hexdigest()


@pytest.fixture
def launch():
    spec = importlib.util.spec_from_file_location("launch", FOLDER / "launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ec2(monkeypatch):
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_EC2"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        client = boto3.client("ec2")
        client.create_key_pair(KeyName="mine")
        yield client


@pytest.fixture
def run(launch, ec2):
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]

    def run(*more):
        words = ["--image", image, "--subnet", subnet, "--type", "m5.large", "--key", "mine"]
        return CliRunner().invoke(launch.main, [*words, "--package", PACKAGE, "--sha256", SHA256, *more])

    return run


def instances(ec2):
    return [i for page in ec2.describe_instances()["Reservations"] for i in page["Instances"]]


def groups(ec2):
    return {
        group["GroupName"]: group
        for group in ec2.describe_security_groups()["SecurityGroups"]
        if group["GroupName"].startswith("nhop")
    }


def test_instances_are_hosts_that_the_coordinator_finds(run, ec2):
    done = run("--count", "3", "--tag", "nhop=deep")
    assert done.exit_code == 0, done.output
    started = instances(ec2)
    assert len(started) == 3
    addresses = {f"{instance['PrivateIpAddress']}:7001" for instance in started}
    assert {host.target for host in parse_source("ec2:nhop=deep").read(refusal="")} == addresses
    assert "./certificates.sh ec2:nhop=deep" in done.output


def test_instances_have_no_role_no_secret_and_metadata_by_session_only(run, ec2):
    assert run().exit_code == 0
    (instance,) = instances(ec2)
    assert "IamInstanceProfile" not in instance
    options = instance["MetadataOptions"]
    assert (options["HttpTokens"], options["HttpPutResponseHopLimit"]) == ("required", 1)
    assert [group["GroupName"] for group in instance["SecurityGroups"]] == ["nhop-agent"]
    encoded = ec2.describe_instance_attribute(InstanceId=instance["InstanceId"], Attribute="userData")
    data = base64.b64decode(encoded["UserData"]["Value"]).decode()
    assert data.startswith(f"#!/bin/sh\nNHOP_PACKAGE={PACKAGE}\nNHOP_SHA256={SHA256}\n")
    assert "PRIVATE KEY" not in data and ".key" not in data


def test_only_who_has_to_gets_in(run, ec2):
    for _ in range(2):  # what is there already is used
        assert run().exit_code == 0
    found = groups(ec2)
    agent, coordinator = found["nhop-agent"], found["nhop-coordinator"]
    rules = {
        (pair["GroupId"], rule["FromPort"], rule["ToPort"])
        for rule in agent["IpPermissions"]
        for pair in rule["UserIdGroupPairs"]
    }
    assert rules == {
        (coordinator["GroupId"], 22, 22),
        (coordinator["GroupId"], DEFAULT_PORT, DEFAULT_PORT),
        (agent["GroupId"], *DEFAULT_PORTS),
    }
    assert not any(rule["IpRanges"] or rule["Ipv6Ranges"] for rule in agent["IpPermissions"])
    assert coordinator["IpPermissions"] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--sha256", ""], "needs its SHA-256"), (["--sha256", "12"], "64"), (["--tag", "train"], "TAG=VALUE")],
)
def test_wrong_usage(run, ec2, options, words):
    done = run(*options)
    assert done.exit_code == 2
    assert words in done.output
    assert instances(ec2) == []


def test_an_error_of_aws_is_one_line(run):
    done = run("--subnet", "subnet-00000000")
    assert done.exit_code == 1
    (line,) = done.output.splitlines()
    assert line.startswith("launch.py: ") and "subnet-00000000" in line


def test_what_the_variables_hold_stays_a_word(launch):
    data = launch.user_data(NHOP_PACKAGE="a'b; $(reboot)", NHOP_ALSO="")
    line = data.splitlines()[1]
    assert shlex.split(line) == ["NHOP_PACKAGE=a'b; $(reboot)"]
    assert "NHOP_ALSO=" not in data


# --- on an instance -----------------------------------------------------------------------------

own_root = pytest.mark.skipif(not containers.usable(), reason="needs root and overlay mounts")


class Machine:
    """A copy of this machine's root that is thrown away, with commands that only write down their words."""

    def __init__(self, folder):
        self.folder = folder
        self.binaries = folder / "bin"
        self.binaries.mkdir()
        self.stub("apt-get", "systemctl", "systemd-sysusers")
        self.stub("sudo", then='exec "$@"')

    def stub(self, *names, then=""):
        for name in names:
            path = self.binaries / name
            path.write_text(f'#!/bin/sh\necho {name} "$*" | head -n 1 >> {self.folder}/calls\n{then}\n')
            path.chmod(0o755)

    @property
    def calls(self):
        return [line.strip() for line in (self.folder / "calls").read_text().splitlines()]

    def run(self, script, **environment):
        path = f"{self.binaries}:{os.environ['PATH']}:/usr/sbin:/sbin"
        return subprocess.run(
            containers.in_own_root(self.folder, script),
            capture_output=True, text=True, check=False, env={**os.environ, "PATH": path, **environment},
        )  # fmt: skip


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def installing(machine):
    """Runs the user data; the wheel that it fetches has this content."""
    machine.stub("python3", then="mkdir -p $3/bin; for n in pip nhop-agent; do cp $0.made $3/bin/$n; done")
    made = machine.binaries / "python3.made"
    made.write_text(f'#!/bin/sh\necho $(basename $0) "$@" >> {machine.folder}/calls\n')
    made.chmod(0o755)

    def run(content, **variables):
        machine.stub("curl", then=f'while [ "$1" != --output ]; do shift; done; echo "{content}" > "$2"')
        return machine.run(["sh", str(FOLDER / "user-data.sh")], **variables)

    return run


@own_root
def test_user_data_installs_the_wheel_and_the_service(machine, installing):
    done = installing(
        "the wheel", NHOP_PACKAGE=PACKAGE, NHOP_SHA256=SHA256, NHOP_ALSO="tensorflow[and-cuda] x"
    )
    assert done.returncode == 0, done.stderr
    calls = [call for call in machine.calls if not call.startswith(("apt-get", "curl"))]
    install = calls.pop(1).split()
    assert install[:3] == ["pip", "install", "--no-cache-dir"]
    assert install[3].endswith("/nhop-0.1.0-py3-none-any.whl")
    assert install[4:] == ["tensorflow[and-cuda]", "x"]
    assert calls == [
        "python3 -m venv /opt/nhop",
        "nhop-agent install --listen 0.0.0.0:7001",
        "systemd-sysusers",
        "systemctl daemon-reload",
        "systemctl enable nhop-agent.service",
    ]


@own_root
def test_another_wheel_is_not_installed(machine, installing):
    done = installing("another wheel", NHOP_PACKAGE=PACKAGE, NHOP_SHA256=SHA256)
    assert done.returncode != 0
    assert "WARNING: 1 computed checksum did NOT match" in done.stderr
    assert not any(call.startswith("pip") for call in machine.calls)


@own_root
def test_certificates_go_to_their_instances_alone(machine, tmp_path):
    (tmp_path / "hosts.txt").write_text("10.0.0.11\n10.0.0.12\n10.0.0.13\n")
    certs, seen = tmp_path / "certs", tmp_path / "seen"
    (tmp_path / "remote").write_text(f"""
useradd --system nhop
sh -c "$2"
cd /etc/nhop/tls
stat -c "$1 %n %U %a" . * >> {seen}
cat tls.crt >> {seen}.$1
""")
    inside = shlex.join(containers.in_own_root(tmp_path, ["sh", "-e", str(tmp_path / "remote")]))
    machine.stub("ssh", then=f'[ "$1" != 10.0.0.12 ] || exit 255\nexec {inside} "$@"')
    path = f"{machine.binaries}:{ROOT}/.venv/bin:{os.environ['PATH']}:/usr/sbin:/sbin"
    done = subprocess.run(
        [FOLDER / "certificates.sh", tmp_path / "hosts.txt", certs],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        1,
        "certificates.sh: failed for 10.0.0.12; run it again once these can be reached and are installed\n",
    )
    lines = seen.read_text().splitlines()
    for host in ("10.0.0.11", "10.0.0.13"):
        own = [line.removeprefix(f"{host} ") for line in lines if line.startswith(host)]
        assert own == [". nhop 700", *(f"{name} nhop 600" for name in ("ca.crt", "tls.crt", "tls.key"))]
        assert Path(f"{seen}.{host}").read_bytes() == (certs / "agents" / host / "tls.crt").read_bytes()
    assert machine.calls.count("systemctl start nhop-agent.service") == 2


@own_root
def test_nothing_is_copied_where_nothing_is_issued(machine, tmp_path):
    (tmp_path / "hosts.txt").write_text("no such:line:x\n")
    machine.stub("ssh")
    path = f"{machine.binaries}:{ROOT}/.venv/bin:{os.environ['PATH']}"
    command = [FOLDER / "certificates.sh", tmp_path / "hosts.txt", tmp_path / "certs"]
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "hosts.txt:1" in done.stderr
    assert not (tmp_path / "calls").exists()

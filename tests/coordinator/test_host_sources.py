from pathlib import Path

import pytest

from coordinator.ec2_hosts import Ec2Hosts
from coordinator.errors import HostsError, UsageError
from coordinator.host_sources import HostsFile, parse_source
from coordinator.hosts import AgentAddress, HostPolicy
from coordinator.slurm_hosts import SlurmHosts


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hosts.txt", HostsFile(Path("hosts.txt"))),
        ("./ec2:x", HostsFile(Path("./ec2:x"))),
        ("/a/slurm:", HostsFile(Path("/a/slurm:"))),
        ("slurm", HostsFile(Path("slurm"))),
        ("slurm:", SlurmHosts()),
        ("slurm:7101", SlurmHosts(7101)),
        ("ec2:nhop=train", Ec2Hosts((("nhop", "train"),))),
        ("ec2:a:b=c=d,e=f g", Ec2Hosts((("a:b", "c=d"), ("e", "f g")))),
    ],
)
def test_sources(text, source):
    assert parse_source(text) == source
    assert text.removeprefix("./") == str(source)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "--hosts is empty"),
        ("ec2:", "ec2:nhop=train"),
        ("ec2:train", "'train' is not TAG=VALUE"),
        ("ec2:=train", "'=train' is not TAG=VALUE"),
        ("ec2:nhop=", "'nhop=' is not TAG=VALUE"),
        ("ec2:a=b,", "'' is not TAG=VALUE"),
        ("ec2:a=b,a=c", "the tag a is given twice"),
        ("slurm:n1", "the port of all agents"),
        ("slurm:0", "the port of all agents"),
        ("slurm:65536", "the port of all agents"),
    ],
)
def test_what_is_no_source(text, words):
    with pytest.raises(UsageError, match=words) as raised:
        parse_source(text)
    assert "\n" not in str(raised.value)


def test_a_file_with_the_name_of_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ec2:x").write_text("localhost:7002\n")
    assert parse_source("./ec2:x").read() == (AgentAddress("localhost:7002"),)


@pytest.mark.parametrize("source", [HostsFile(Path("hosts.txt")), SlurmHosts(), Ec2Hosts((("a", "b"),))])
def test_messages_name_the_source(source):
    with pytest.raises(UsageError, match=f"--min-hosts 2: {source} lists 1"):
        HostPolicy(fewest=2, source=source).check([AgentAddress("localhost:7001")])


# --- Slurm --------------------------------------------------------------------------------------


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Sets what a scontrol does that is the only command in PATH."""

    def become(script):
        path = tmp_path / "bin" / "scontrol"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent))

    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    return become


def test_the_nodes_of_an_allocation(scontrol):
    scontrol('[ "$*" = "show hostnames n[1-2]" ] && echo n1 && echo n2')
    assert [host.target for host in SlurmHosts().read(refusal="")] == ["n1:7001", "n2:7001"]
    assert [host.target for host in SlurmHosts(7102).read(refusal="")] == ["n1:7102", "n2:7102"]


def test_nodes_need_tls_like_other_hosts(scontrol):
    scontrol("echo n1; echo n2")
    with pytest.raises(UsageError, match=r"--hosts slurm: n1: .*TLS.*; 1 more cannot be used either"):
        SlurmHosts().read()


@pytest.mark.parametrize("value", [None, ""])
def test_outside_of_an_allocation(scontrol, monkeypatch, value):
    scontrol("echo n1")
    if value is None:
        monkeypatch.delenv("SLURM_JOB_NODELIST")
    else:
        monkeypatch.setenv("SLURM_JOB_NODELIST", value)
    with pytest.raises(UsageError, match="no Slurm allocation; start it by sbatch or salloc"):
        SlurmHosts().read(refusal="")


def test_without_scontrol(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="scontrol, which is not in PATH"):
        SlurmHosts().read(refusal="")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'no\nsuch list' >&2; exit 1", "'n\\[1-2\\]': no such list"),
        ("exit 3", "exit status 3"),
        ("exit 0", "exit status 0"),
        ("while :; do :; done", "timed out after 0.2 seconds"),
    ],
)
def test_a_scontrol_that_does_not_list(scontrol, monkeypatch, script, words):
    monkeypatch.setattr("coordinator.slurm_hosts.SCONTROL_LIMIT", 0.2 if "while" in script else 20.0)
    scontrol(script)
    with pytest.raises(HostsError, match=words) as raised:
        SlurmHosts().read(refusal="")
    assert "\n" not in str(raised.value)

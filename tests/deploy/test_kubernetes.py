import os
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from agent.cli import main as agent_command
from agent.config import parse_port_range
from coordinator.cli import command as coordinator_command
from coordinator.config import load
from coordinator.hosts import DEFAULT_PORT, read_hosts
from tests.deploy.manifests import FOLDER, KUSTOMIZATION, ROOT, WORKLOADS, find, manifests, pod

VERSIONS = ["1.30", kubernetes_validate.latest_version()]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", manifests(), ids=lambda m: f"{m['kind']}-{m['metadata']['name']}")
def test_the_schema(manifest, version):
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, whose client renders the folder")
def test_kubectl_renders_the_folder():
    done = subprocess.run(["kubectl", "kustomize", FOLDER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rendered = list(yaml.safe_load_all(done.stdout))
    assert {each["kind"] for each in rendered} == {each["kind"] for each in manifests()} | {"ConfigMap"}
    for each in rendered:
        kubernetes_validate.validate(each, VERSIONS[-1], strict=True)
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "nhop"


@pytest.mark.parametrize(("kind", "name"), WORKLOADS)
def test_pods_keep_to_the_restricted_standard_and_to_a_read_only_root(kind, name):
    namespace = find("Namespace", "nhop")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    spec = pod(kind, name)
    context = spec["securityContext"]
    assert context["runAsNonRoot"] and context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"]
    assert f"useradd --uid {context['runAsUser']} " in (FOLDER / "Dockerfile").read_text()
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert all("hostPath" not in volume for volume in spec["volumes"])
    for container in (*spec["initContainers"], *spec["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"].keys() == {"requests", "limits"}


@pytest.mark.parametrize(("kind", "name"), WORKLOADS)
def test_everything_that_pods_mount_is_there(kind, name):
    spec = pod(kind, name)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    containers = [*spec["initContainers"], *spec["containers"]]
    mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}
    assert mounted == volumes.keys()
    maps = {each["name"] for each in KUSTOMIZATION["configMapGenerator"]}
    assert {v["configMap"]["name"] for v in volumes.values() if "configMap" in v} <= maps
    for each in KUSTOMIZATION["configMapGenerator"]:
        assert all((FOLDER / file.rpartition("=")[2]).is_file() for file in each["files"])
    images = {image["name"] for image in KUSTOMIZATION["images"]}
    assert {container["image"] for container in containers} == images
    main = {mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
    assert "secret" not in main, "the keys of other pods are for nobody"


def test_names_labels_and_ports_agree():
    agents, service = find("StatefulSet", "nhop-agent"), find("Service", "nhop-agent")
    labels = agents["spec"]["template"]["metadata"]["labels"]
    assert agents["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    assert agents["spec"]["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    (container,) = agents["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == service["spec"]["ports"][0]["port"] == DEFAULT_PORT
    names = [f"nhop-agent-{number}.nhop-agent:7001" for number in range(agents["spec"]["replicas"])]
    assert [host.target for host in read_hosts(FOLDER / "hosts.txt", refusal="")] == names


def test_policies_select_the_pods_and_open_what_these_use():
    agent, coordinator = (find(*each)["spec"]["template"]["metadata"]["labels"] for each in WORKLOADS)
    assert agent != coordinator
    of_agents, of_coordinator = (
        find("NetworkPolicy", name)["spec"] for name in ("nhop-agent", "nhop-coordinator")
    )
    assert of_agents["podSelector"]["matchLabels"] == agent
    assert of_coordinator["podSelector"]["matchLabels"] == coordinator
    for policy in (of_agents, of_coordinator):
        assert policy["policyTypes"] == ["Ingress", "Egress"]
    (option,) = (a for a in pod(*WORKLOADS[0])["containers"][0]["args"] if a.startswith("--port-range="))
    low, high = parse_port_range(option.partition("=")[2])
    agent_port = [{"port": DEFAULT_PORT, "protocol": "TCP"}]
    task_ports = [{"port": low, "endPort": high, "protocol": "TCP"}]

    def peers(rules, end):
        return [(peer["podSelector"]["matchLabels"], r["ports"]) for r in rules for peer in r[end]]

    assert peers(of_agents["ingress"], "from") == [(coordinator, agent_port), (agent, task_ports)]
    assert "ingress" not in of_coordinator
    assert peers(of_agents["egress"], "to")[0] == (agent, task_ports)
    assert peers(of_coordinator["egress"], "to")[0] == (agent, agent_port)
    for policy in (of_agents, of_coordinator):
        (dns,) = policy["egress"][1:]
        assert {port["port"] for port in dns["ports"]} == {53}


@pytest.mark.parametrize(
    ("workload", "command"), [(WORKLOADS[0], agent_command), (WORKLOADS[1], coordinator_command)]
)
def test_the_commands_know_their_options(workload, command):
    (container,) = pod(*workload)["containers"]
    options = [word.partition("=")[0] for word in container["args"] if word.startswith("--")]
    known = CliRunner().invoke(command, ["--help"], terminal_width=200, max_content_width=200).output
    assert options and all(re.search(rf"{option}\b", known) for option in options)


def test_the_example_is_a_study():
    load(FOLDER / "example-study.yaml", (), remote=True)


@pytest.fixture
def kubectl(tmp_path):
    """A folder with a kubectl that keeps what it was called with, and the words of its calls."""
    stub = tmp_path / "bin" / "kubectl"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\necho kubectl "$@" >> {tmp_path}/calls\n')
    stub.chmod(0o755)

    def calls():
        return [line.split() for line in (tmp_path / "calls").read_text().splitlines()]

    return stub.parent, calls


def test_every_pod_gets_a_certificate_that_can_be_renewed(kubectl, tmp_path):
    binaries, calls = kubectl
    scripts = ROOT / ".venv" / "bin"
    environment = os.environ | {"PATH": f"{binaries}:{scripts}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    certs = tmp_path / "certs"
    for _ in range(2):
        command = [FOLDER / "certificates.sh", certs]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
    agents, coordinator = [words for words in calls() if "create" in words][:2]
    for words, workload in ((agents, WORKLOADS[0]), (coordinator, WORKLOADS[1])):
        (secret,) = (v["secret"]["secretName"] for v in pod(*workload)["volumes"] if "secret" in v)
        assert words[1:7] == ["-n", "nhop", "create", "secret", "generic", secret]
    files = dict(word.removeprefix("--from-file=").split("=") for word in agents if "--from-file" in word)
    assert sorted(files) == [
        "ca.crt",
        *(f"nhop-agent-{n}.{kind}" for n in range(3) for kind in ("crt", "key")),
    ]
    assert all(Path(path).is_file() for path in files.values())
    assert any("tls.key=" in word and "/coordinators/" in word for word in coordinator)

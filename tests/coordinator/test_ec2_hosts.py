"""EC2 as moto plays it; and what goes wrong, from a server that says just that."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from botocore.client import BaseClient
from moto import mock_aws

from coordinator import cli, ec2_hosts
from coordinator.ec2_hosts import Ec2Hosts
from coordinator.errors import HostsError, UsageError
from tests.fakes.aws import Instances

NETWORK = "10.77.0.0/16"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "an-id",
    "AWS_SECRET_ACCESS_KEY": "a-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}


pytestmark = pytest.mark.deploy  # moto takes seconds for each


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (
        "AWS_PROFILE",
        "AWS_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_EC2",
        "AWS_SESSION_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def instances():
    with mock_aws():
        yield Instances(NETWORK)


def read(instances, *more):
    found = Ec2Hosts((("nhop", instances.tag), *more)).read(refusal="")
    return [(host.target, host.slots, host.gpus) for host in found]


def test_running_instances_with_all_tags_in_the_order_of_their_addresses(instances):
    instances.run("10.77.3.10", team="a")
    instances.run("10.77.3.9", team="a")
    instances.run("10.77.3.8", team="b")
    (stopped,) = instances.run("10.77.3.7", team="a")
    instances.ec2.stop_instances(InstanceIds=[stopped])
    (gone,) = instances.run("10.77.3.6", team="a")
    instances.ec2.terminate_instances(InstanceIds=[gone])
    assert read(instances, ("team", "a")) == [("10.77.3.9:7001", None, None), ("10.77.3.10:7001", None, None)]


def test_tags_of_an_instance_stand_for_its_line(instances):
    instances.run("10.77.3.9", nhop_port=7101, nhop_slots=4, nhop_gpus=0)
    assert read(instances) == [("10.77.3.9:7101", 4, 0)]


@pytest.mark.parametrize(
    ("tag", "value", "words"),
    [
        ("nhop_port", "high", "the port of '10.77.3.9:high' must be"),
        ("nhop_slots", "0", "slots must be a whole number, at least 1"),
        ("nhop_slots", "4 5", "unknown word '5'"),
    ],
)
def test_a_wrong_tag_is_said_with_the_instance(instances, tag, value, words):
    (name,) = instances.run("10.77.3.9", **{tag: value})
    with pytest.raises(UsageError, match=f"--hosts ec2:nhop={instances.tag}: {name}: {words}"):
        read(instances)


def test_many_instances_come_on_many_pages(instances, monkeypatch):
    monkeypatch.setattr(ec2_hosts, "PAGE", 5)
    calls = []
    call = BaseClient._make_api_call
    monkeypatch.setattr(BaseClient, "_make_api_call", lambda *a: calls.append(a[1]) or call(*a))
    for _ in range(12):  # moto counts what is started together as one
        instances.run(count=2)
    calls.clear()
    assert len({target for target, _, _ in read(instances)}) == 24
    assert calls == ["DescribeInstances"] * 3


def test_a_listing_has_an_end(instances, monkeypatch):
    monkeypatch.setattr(ec2_hosts, "LISTING_LIMIT", -1.0)
    instances.run("10.77.3.9")
    with pytest.raises(HostsError, match="has not listed all instances after"):
        read(instances)


def test_no_instance(instances):
    with pytest.raises(HostsError, match=f"ec2:nhop={instances.tag}: no running instance has these tags"):
        read(instances)


def test_instances_need_tls_like_other_hosts(instances):
    instances.run(count=3)
    with pytest.raises(UsageError, match=r"i-\w+: 10\.77\.\S+: .*TLS.*; 2 more cannot be used either"):
        Ec2Hosts((("nhop", instances.tag),)).read()


def test_two_instances_of_one_address(instances):
    first = instances.run("10.77.3.9")
    other = Instances(NETWORK)
    other.tag = instances.tag
    names = [*first, *other.run("10.77.3.9")]
    with pytest.raises(UsageError, match=r"has the same address as i-\w+, 10.77.3.9:7001") as raised:
        read(instances)
    assert all(name in str(raised.value) for name in names)


@pytest.mark.parametrize(
    ("instance", "address"),
    [
        ({"PrivateIpAddress": "10.0.0.1", "Ipv6Address": "fd00::1"}, "10.0.0.1"),
        ({"Ipv6Address": "fd00::1"}, "fd00::1"),
        ({"NetworkInterfaces": [{}, {"Ipv6Addresses": [{"Ipv6Address": "fd00::2"}]}]}, "fd00::2"),
        ({}, ""),
    ],
)
def test_private_ipv4_or_else_ipv6(instance, address):
    assert ec2_hosts._address(instance) == address


def test_ipv6_hosts_are_written_in_brackets_and_one_without_an_address_is_said():
    source = Ec2Hosts((("a", "b"),))
    assert ec2_hosts._listed(source, {"InstanceId": "i", "Ipv6Address": "fd00::1"}).line == "[fd00::1]:7001"
    with pytest.raises(HostsError, match="i: has no private IPv4 and no IPv6 address"):
        ec2_hosts._listed(source, {"InstanceId": "i"})


# --- what goes wrong ----------------------------------------------------------------------------


def refuse(words):
    """What reading raises, which says ``words`` in one line."""
    with pytest.raises((UsageError, HostsError), match=words) as raised:
        Ec2Hosts((("a", "b"),)).read(refusal="")
    assert "\n" not in str(raised.value)
    return raised.type


def test_without_boto3(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert refuse(r"needs the package boto3; install it with pip install 'nhop\[ec2\]'") is UsageError


def test_without_a_region(monkeypatch):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert refuse("no AWS region is set; set AWS_DEFAULT_REGION") is UsageError


def test_without_credentials(monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert refuse("no AWS credentials are found; .* ec2:DescribeInstances") is UsageError


def test_with_a_profile_that_does_not_exist(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert refuse("nobody") is UsageError


@pytest.fixture
def answering(monkeypatch):
    """Sets the error with which EC2 answers, None: not at all; returns the requests that it had."""
    servers = []

    def start(status, code):
        requests, stopping = [], threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                requests.append(self.path)
                self.rfile.read(int(self.headers["Content-Length"]))
                if code is None:
                    stopping.wait(60)
                    return
                error = f"<Error><Code>{code}</Code><Message>Not\nnow.</Message></Error>"
                body = f"<Response><Errors>{error}</Errors><RequestID>1</RequestID></Response>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread, stopping))
        monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", f"http://127.0.0.1:{server.server_port}")
        return requests

    yield start
    for server, thread, stopping in servers:
        stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("status", "code", "kind", "words", "tries"),
    [
        (
            403,
            "UnauthorizedOperation",
            UsageError,
            r"refuses .* \(UnauthorizedOperation: Not now\.\); .*right",
            1,
        ),
        (401, "AuthFailure", UsageError, "refuses to list instances", 1),
        (400, "InvalidParameterValue", HostsError, r"does not list instances \(InvalidParameterValue", 1),
        (503, "RequestLimitExceeded", HostsError, "too many requests .* try again", ec2_hosts.TRIES),
        (503, "Unavailable", HostsError, r"does not list instances \(Unavailable", ec2_hosts.TRIES),
    ],
)
def test_refusals(answering, status, code, kind, words, tries):
    requests = answering(status, code)
    assert refuse(words) is kind
    assert len(requests) == tries


def test_a_service_that_does_not_answer(answering, monkeypatch):
    monkeypatch.setattr(ec2_hosts, "CALL_LIMITS", {"connect_timeout": 0.2, "read_timeout": 0.2})
    requests = answering(200, None)
    assert refuse("EC2 cannot be reached: .*; look at the network and the region") is HostsError
    assert len(requests) == ec2_hosts.TRIES


def test_a_service_that_is_not_there(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", "http://127.0.0.1:9")
    assert refuse("EC2 cannot be reached") is HostsError


@pytest.mark.parametrize(("code", "status"), [("AuthFailure", 2), ("RequestLimitExceeded", 3)])
def test_the_command_says_it_in_one_line(answering, capsys, code, status):
    answering(503 if status == 3 else 401, code)
    assert cli.run(["--hosts", "ec2:a=b", "--dry-run"]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nhop-coordinator: --hosts ec2:a=b: ")

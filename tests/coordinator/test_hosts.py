from __future__ import annotations

import pytest

from coordinator.domain import Cluster
from coordinator.errors import HostsError, UsageError
from coordinator.hosts import (
    AgentAddress,
    Inventory,
    Usable,
    is_name,
    parse_hosts,
    usable,
    usable_slots,
    workers_on,
)
from nhop._listening import is_local


def targets(text):
    return [address.target for address in parse_hosts(text, "hosts.txt")]


def problems(text):
    with pytest.raises(UsageError) as error:
        parse_hosts(text, "hosts.txt")
    return str(error.value).splitlines()


def test_ports_default_to_7001():
    assert targets("localhost\n127.0.0.1:7002\n") == ["localhost:7001", "127.0.0.1:7002"]


def test_all_of_loopback_is_this_machine():
    assert targets("127.0.0.2\n127.8.9.10:7002") == ["127.0.0.2:7001", "127.8.9.10:7002"]


def test_ipv6_is_written_in_brackets():
    assert targets("[::1]\n[::1]:7002") == ["[::1]:7001", "[::1]:7002"]


def test_unix_sockets():
    assert targets("unix:/run/a.sock") == ["unix:/run/a.sock"]


def test_comments_and_empty_lines():
    assert targets("# all\n\nlocalhost:7001 # this one\n") == ["localhost:7001"]


def test_slots_and_gpus():
    assert parse_hosts("localhost slots=4 gpus=0", "h") == (AgentAddress("localhost:7001", 4, 0),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("localhost:port", "port"),
        ("localhost:0", "port"),
        ("localhost:65536", "port"),
        ("localhost:", "port"),
        ("::1", "brackets"),
        ("localhost slots=0", "slots must be a whole number, at least 1"),
        ("localhost slots=x", "slots"),
        ("localhost slots=1 slots=2", "twice"),
        ("localhost cores=2", "unknown word 'cores=2'"),
        ("10.0.0.7", "TLS"),
        ("gpu-node.example:7001", "TLS"),
        ("unix:", "no path"),
    ],
)
def test_a_bad_line_is_named(line, message):
    (problem,) = problems(f"localhost:9999\n{line}\n")
    assert problem.startswith("hosts.txt:2: ")
    assert message in problem


# --- hosts off this machine ---------------------------------------------------------------------


def far(text):
    return [address.target for address in parse_hosts(text, "hosts.txt", refusal="")]


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("10.0.0.7", "10.0.0.7:7001"),
        ("10.0.0.7:7002 slots=2", "10.0.0.7:7002"),
        ("gpu-node_1.example.", "gpu-node_1.example.:7001"),
        ("[fd00::7]", "[fd00::7]:7001"),
        ("[::ffff:10.0.0.7]:1", "[::ffff:10.0.0.7]:1"),
        ("localhost", "localhost:7001"),
    ],
)
def test_with_consent_hosts_of_a_network_may_be_named(line, target):
    assert far(line) == [target]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0.0.0.0", "is no host's address"),
        ("0x0", "is no host's address"),
        ("[::ffff:0.0.0.0]", "is no host's address"),
        ("[::]", "is no host's address"),
        ("224.0.0.1", "is no host's address"),
        ("10.0.0.300", "is not an IP address"),
        ("[fd00::7::]", "is not an IP address"),
        ("[10.0.0.7]", "brackets are for IPv6 addresses; write 10.0.0.7"),
        ("[abc]", "brackets are for IPv6 addresses; write abc"),
        ("[127.0.0.1]", "brackets are for IPv6 addresses; write 127.0.0.1"),
        ("fd00::7", "brackets"),
        ("a..b", "neither the name nor the address"),
        ("-a", "neither the name nor the address"),
        ("x" * 64, "neither the name nor the address"),
    ],
)
def test_what_can_be_no_host_is_refused(line, message):
    with pytest.raises(UsageError, match=r"hosts\.txt:1: ") as error:
        far(line)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Node:1", "node:1"),
        ("node.:1", "node:1"),
        ("[fd00:0::7]:1", "[fd00::7]:1"),
        ("10.0.0.7", "10.0.0.7:7001"),
    ],
)
def test_spellings_of_a_host_count_once(one, other):
    with pytest.raises(UsageError, match="is listed already, in line 1"):
        far(f"{one}\n{other}")


@pytest.mark.parametrize(
    ("target", "local"),
    [("unix:/a", True), ("localhost:1", True), ("[::1]:1", True), ("10.0.0.7:1", False), ("node:1", False)],
)
def test_what_is_on_this_machine(target, local):
    assert is_local(target) is local


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("gpu-1:7001", True),
        ("10.0.0.1:7001", False),
        ("[fd00::1]:7001", False),
        ("localhost:7001", False),
        ("unix:/a.sock", False),
    ],
)
def test_which_targets_are_looked_up(target, name):
    assert is_name(target) is name


def test_all_problems_at_once():
    assert [p.split(" ")[0] for p in problems("a:b\nlocalhost\n10.0.0.1\n")] == [
        "hosts.txt:1:",
        "hosts.txt:3:",
    ]


@pytest.mark.parametrize("again", ["localhost:7001", "127.0.0.1", "LOCALHOST"])
def test_a_host_is_listed_once(again):
    (problem,) = problems(f"localhost\n{again}\n")
    assert "line 1" in problem


def test_an_empty_file():
    (problem,) = problems("# nobody\n")
    assert "lists no host" in problem


def inventory(slots, incarnation, gpus=0):
    return Inventory(slots, gpus, incarnation)


def test_slots_and_gpus_of_the_file_cap_those_of_the_agent():
    addresses = {
        AgentAddress("a:1"): inventory(4, "x", gpus=2),
        AgentAddress("b:1", slots=1, gpus=1): inventory(4, "y", gpus=2),
    }
    assert usable(addresses) == {"a:1": Usable(4, 2), "b:1": Usable(1, 1)}


def test_what_an_agent_says_of_its_gpus_is_kept():
    told = Inventory(4, 2, "x", ("GPU a: stuck",))
    assert usable({AgentAddress("a:1"): told})["a:1"].quarantined == ("GPU a: stuck",)


def test_more_slots_or_gpus_than_the_agent_has():
    addresses = {
        AgentAddress("a:1", slots=5): inventory(4, "x"),
        AgentAddress("b:1", gpus=1): inventory(4, "y"),
    }
    with pytest.raises(HostsError) as error:
        usable(addresses)
    assert "a:1: slots=5, but its agent has 4" in str(error.value)
    assert "b:1: gpus=1, but its agent has 0; lower it, or see what nvidia-smi says" in str(error.value)


def test_an_agent_under_two_names_is_refused():
    addresses = {AgentAddress("localhost:1"): inventory(4, "x"), AgentAddress("[::1]:1"): inventory(4, "x")}
    with pytest.raises(HostsError, match=r"^\[::1\]:1: is the same agent as localhost:1; list it once$"):
        usable(addresses)


# --- slots that have their GPUs --------------------------------------------------------------


def test_without_gpus_all_slots_can_be_used():
    assert usable_slots({"a": Usable(4), "b": Usable(2, 1)}, Cluster(1, 2)) == {"a": 4, "b": 2}


@pytest.mark.parametrize(
    ("gpus", "each", "workers"),
    [(2, 1, 2), (3, 2, 1), (2, 0.5, 4), (1, 1 / 3, 3), (2, 0.3, 6), (2, 0.7, 2), (0, 1, 0), (0, 0.5, 0)],
)
def test_gpus_carry_workers(gpus, each, workers):
    assert workers_on(gpus, each) == workers


def test_slots_are_no_more_than_the_gpus_carry():
    hosts = {"a": Usable(8, 2), "b": Usable(1, 4), "c": Usable(4)}
    assert usable_slots(hosts, Cluster(1, 2, 0.5)) == {"a": 4, "b": 1, "c": 0}


def test_hosts_without_gpus_are_named():
    with pytest.raises(HostsError, match=r"gpus_per_worker is 1, but the hosts have no GPU \(a: 0\)"):
        usable_slots({"a": Usable(4)}, Cluster(1, 2, 1))


def test_too_few_gpus_are_named():
    with pytest.raises(HostsError, match=r"GPUs of the hosts \(a: 1\) carry 1 of the 2 workers"):
        usable_slots({"a": Usable(4, 1)}, Cluster(1, 2, 1))


def test_too_few_slots_are_another_matter():
    assert usable_slots({"a": Usable(1, 8)}, Cluster(1, 2, 1)) == {"a": 1}


def test_many_hosts_without_enough_gpus_are_counted():
    hosts = {f"h{n}": Usable(4, 1) for n in range(50)}
    with pytest.raises(HostsError, match=r"\(h0: 1, h1: 1, h2: 1, h3: 1, h4: 1 and 45 more\) carry 50"):
        usable_slots(hosts, Cluster(1, 60, 1))


# --- ports of tasks ---------------------------------------------------------------------------


def test_more_tasks_than_the_hosts_have_ports():
    hosts = {"a": Usable(8, ports=(20000, 20001)), "b": Usable(8, ports=(20000, 20000))}
    with pytest.raises(HostsError) as error:
        usable_slots(hosts, Cluster(1, 3))
    assert "4 tasks (cluster: 1 ps, 3 workers)" in str(error.value)
    assert "3 ports for tasks in all (a: 20000-20001, b: 20000-20000)" in str(error.value)
    assert "--port-range" in str(error.value)


@pytest.mark.parametrize(
    ("cluster", "ports"),
    [(Cluster(1, 2), (20000, 20002)), (Cluster(0, 1), (20000, 20000)), (Cluster(1, 4), (0, 0))],
    ids=["enough", "none needed", "not known"],
)
def test_ports_that_suffice_are_no_problem(cluster, ports):
    assert usable_slots({"a": Usable(8, ports=ports)}, cluster) == {"a": 8}


def test_what_an_agent_says_of_its_ports_is_kept():
    told = Inventory(4, 0, "x", ports=(20000, 20009))
    assert usable({AgentAddress("a:1"): told})["a:1"].ports == (20000, 20009)

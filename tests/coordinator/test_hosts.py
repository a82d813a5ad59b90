from __future__ import annotations

import pytest

from coordinator.domain import Cluster
from coordinator.errors import HostsError, UsageError
from coordinator.hosts import (
    AgentAddress,
    Inventory,
    Usable,
    parse_hosts,
    usable,
    usable_slots,
    workers_on,
)


def targets(text):
    return [address.target for address in parse_hosts(text, "hosts.txt")]


def problems(text):
    with pytest.raises(UsageError) as error:
        parse_hosts(text, "hosts.txt")
    return str(error.value).splitlines()


def test_ports_default_to_7001():
    assert targets("localhost\n127.0.0.1:7002\n") == ["localhost:7001", "127.0.0.1:7002"]


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
    assert "b:1: gpus=1, but its agent has 0" in str(error.value)


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

"""Rules for nftables: which text, whether nft takes it, and who reaches what, in network namespaces."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from click.testing import CliRunner

from agent import peers
from agent.config import AgentError, UsageError
from agent.firewall import Ports, rules
from agent.firewall_command import firewall
from agent.peers import Peers, addresses_of, find_peers, resolvers
from benchmarks import network
from benchmarks.network import Network, run

why_no_nft = (
    "needs nft (Debian: nftables)"
    if shutil.which("nft") is None
    else ("" if network.usable() else "network namespaces need root and iproute2")
)
needs_nft = pytest.mark.skipif(bool(why_no_nft), reason=why_no_nft or "there is nft")

PORTS = Ports(7001, (21_000, 21_999))
ELSEWHERE = 22_000
"""A port that the rules are not about."""
LISTEN = """
import socket, sys, time
sockets = []
for port in map(int, sys.argv[1:]):
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", port))
    listener.listen(200)
    sockets.append(listener)
print("listens", flush=True)
sys.stdin.read()
"""
CONNECT = """
import json, select, socket, struct, sys, time
host, ports, enough = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
waiting, reached = {}, []
for port in ports:
    each = socket.socket(family)
    each.setblocking(False)
    each.connect_ex((host, port))
    waiting[each.fileno()] = each, port
begun, kept = time.monotonic(), []
# What is to be reached has all the time of a busy machine; what is not, a moment more.
while waiting and (len(reached) < enough or time.monotonic() < begun + 1.5) and time.monotonic() < begun + 30:
    for descriptor in select.select([], list(waiting), [], 0.1)[1]:
        each, port = waiting.pop(descriptor)
        if each.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            reached.append(port)
        # Closed at once in the end, whatever the other side does.
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        kept.append(each)
print(json.dumps(sorted(reached)))
"""


KEEP = """
import fcntl, socket, struct, sys, termios, time
host, port, patience = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
each = socket.create_connection((host, port), timeout=30)
print("connected", flush=True)
sys.stdin.readline()
each.send(b"x")
end = time.monotonic() + patience
def unsent():
    return struct.unpack("i", fcntl.ioctl(each, termios.TIOCOUTQ, bytes(4)))[0]
while (kept := unsent() > 0) and time.monotonic() < end:
    time.sleep(0.02)
each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
print("nothing came" if kept else "came", flush=True)
"""
"""Connects, and sends once it is told so: did it come, within so many seconds?"""


def net(text: str) -> peers.Address:
    return ipaddress.ip_network(text)


# --- whom they let in -----------------------------------------------------------------------


def test_the_hosts_of_a_hosts_file(tmp_path: Path) -> None:
    path = tmp_path / "hosts.txt"
    path.write_text(
        "# ours\n10.1.0.2:7001 slots=2\n[fd00::2]\nunix:/run/x\nlocalhost:7002 # me\n10.1.0.2:7009\n"
    )
    assert find_peers(path, ["10.2.0.0/16", "[fd00::9]"]) == Peers(
        (net("10.1.0.2"), net("fd00::2")), (net("10.2.0.0/16"), net("fd00::9"))
    )


def test_names_are_looked_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = [(0, 0, 0, "", ("10.1.0.2", 0)), (0, 0, 0, "", ("fd00::2", 0, 0, 0))]
    monkeypatch.setattr(peers.socket, "getaddrinfo", lambda *_, **__: answers)
    (tmp_path / "hosts.txt").write_text("worker-1\n")
    assert find_peers(tmp_path / "hosts.txt", []).hosts == (net("10.1.0.2"), net("fd00::2"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no-such-host.invalid", "hosts.txt:1: no-such-host.invalid has no address: "),
        ("a:b:c", r"hosts.txt:1: 'a:b:c' is not host\[:port\]"),
        ("127.0.0.1:7001", "lists no host but this machine"),
        ("", "lists no host"),
    ],
)
def test_what_is_wrong_with_a_hosts_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "hosts.txt").write_text(text)
    with pytest.raises(UsageError, match=message):
        find_peers(tmp_path / "hosts.txt", [])


def test_a_hosts_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"hosts\.txt: the hosts file cannot be read: No such file"):
        find_peers(tmp_path / "hosts.txt", [])


def test_a_network_must_be_one() -> None:
    with pytest.raises(UsageError, match=r"--coordinator: 10\.1\.2\.3/8 is no network"):
        addresses_of("10.1.2.3/8", "--coordinator")


def test_the_name_servers_of_a_machine() -> None:
    text = "# one\nnameserver 10.0.0.53\nsearch x\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver\n"
    assert resolvers(text) == (net("10.0.0.53"), net("fe80::1"))


# --- the text -------------------------------------------------------------------------------


def test_the_command_prints_rules(tmp_path: Path) -> None:
    (tmp_path / "hosts.txt").write_text("10.1.0.2\n")
    arguments = ["--hosts", str(tmp_path / "hosts.txt"), "--port-range", "3000-3001", "--listen", "[::1]:9"]
    done = CliRunner().invoke(firewall, arguments)
    assert done.exit_code == 0
    assert "tcp dport 3000-3001 drop" in done.stdout
    assert "tcp dport 9 " in done.stdout
    assert "elements = { 10.1.0.2 }" in done.stdout
    assert "callers" not in done.stdout, "everybody may reach the agent"


def test_no_rule_for_the_port_of_an_agent_on_a_socket() -> None:
    done = CliRunner().invoke(firewall, ["--listen", "unix:/run/x"])
    assert "ct count" not in done.stdout


@pytest.mark.parametrize("arguments", [["--listen", "x"], ["--port-range", "9-8"], ["--nonsense"]])
def test_wrong_usage_of_the_command(arguments: list[str]) -> None:
    assert CliRunner().invoke(firewall, arguments).exit_code == 2


def test_wrong_use_is_one_line_and_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent", "firewall", "--hosts", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert done.stderr.startswith("nhop-agent firewall: ")


# --- nft ------------------------------------------------------------------------------------


HOSTS = (net("10.77.2.2"), net("fd77:2::2"))


@pytest.fixture
def four() -> Iterator[Network]:
    """h1 is fenced, h2 is a host of its studies, h3 is a stranger; all have IPv6, too."""
    with Network(3).made() as made:
        router = ("ip", "netns", "exec", made.router)
        run(*router, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        for number, name in enumerate(made.namespaces):
            run(*router, "ip", "addr", "add", f"fd77:{number}::1/64", "dev", f"veth{number}", "nodad")
            run("ip", "-n", name, "addr", "add", f"fd77:{number}::2/64", "dev", "eth0", "nodad")
            run("ip", "-n", name, "route", "add", "default", "via", f"fd77:{number}::1")
        deadline = time.monotonic() + 30
        while any(tentative(name) for name in (made.router, *made.namespaces)):
            assert time.monotonic() < deadline, "addresses stay tentative"
            time.sleep(0.05)
        yield made


def tentative(name: str) -> bool:
    """Whether an address of a namespace cannot be used yet."""
    command = ["ip", "-n", name, "-6", "addr", "show", "tentative"]
    return bool(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


@contextmanager
def listening(made: Network, *ports: int) -> Iterator[None]:
    command = [*made.inside(1), sys.executable, "-c", LISTEN, *map(str, ports)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    streams: tuple[IO[str], ...] = (process.stdin, process.stdout)
    try:
        assert process.stdout.readline() == "listens\n"
        yield
    finally:
        for stream in streams:
            stream.close()
        process.wait(20)


def load(made: Network, text: str) -> None:
    nft(made.inside(1), text)


def nft(inside: Sequence[str], text: str, *options: str) -> None:
    command = [*inside, "nft", *options, "-f", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def reached(made: Network, source: int, host: str, ports: Sequence[int], enough: int) -> list[int]:
    """The ports of h1 that are reached from a namespace, where ``enough`` of them are to be."""
    command = [*made.inside(source), sys.executable, "-c", CONNECT, host, json.dumps(ports), str(enough)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(port) for port in json.loads(done.stdout)]


@needs_nft
@pytest.mark.parametrize("known", [Peers(), Peers(HOSTS), Peers(HOSTS, (net("10.0.0.0/8"), HOSTS[0]))])
@pytest.mark.parametrize("ports", [PORTS, Ports(None, (2000, 2000)), Ports(7001, (1024, 65535))])
def test_nft_takes_all_rules(known: Peers, ports: Ports) -> None:
    nft(("unshare", "-n"), rules(ports, known), "-c")


ALL = [7001, 21_000, 21_999, ELSEWHERE]
BOTH = pytest.mark.parametrize("host", ["10.77.1.2", pytest.param("fd77:1::2", marks=pytest.mark.deploy)])


@needs_nft
@BOTH
def test_strangers_reach_the_agent_and_no_task(four: Network, host: str) -> None:
    with listening(four, *ALL):
        assert reached(four, 3, host, ALL, len(ALL)) == ALL
        load(four, rules(PORTS, Peers(HOSTS)))
        load(four, rules(PORTS, Peers(HOSTS)))  # in the place of the first
        for source, ports in {1: ALL, 2: ALL, 3: [7001, ELSEWHERE]}.items():
            assert reached(four, source, host, ALL, len(ports)) == ports


@needs_nft
@BOTH
def test_who_is_a_host_no_more_loses_open_connections(four: Network, host: str) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(listening(four, *ALL))
        load(four, rules(PORTS, Peers((*HOSTS, net("10.77.3.2"), net("fd77:3::2")))))
        cases = {(2, 21_000): "came", (3, 21_000): "nothing came", (3, 7001): "came", (3, ELSEWHERE): "came"}
        talks = {}
        for (source, port), expected in cases.items():
            # What is to come has all the time of a busy machine.
            patience = 30 if expected == "came" else 1.5
            command = [*four.inside(source), sys.executable, "-c", KEEP, host, str(port), str(patience)]
            talk = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            talks[source, port] = stack.enter_context(talk)
            stack.callback(talk.kill)
        for talk in talks.values():
            assert talk.stdout is not None
            assert talk.stdout.readline() == "connected\n"
        load(four, rules(PORTS, Peers(HOSTS)))
        assert {case: talk.communicate("\n")[0].strip() for case, talk in talks.items()} == cases


@needs_nft
@BOTH
def test_only_coordinators_and_hosts_reach_the_agent(four: Network, host: str) -> None:
    coordinators = (net("10.77.0.0/24"), net("fd77:0::/64"))
    with listening(four, *ALL):
        load(four, rules(PORTS, Peers(HOSTS, coordinators)))
        for source, ports in {0: [7001, ELSEWHERE], 1: ALL, 2: ALL, 3: [ELSEWHERE]}.items():
            assert reached(four, source, host, ALL, len(ports)) == ports


@needs_nft
@BOTH
def test_a_peer_has_so_many_connections_with_the_agent(four: Network, host: str) -> None:
    with listening(four, 7001):
        load(four, rules(PORTS, Peers(HOSTS), connections=5))
        assert len(reached(four, 3, host, [7001] * 10, 5)) == 5
        assert len(reached(four, 2, host, [7001] * 2, 2)) == 2, "others are not concerned"
        assert len(reached(four, 3, host, [7001] * 2, 2)) == 2, "what was closed does not count"

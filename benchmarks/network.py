"""Network namespaces as hosts: some behind a router, each with an address and processes of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

FIRST_TASK_PORT, LAST_TASK_PORT = 21000, 21999
AGENT_PORT = 7001


def usable() -> bool:
    """Whether this machine lets us make namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"nhop-probe-{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        run("ip", "netns", "del", name)
    return made


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)


class Network:
    """``hosts`` namespaces named h1, h2, ..., each with a link to the namespace of a router.

    h1 is 10.77.1.2, h2 10.77.2.2 and so on; the coordinator's place is ``home``, 10.77.0.2.
    """

    def __init__(self, hosts: int) -> None:
        self._mark = f"nhop-{uuid.uuid4().hex[:6]}"
        self.router = f"{self._mark}-r"
        self.home = f"{self._mark}-0"
        self.namespaces = [self.home, *(f"{self._mark}-{number}" for number in range(1, hosts + 1))]

    @contextmanager
    def made(self) -> Iterator[Network]:
        """The network, for the time of the context."""
        try:
            run("ip", "netns", "add", self.router)
            run("ip", "-n", self.router, "link", "set", "lo", "up")
            run("ip", "netns", "exec", self.router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
            for number, name in enumerate(self.namespaces):
                self._add(number, name)
            yield self
        finally:
            for name in (*self.namespaces, self.router):
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def _add(self, number: int, name: str) -> None:
        run("ip", "netns", "add", name)
        inner, outer = "eth0", f"veth{number}"
        run(
            "ip",
            "-n",
            self.router,
            "link",
            "add",
            outer,
            "type",
            "veth",
            "peer",
            "name",
            inner,
            "netns",
            name,
        )
        run("ip", "-n", self.router, "addr", "add", f"10.77.{number}.1/24", "dev", outer)
        run("ip", "-n", self.router, "link", "set", outer, "up")
        run("ip", "-n", name, "addr", "add", f"{self.address(number)}/24", "dev", inner)
        run("ip", "-n", name, "link", "set", inner, "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", name, "route", "add", "default", "via", f"10.77.{number}.1")

    @staticmethod
    def address(number: int) -> str:
        """Where host ``number`` is; 0 is home."""
        return f"10.77.{number}.2"

    def target(self, number: int) -> str:
        """Where the agent of a host listens."""
        return f"{self.address(number)}:{AGENT_PORT}"

    def inside(self, number: int) -> tuple[str, ...]:
        """What to put before a command so that it runs on a host."""
        return ("ip", "netns", "exec", self.namespaces[number])

    # --- what goes wrong ----------------------------------------------------------------------

    def cut(self, number: int) -> None:
        """Drops all packets to and from a host, without a word to anyone."""
        self.cut_towards(number)
        self.cut_from(number)

    def cut_towards(self, number: int) -> None:
        """Drops what goes to a host."""
        self._rule("add", "to", f"{self.address(number)}/32", "prio", 100 + number)

    def cut_from(self, number: int) -> None:
        """Drops what a host sends."""
        self._rule("add", "from", f"{self.address(number)}/32", "prio", 200 + number)

    def heal(self, number: int) -> None:
        """Ends all cuts of a host."""
        for priority in (100 + number, 200 + number):
            command = ["ip", "-n", self.router, "rule", "del", "prio", str(priority)]
            subprocess.run(command, capture_output=True, check=False)

    def filter_task_ports(self, number: int) -> None:
        """A firewall before a host that lets nothing through to its task ports."""
        self._rule(
            *("add", "to", f"{self.address(number)}/32", "ipproto", "tcp"),
            *("dport", f"{FIRST_TASK_PORT}-{LAST_TASK_PORT}", "prio", 300 + number),
        )

    def _rule(self, *words: object) -> None:
        run("ip", "-n", self.router, "rule", *words, "blackhole")

    def processes(self, number: int) -> list[int]:
        """The processes on a host."""
        command = ["ip", "netns", "pids", self.namespaces[number]]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [int(pid) for pid in found.split()]

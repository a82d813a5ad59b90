"""What `nhop-agent install` writes for systemd: texts from values, and where they belong. Pure.

What each line of the unit is for, and what was left out because it breaks CUDA or compilers at run time,
is in docs/systemd.md.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from agent.peers import Address, written

UNIT = Path("/etc/systemd/system/nhop-agent.service")
HOSTS_DROP_IN = Path("/etc/systemd/system/nhop-agent.service.d/10-hosts.conf")
SYSUSERS = Path("/etc/sysusers.d/nhop.conf")
ENVIRONMENT = Path("/etc/nhop/agent.env")
FIREWALL = Path("/etc/nhop/firewall.nft")
TLS_FOLDER = PurePosixPath("/etc/nhop/tls")
AGENT_USER, TASK_USER = "nhop", "nhop-task"
STATE = "nhop"
_SEAL = "# As `nhop-agent install` wrote it: "

METADATA = ("169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254")
"""Where clouds give an instance its credentials: EC2, Azure, GCE and others, ECS, Alibaba, and by IPv6."""


@dataclass(frozen=True, slots=True)
class Installation:
    """``command`` starts the agent; ``below_home``: what it needs lies below /home, /root or /run/user."""

    command: tuple[str, ...]
    below_home: bool = False


STANDARD = Installation(("/opt/nhop/.venv/bin/nhop-agent",))
"""That of the files in deploy/systemd."""


def unit(installation: Installation) -> str:
    """The service."""
    command = shlex.join(installation.command).replace("%", "%%").replace("$", "$$")
    home = "read-only" if installation.below_home else "yes"
    return f"""\
# Written by `nhop-agent install`; `systemctl edit nhop-agent` is for changes.
[Unit]
Description=NHOP agent: runs tasks of hyper-parameter studies
Wants=network-online.target
After=network-online.target nvidia-persistenced.service
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
EnvironmentFile={ENVIRONMENT}
ExecStart={command} --listen ${{NHOP_LISTEN}} --state-dir /var/lib/{STATE}/agent \
--task-user {TASK_USER} $NHOP_OPTIONS
WatchdogSec=60
TimeoutStartSec=180
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=2

# The agent ends its tasks in order when it is stopped. Where it crashes they live on until the next
# one, a moment later, has ended them and told their coordinators why.
KillMode=process
TimeoutStopSec=90

# Tasks become {TASK_USER}, without any capability, before they run a line of a user's code.
User={AGENT_USER}
Group={AGENT_USER}
SupplementaryGroups={TASK_USER}
AmbientCapabilities=CAP_SETUID CAP_SETGID CAP_KILL
CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_KILL
NoNewPrivileges=yes
StateDirectory={STATE}
StateDirectoryMode=0711
UMask=0077

LimitNOFILE=524288
LimitCORE=0
TasksMax=32768
OOMPolicy=continue

# Nothing of the machine can be written but /var/lib/{STATE}, a /tmp of its own, and /dev/shm.
ProtectSystem=strict
ProtectHome={home}
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

# GPUs and nothing else. PrivateDevices= would hide them, MemoryDenyWriteExecute= breaks CUDA and XLA.
DevicePolicy=closed
DeviceAllow=char-nvidia rw
DeviceAllow=char-nvidia-frontend rw
DeviceAllow=char-nvidiactl rw
DeviceAllow=char-nvidia-uvm rw
DeviceAllow=char-nvidia-caps rw

# No task asks the cloud for the machine's credentials.
IPAddressDeny={" ".join(METADATA)}

[Install]
WantedBy=multi-user.target
"""


def sysusers() -> str:
    """The two users: the agent's, and the tasks', who is in no other group."""
    return f"""\
# Written by `nhop-agent install`.
u {AGENT_USER} - "NHOP agent" /var/lib/{STATE}
u {TASK_USER} - "NHOP tasks" -
"""


def environment(listen: str, options: Sequence[str], *, tls: bool) -> str:
    """Options of the agent, for people to edit."""
    text = f"""\
# Options of the NHOP agent on this machine (nhop-agent --help). After a change: systemctl restart nhop-agent
# Where coordinators reach it.
NHOP_LISTEN={listen}
# The folder with ca.crt, tls.crt and tls.key of this machine; without it only loopback can be listened on.
{"" if tls else "#"}NHOP_TLS={TLS_FOLDER}
# Further options, as on the command line.
NHOP_OPTIONS={shlex.join(options)}
"""
    return f"{text}{_SEAL}{_sum(text)}\n"


def is_edited(text: str) -> bool:
    """Whether an environment file is not as it was written."""
    body, seal, rest = text.rpartition(_SEAL)
    return not seal or rest.strip() != _sum(body)


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hosts_drop_in(allowed: Iterable[Address], nft: str) -> str:
    """For the unit: which addresses the agent and its tasks reach, and are reached from; and the rules."""
    return f"""\
# Written by `nhop-agent install --hosts`. The agent and its tasks reach these addresses and no others:
# add what data comes from with further lines IPAddressAllow= by `systemctl edit nhop-agent`.
[Service]
IPAddressDeny=any
IPAddressAllow=localhost
{"".join(f"IPAddressAllow={written(address)}{chr(10)}" for address in allowed)}\
ExecStartPre=+{nft} -f {FIREWALL}
"""

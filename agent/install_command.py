"""``nhop-agent install``: the agent as a service of this machine."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path

import click

import nhop_models.contract
from agent import units
from agent.cli import Address as ListenOption
from agent.cli import PortRange
from agent.config import (
    DEFAULT_PORTS,
    AgentError,
    ConfigError,
    ListenAddress,
    UsageError,
    parse_advertised,
)
from agent.firewall import Ports, rules
from agent.peers import RESOLVER_FILE, Address, Peers, addresses_of, find_peers, resolvers
from agent.task_reach import ELSEWHERE, first_closed
from agent.task_user import TaskUser
from agent.units import Installation
from nhop._listening import is_loopback

DEFAULT_LISTEN = "127.0.0.1:7001"
MAX_SLOTS = 10_000
ANYBODY = TaskUser("nhop", -1, -1)
"""A user that owns no file, and is in no file's group."""
_HIDDEN = ("/tmp", "/var/tmp")  # noqa: S108 - of which the unit has its own
_HOMES = ("/home", "/root", "/run/user")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--listen",
    type=ListenOption(),
    default=DEFAULT_LISTEN,
    show_default=True,
    help="As of nhop-agent: where coordinators reach it.",
)
@click.option("--slots", type=click.IntRange(1, MAX_SLOTS), help="As of nhop-agent.")
@click.option(
    "--port-range",
    type=PortRange(),
    default=DEFAULT_PORTS,
    show_default="20000-29999",
    help="As of nhop-agent.",
)
@click.option("--advertise", default="", metavar="HOST", help="As of nhop-agent.")
@click.option(
    "--hosts",
    type=click.Path(path_type=Path),
    help="Hosts file: let only these hosts reach the agent and its tasks, and these only them.",
)
@click.option(
    "--coordinator",
    multiple=True,
    metavar="ADDRESS",
    help="With --hosts: a name, address or network from which coordinators reach the agent, too; may be "
    "repeated.",
)
@click.option(
    "--command",
    metavar="PATH",
    help="The nhop-agent that the unit starts; by default the one of this installation.",
)
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write below this folder instead of /, for a look or a package; needs no root.",
)
@click.option("--dry-run", "--print", is_flag=True, help="Show what would be written, and write nothing.")
def install(
    listen: ListenAddress,
    slots: int | None,
    port_range: tuple[int, int],
    advertise: str,
    hosts: Path | None,
    coordinator: tuple[str, ...],
    command: str | None,
    root: Path | None,
    dry_run: bool,
) -> None:
    """Writes a hardened service for systemd that runs the agent on this machine.

    Users, unit and options: /etc/sysusers.d/nhop.conf, /etc/systemd/system/nhop-agent.service and
    /etc/nhop/agent.env. Options that were edited there are kept. It starts nothing; it says what to
    run next.
    """
    _check(listen, hosts, coordinator, command)
    if root is None and not dry_run and os.geteuid() != 0:
        raise UsageError("must be run by root; --root FOLDER writes elsewhere, --dry-run only shows")
    installation = _installed_elsewhere(command) if command else this_installation()
    options = options_of(slots, port_range, advertise)
    local = is_loopback(listen.host)
    files = {
        units.SYSUSERS: units.sysusers(),
        units.UNIT: units.unit(installation),
        units.ENVIRONMENT: units.environment(str(listen), options, tls=not local),
    }
    if hosts is not None:
        peers = find_peers(hosts, coordinator)
        files |= fence(peers, Ports(listen.port, port_range), own_addresses(listen, advertise))
    if dry_run:
        for path, text in files.items():
            click.echo(f"--- {path}\n{text}")
        return
    try:
        written = list(write(files, root or Path("/")))
    except OSError as error:
        raise AgentError(f"cannot write {error.filename}: {error.strerror}") from error
    for line in (*written, *next_steps(tls=not local, fenced=hosts is not None, elsewhere=root is not None)):
        click.echo(line)


def _check(
    listen: ListenAddress, hosts: Path | None, coordinators: Sequence[str], command: str | None
) -> None:
    """Raises click.UsageError for what goes together with nothing that a service does."""
    if listen.path is not None or listen.port == 0:
        raise click.UsageError(f"--listen {listen}: a service listens at an address, and at a known port")
    if coordinators and hosts is None:
        raise click.UsageError("--coordinator goes with --hosts: without it everybody may reach the agent")
    if command is not None and not command.startswith("/"):
        raise click.UsageError(f"--command {command}: must be an absolute path")


def options_of(slots: int | None, port_range: tuple[int, int], advertise: str) -> list[str]:
    """The options of nhop-agent that are not left at their defaults."""
    options = [] if slots is None else ["--slots", str(slots)]
    if port_range != DEFAULT_PORTS:
        options += ["--port-range", "{}-{}".format(*port_range)]
    try:
        return [*options, "--advertise", parse_advertised(advertise)] if advertise else options
    except ConfigError as error:
        raise UsageError(f"--advertise: {error}") from error


def own_addresses(listen: ListenAddress, advertise: str) -> list[Address]:
    """Where tasks of this machine reach each other: the hosts file may name it otherwise. UsageError."""
    named = {"--listen": "" if listen.is_wildcard or is_loopback(listen.host) else listen.host}
    named["--advertise"] = advertise
    return [address for option, text in named.items() if text for address in addresses_of(text, option)]


def fence(peers: Peers, ports: Ports, own: Sequence[Address] = ()) -> dict[Path, str]:
    """What lets only the peers, and this machine with its name servers, reach or be reached."""
    try:
        servers = resolvers(RESOLVER_FILE.read_text())
    except OSError:
        servers = ()
    closed = {ip_network(address) for address in units.METADATA}
    # Of a cloud whose name server is also where it gives out credentials: allowed goes before denied.
    servers = tuple(server for server in servers if server not in closed)
    allowed = dict.fromkeys((*peers.hosts, *peers.coordinators, *own, *servers))
    nft = shutil.which("nft") or "/usr/sbin/nft"
    return {units.FIREWALL: rules(ports, peers), units.HOSTS_DROP_IN: units.hosts_drop_in(allowed, nft)}


def this_installation() -> Installation:
    """The one that runs; UsageError where a service of another user could not use it."""
    script = Path(sysconfig.get_path("scripts"), "nhop-agent")
    command = (str(script),) if script.exists() else (sys.executable, "-P", "-m", "agent")
    needed = [sys.base_prefix, sys.prefix, command[0], nhop_models.contract.__file__, __file__]
    for path in needed:
        closed = first_closed(Path(path), ANYBODY)
        if closed is not None:
            raise UsageError(f"no other user can read {path}, for {closed} is closed to them; {ELSEWHERE}")
        if _is_below(path, _HIDDEN):
            raise UsageError(f"{path}: the service has temporary files of its own; {ELSEWHERE}")
    return Installation(command, any(_is_below(path, _HOMES) for path in needed))


def _installed_elsewhere(command: str) -> Installation:
    return Installation((command,), _is_below(command, _HOMES))


def _is_below(path: str, folders: Sequence[str]) -> bool:
    ways = (Path(path), Path(path).resolve())
    return any(way.is_relative_to(folder) for way in ways for folder in folders)


def write(files: dict[Path, str], root: Path) -> Iterator[str]:
    """Writes what is not there yet as it must be; says each. Raises OSError."""
    for path, text in files.items():
        target = root / path.relative_to("/")
        there = target.read_text(errors="replace") if target.exists() else None
        if path == units.ENVIRONMENT and there not in (None, text) and units.is_edited(there or ""):
            edited, target = target, target.with_name(f"{target.name}.new")
            yield f"kept    {edited}, which was edited; what it would be is in {target}"
        elif there == text:
            yield f"as it is {target}"
            continue
        else:
            yield f"wrote   {target}"
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.new")
        temporary.write_text(text)
        # Credentials for the data of tasks may be put there.
        temporary.chmod(0o600 if path == units.ENVIRONMENT else 0o644)
        temporary.replace(target)
    for path in (units.HOSTS_DROP_IN, units.FIREWALL):
        target = root / path.relative_to("/")
        if path not in files and target.exists():
            yield f"kept    {target} of an earlier --hosts; remove it where it is not wanted"


def next_steps(*, tls: bool, fenced: bool, elsewhere: bool) -> Iterator[str]:
    """What to run after the files are in place; ``elsewhere``: they still have to be put there."""
    yield ""
    yield "next, as root, once these files are below / of the host:" if elsewhere else "next, as root:"
    yield f"  systemd-sysusers {units.SYSUSERS}"
    if tls:
        owned = f"-o {units.AGENT_USER} -g {units.AGENT_USER}"
        yield f"  install -d -m 0700 {owned} {units.TLS_FOLDER}"
        yield "  # FOLDER: ca.crt, tls.crt and tls.key of this host, by nhop-coordinator certs issue"
        yield f"  install -m 0600 {owned} FOLDER/* {units.TLS_FOLDER}/"
    if fenced:
        yield "  # nft must be there (Debian: apt install nftables)"
    elif tls:
        yield "  # without --hosts hosts.txt nothing fences the ports of tasks, which ask nobody who they are"
    yield "  systemctl daemon-reload"
    yield "  systemctl enable --now nhop-agent"

"""``nhop-agent``: the command line of the agent."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import uvloop
from click.core import ParameterSource

from agent.config import (
    DEFAULT_PORTS,
    AgentConfig,
    AgentError,
    ConfigError,
    ListenAddress,
    UsageError,
    default_state_dir,
    parse_advertised,
    parse_port_range,
    usable_cores,
)
from agent.task_user import TaskUser, parse_task_user
from nhop._process import open_standard_streams, raise_file_limit

if TYPE_CHECKING:
    from nhop.security.rotation import Rotation

MAX_SLOTS = 10_000
TLS_VARIABLE = "NHOP_TLS"


class Address(click.ParamType[ListenAddress]):
    """Where an agent listens."""

    name = "address"

    def convert(
        self, value: str | ListenAddress, param: click.Parameter | None, ctx: click.Context | None
    ) -> ListenAddress:
        """The address; wrong usage for anything else."""
        if isinstance(value, ListenAddress):
            return value
        try:
            return ListenAddress.parse(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class _Advertised(click.ParamType[str]):
    name = "host"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return parse_advertised(value) if value else ""
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class _TaskUser(click.ParamType[TaskUser]):
    name = "user"

    def convert(
        self, value: str | TaskUser, param: click.Parameter | None, ctx: click.Context | None
    ) -> TaskUser:
        if isinstance(value, TaskUser):
            return value
        try:
            return parse_task_user(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class PortRange(click.ParamType[tuple[int, int]]):
    """The first and the last port, as LOW-HIGH."""

    name = "low-high"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Both ports; wrong usage for anything else."""
        if isinstance(value, tuple):
            return value
        try:
            return parse_port_range(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--listen",
    type=Address(),
    required=True,
    help="Where coordinators reach this agent: 127.0.0.1:PORT, [::1]:PORT or unix:/path; with --tls any "
    "address of this machine, 0.0.0.0:PORT or [::]:PORT for all of them.",
)
@click.option(
    "--tls",
    type=click.Path(path_type=Path),
    envvar=TLS_VARIABLE,
    show_envvar=True,
    metavar="FOLDER",
    help="This host's certificate: ca.crt, tls.crt and tls.key, made by `nhop-coordinator certs issue`. "
    "Only holders of a coordinator's certificate of the same authority can then use the agent.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Allow an address off loopback, without encryption or authentication: whoever reaches it can run "
    "code here. Only for networks where you trust every machine.",
)
@click.option(
    "--advertise",
    type=_Advertised(),
    default="",
    metavar="HOST",
    help="Name or address by which tasks on other hosts reach those of this one; by default the address of "
    "--listen.",
)
@click.option(
    "--slots",
    type=click.IntRange(1, MAX_SLOTS),
    help="How many worker tasks may run at once; by default one for each CPU core.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False),
    help="Where attempts are kept; by default ~/.local/state/nhop/agent-PORT (or below XDG_STATE_HOME).",
)
@click.option(
    "--task-user",
    type=_TaskUser(),
    metavar="USER",
    help="Run tasks as this user (a name or a number), which reaches neither the keys nor the records of the "
    "agent; needs root, or the unit that `nhop-agent install` writes.",
)
@click.option(
    "--port-range",
    type=PortRange(),
    default=DEFAULT_PORTS,
    show_default="20000-29999",
    help="Ports that tasks may listen on.",
)
@click.option(
    "--orphan-limit",
    type=click.FloatRange(1.0, 86_400.0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Tasks end by themselves when their agent has been gone for so long, if their coordinator does not "
    "ask for less.",
)
@click.option(
    "--abandon-limit",
    type=click.FloatRange(1.0, 604_800.0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="What is left of a study is ended and deleted when no coordinator has followed it for so long.",
)
@click.option(
    "--gpu-release-limit",
    type=click.FloatRange(0.1, 3_600.0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="A GPU on which the driver still lists processes of an attempt that ended so long ago is not used "
    "until they are off it.",
)
@click.option(
    "--parent-pipe",
    type=click.IntRange(min=0),
    metavar="FD",
    help="Be private to who holds the other end of this pipe: end in order when it is closed, and "
    "remove the state directory (used by nhop-coordinator).",
)
@click.option("--verbose", is_flag=True, help="Log what happens to stderr, not only what is amiss.")
def main(
    listen: ListenAddress,
    tls: Path | None,
    insecure: bool,
    advertise: str,
    slots: int | None,
    state_dir: str | None,
    task_user: TaskUser | None,
    port_range: tuple[int, int],
    orphan_limit: float,
    abandon_limit: float,
    gpu_release_limit: float,
    parent_pipe: int | None,
    verbose: bool,
) -> None:
    """Runs tasks of NHOP trials on this host for the coordinators that ask for it.

    `nhop-agent install` writes a service of systemd, `nhop-agent firewall` prints rules for nftables: each
    has its own --help.
    """
    open_standard_streams()
    raise_file_limit()
    environment = click.get_current_context().get_parameter_source("tls") is ParameterSource.ENVIRONMENT
    named = TLS_VARIABLE if environment else "--tls"
    if tls is not None and insecure:
        raise UsageError(f"{named} and --insecure: one of them, not both")
    try:
        listen.check(tls=tls is not None, insecure=insecure)
    except ConfigError as error:
        raise UsageError(f"--listen: {error}") from error
    if insecure and listen.task_host != "127.0.0.1":
        warning = f"--insecure: whoever reaches {listen} can run code on this machine"
        click.echo(f"nhop-agent: warning: {warning}", err=True)
    if state_dir is None:
        if listen.path is not None or listen.port == 0:
            raise click.UsageError(f"--state-dir is needed with --listen {listen}")
    elif not state_dir:  # an unset variable of a script: attempts would be among the files around
        raise click.UsageError("--state-dir is empty; name a folder, or `.` for the current one")
    config = AgentConfig(
        listen=listen,
        state_dir=Path(state_dir or default_state_dir(listen.port)).absolute(),
        slots=slots or usable_cores(),
        ports=port_range,
        orphan_limit=orphan_limit,
        abandon_limit=abandon_limit,
        gpu_release_limit=gpu_release_limit,
        parent_pipe=parent_pipe,
        advertise=advertise,
        tls=_certificate(tls, named),
        task_user=task_user,
    )
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s nhop-agent %(levelname)s: %(message)s",
    )
    sys.exit(serve(config))


def _certificate(folder: Path | None, named: str) -> Rotation | None:
    if folder is None:
        return None
    from nhop.security.errors import CertificateError
    from nhop.security.identity import Role
    from nhop.security.rotation import Rotation  # which loads what only TLS needs

    try:
        return Rotation(folder, Role.AGENT)
    except CertificateError as error:
        raise UsageError(f"{named}: {error}") from error


def serve(config: AgentConfig) -> int:
    """Runs an agent to its end; the exit status."""
    # gRPC writes lines of its own to stderr, and reads this when it is imported; ours say it better.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if config.tls is not None:
        from nhop.security import handshakes

        handshakes.enable()
    from agent import server  # only now: logging has to be configured before gRPC

    def announce(address: str, gpus: int) -> None:
        and_gpus = f", {gpus} GPU{'s' * (gpus > 1)}" if gpus else ""
        tls = ", TLS" if config.tls is not None else ""
        click.echo(f"nhop-agent listens on {address} ({config.slots} slots{and_gpus}{tls})")
        sys.stdout.flush()

    try:
        uvloop.run(server.run(config, announce))
    except AgentError as error:
        click.echo(f"nhop-agent: {error}", err=True)
        return error.exit_status
    return 0

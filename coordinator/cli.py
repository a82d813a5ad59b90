"""The command line of ``nhop-coordinator``: what is asked for, and every error in one line each.

Exit statuses: 0 completed, 1 the study failed, 2 wrong usage or configuration, 3 hosts not
usable, 130 interrupted (after a clean end).
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from coordinator.errors import NhopError, UsageError
from coordinator.process import take_over
from nhop._process import open_standard_streams
from nhop_models.urls import is_nearly_url, is_url

if TYPE_CHECKING:
    from coordinator.config import StudyConfig
    from coordinator.hosts import AgentAddress, HostPolicy
    from nhop.security.client import Security

PROGRAM = "nhop-coordinator"
INTERRUPTED = 130
LOGS = "logs"
CERTS = "certs"
"""The words that begin the other commands; a study file of such a name is ``./logs``."""
TLS_VARIABLE = "NHOP_TLS"


@dataclass(frozen=True, slots=True)
class Words:
    """The arguments that are not options: ``[print_config] [STUDY.yaml] [with KEY=VALUE ...]``."""

    print_config: bool = False
    study: Path | None = None
    overrides: tuple[str, ...] = ()

    @classmethod
    def parse(cls, words: Sequence[str]) -> Words:
        """Sorts the words; UsageError where they do not fit together."""
        rest = list(words)
        print_config = bool(rest) and rest[0] == "print_config"
        if print_config:
            del rest[0]
        overrides: tuple[str, ...] = ()
        if "with" in rest:
            place = rest.index("with")
            rest, overrides = rest[:place], tuple(rest[place + 1 :])
            if not overrides:
                raise UsageError("with: KEY=VALUE is missing after it")
        if rest and rest[0] in (LOGS, CERTS):
            raise UsageError(f"`{rest[0]}` comes before its options: see {PROGRAM} {rest[0]} --help")
        if len(rest) > 1:
            hint = f"; settings come after `with`: with {rest[1]}" if "=" in rest[1] else ""
            raise UsageError(f"one study file at a time: {' '.join(rest)}{hint}")
        if rest and "=" in rest[0] and not Path(rest[0]).exists():
            raise UsageError(f"settings come after `with`: {PROGRAM} with {rest[0]}")
        return cls(print_config, Path(rest[0]) if rest else None, overrides)


@click.command(
    PROGRAM,
    options_metavar="[OPTIONS]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.argument("words", nargs=-1, metavar="[print_config] [STUDY.yaml] [with KEY=VALUE ...]")
@click.option(
    "--hosts",
    metavar="FILE|ec2:TAG=VALUE|slurm:",
    help="Agents to use: a file with one host[:port] a line; running EC2 instances with these tags "
    "(ec2:TAG=VALUE[,TAG=VALUE...]); or the nodes of the Slurm allocation that this runs in. Read again on "
    "SIGHUP: hosts join and leave.",
)
@click.option(
    "--min-hosts",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="Begin with N hosts; the others are used once they answer. By default all are waited for.",
)
@click.option(
    "--wait-hosts",
    type=click.FloatRange(0.0, 86_400.0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long hosts that do not answer at the start are waited for.",
)
@click.option(
    "--host-limit",
    type=click.FloatRange(1.0, 86_400.0),
    default=90.0,
    show_default=True,
    metavar="SECONDS",
    help="A host that has not answered for so long is lost: its trials are tried again elsewhere.",
)
@click.option(
    "--output",
    metavar="FOLDER|URL",
    help="Where the results go: a folder, or a URL such as s3://bucket/prefix; with --serve: the folder of "
    "all studies.",
)
@click.option(
    "--serve",
    metavar="ADDRESS",
    help="Serve studies to clients at host:port or unix:/path; off loopback with TLS.",
)
@click.option(
    "--tls",
    type=click.Path(path_type=Path),
    envvar=TLS_VARIABLE,
    show_envvar=True,
    metavar="FOLDER",
    help="This coordinator's certificate: ca.crt, tls.crt and tls.key, for loopback, too. By default "
    "~/.config/nhop/certs/coordinator, which `nhop-coordinator certs init` makes, for all but loopback.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Allow hosts and --serve off loopback without encryption or authentication: only in networks where "
    "you trust every machine.",
)
@click.option("--dry-run", is_flag=True, help="Check everything, show what would run, start nothing.")
@click.version_option(package_name="nhop", message="%(prog)s %(version)s")
def command(
    words: tuple[str, ...],
    hosts: str | None,
    min_hosts: int | None,
    wait_hosts: float,
    host_limit: float,
    output: str | None,
    serve: str | None,
    tls: Path | None,
    insecure: bool,
    dry_run: bool,
) -> int:
    """Search for good hyper-parameters in stages, with every trial a TensorFlow cluster.

    STUDY.yaml is the configuration; without it the default study runs on this machine. `with` puts
    single keys over it: with opt_epoch=10 cluster.ps=0. `print_config` shows how it resolves.

    `nhop-coordinator logs TRIAL` shows what a trial printed, `nhop-coordinator certs` makes certificates
    for TLS: each has its own --help.
    """
    asked = Words.parse(words)
    if output == "":  # an unset variable of a script: the results would be among the files around
        raise UsageError("--output is empty; name a folder, or `.` for the current one")
    if output is not None and is_nearly_url(output):
        raise UsageError(
            f"--output {output}: a URL has two slashes, as in {output.partition(':')[0]}://bucket/folder; "
            f"./{output} is a folder"
        )
    from coordinator.host_sources import parse_source
    from coordinator.hosts import HostPolicy

    if insecure and hosts is None and serve is None:
        raise UsageError("--insecure is for --hosts and --serve")
    environment = click.get_current_context().get_parameter_source("tls") is ParameterSource.ENVIRONMENT
    named = TLS_VARIABLE if environment else "--tls"
    if tls is not None and insecure:
        raise UsageError(f"{named} and --insecure: one of them, not both")
    needed = hosts is not None or serve is not None
    security = _security(tls, insecure=insecure, needed=needed, named=named)
    source = None if hosts is None else parse_source(hosts)
    policy = HostPolicy(wait_hosts, min_hosts, host_limit, source, security)
    if serve is not None:
        if asked != Words() or dry_run:
            raise UsageError(
                "--serve takes its studies from clients: only --output and what is about hosts go with it"
            )
        return _serve(serve, policy, output)
    from coordinator.config import load

    config = load(asked.study, asked.overrides, remote=hosts is not None)
    if asked.print_config:
        for name, given in (("--hosts", hosts), ("--output", output), ("--dry-run", dry_run)):
            if given:
                raise UsageError(f"print_config takes no {name}")
        click.echo(config.to_yaml(), nl=False)
        _note(config)
        return 0
    _note(config)
    return _run(config, policy, output, dry_run=dry_run)


def main() -> None:
    """Runs the command with this process's arguments and ends the process."""
    open_standard_streams()
    take_over()
    # gRPC writes lines of its own to stderr, and reads this when it is imported; ours say it better.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status; errors go to stderr, each in one line."""
    chosen, name, rest = command, PROGRAM, list(arguments)
    if rest[:1] == [LOGS]:
        from coordinator.logs_command import logs

        chosen, name, rest = logs, f"{PROGRAM} {LOGS}", rest[1:]
    elif rest[:1] == [CERTS]:
        from coordinator.certs_command import certs

        chosen, name, rest = certs, f"{PROGRAM} {CERTS}", rest[1:]
    try:
        status = chosen.main(args=rest, prog_name=name, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else name, err=True)
        return 2
    except click.UsageError as error:
        _say(f"{error.format_message()}\nsee {name} --help")
        return 2
    except click.ClickException as error:
        _say(error.format_message())
        return error.exit_code
    except NhopError as error:
        _say(str(error))
        return error.exit_status
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; nothing more can be said there, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the last resort: a defect of ours, told without a traceback
        _say(f"internal error: {type(error).__name__}: {error}")
        with contextlib.suppress(OSError):  # no room for them
            _say(f"the details are in {_keep(error)}")
        return 1
    return int(status or 0)


def _run(config: StudyConfig, policy: HostPolicy, output: str | None, *, dry_run: bool) -> int:
    from coordinator.patience import check_lost

    agents = _read_hosts(policy)
    if agents is not None:
        check_lost(policy.lost, config.to_spec("").limits)
    from coordinator.session import plan_session, run_session

    if dry_run:
        plan_session(config, agents, policy, output)
        return 0
    return run_session(config, agents, policy, output)


def _serve(address: str, policy: HostPolicy, output: str | None) -> int:
    if output is not None and is_url(output):
        raise UsageError(
            f"--serve keeps its studies in a folder of this machine: {output} cannot be that one"
        )
    from coordinator.domain import Limits
    from coordinator.patience import check_lost

    agents = _read_hosts(policy)
    if agents is not None:
        check_lost(policy.lost, Limits())
    if policy.security.tls is not None:
        from nhop.security import handshakes

        handshakes.enable()
    from coordinator.session import serve_session

    serve_session(address, agents, policy, Path(output or "runs"))
    return 0  # a signal is how a service ends


def _security(folder: Path | None, *, insecure: bool, needed: bool, named: str) -> Security:
    """How those off this machine are spoken to; UsageError where the certificate cannot be used.

    ``named``: what says which folder.
    """
    from nhop.security.client import Security
    from nhop.security.errors import CertificateError
    from nhop.security.identity import Role

    if not needed:
        return Security()
    try:
        return Security.find(folder, Role.COORDINATOR, insecure=insecure)
    except CertificateError as error:
        raise UsageError(f"{named}: {error}") from error


def _read_hosts(policy: HostPolicy) -> tuple[AgentAddress, ...] | None:
    from coordinator.wording import some
    from nhop._listening import is_local

    agents = None if policy.source is None else policy.source.read(refusal=policy.security.refusal)
    policy.check(agents)
    if agents is None:
        return None
    remote = [agent.target for agent in agents if not is_local(agent.target)]
    if remote and policy.security.insecure:
        _say(f"warning: --insecure: what goes to {some(remote)} is neither encrypted nor authenticated")
    return agents


def _note(config: StudyConfig) -> None:
    for note in config.notes:
        _say(f"note: {note}")


def _say(text: str) -> None:
    for line in text.splitlines():
        click.echo(f"{PROGRAM}: {line}", err=True)


def _keep(error: BaseException) -> str:
    """Writes the traceback to a file; returns its path."""
    handle, name = tempfile.mkstemp(prefix=f"{PROGRAM}-", suffix=".log")
    with os.fdopen(handle, "w") as file:
        file.writelines(traceback.format_exception(error))
    return name

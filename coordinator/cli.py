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

from coordinator.errors import NhopError, UsageError
from nhop._process import open_standard_streams

if TYPE_CHECKING:
    from coordinator.config import StudyConfig
    from coordinator.hosts import AgentAddress

PROGRAM = "nhop-coordinator"
INTERRUPTED = 130


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
@click.option("--hosts", type=click.Path(path_type=Path), help="Agents to use: one host[:port] a line.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder of the results; with --serve: of all studies."
)
@click.option("--serve", metavar="ADDRESS", help="Serve studies to clients at host:port or unix:/path.")
@click.option("--dry-run", is_flag=True, help="Check everything, show what would run, start nothing.")
@click.version_option(package_name="nhop", message="%(prog)s %(version)s")
def command(
    words: tuple[str, ...], hosts: Path | None, output: Path | None, serve: str | None, dry_run: bool
) -> int:
    """Search for good hyper-parameters in stages, with every trial a TensorFlow cluster.

    STUDY.yaml is the configuration; without it the default study runs on this machine. `with` puts
    single keys over it: with opt_epoch=10 cluster.ps=0. `print_config` shows how it resolves.
    """
    asked = Words.parse(words)
    if serve is not None:
        if asked != Words() or dry_run:
            raise UsageError("--serve takes its studies from clients: only --hosts and --output go with it")
        return _serve(serve, hosts, output)
    from coordinator.config import load

    config = load(asked.study, asked.overrides)
    if asked.print_config:
        for name, given in (("--hosts", hosts), ("--output", output), ("--dry-run", dry_run)):
            if given:
                raise UsageError(f"print_config takes no {name}")
        click.echo(config.to_yaml(), nl=False)
        _note(config)
        return 0
    _note(config)
    return _run(config, hosts, output, dry_run=dry_run)


def main() -> None:
    """Runs the command with this process's arguments and ends the process."""
    open_standard_streams()
    # gRPC writes lines of its own to stderr, and reads this when it is imported; ours say it better.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status; errors go to stderr, each in one line."""
    try:
        status = command.main(args=list(arguments), prog_name=PROGRAM, standalone_mode=False)
    except click.UsageError as error:
        _say(f"{error.format_message()}\nsee {PROGRAM} --help")
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


def _run(config: StudyConfig, hosts: Path | None, output: Path | None, *, dry_run: bool) -> int:
    agents = _read_hosts(hosts)
    if dry_run:
        from coordinator.plan import show_plan
        from coordinator.runtime import run_loop

        run_loop(show_plan(config, agents, output))
        return 0
    from coordinator.session import run_session

    return run_session(config, agents, output)


def _serve(address: str, hosts: Path | None, output: Path | None) -> int:
    agents = _read_hosts(hosts)
    from coordinator.session import serve_session

    serve_session(address, agents, output or Path("runs"))
    return 0  # a signal is how a service ends


def _read_hosts(path: Path | None) -> tuple[AgentAddress, ...] | None:
    if path is None:
        return None
    from coordinator.hosts import parse_hosts

    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{path}: the hosts file cannot be read: {reason}") from None
    return parse_hosts(text, str(path))


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

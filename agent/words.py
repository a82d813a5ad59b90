"""What ``nhop-agent`` is asked for: to be an agent, ``nhop-agent install`` or ``nhop-agent firewall``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from agent.cli import main as agent
from agent.config import AgentError

PROGRAM = "nhop-agent"
WORDS = ("firewall", "install")
INTERRUPTED = 130


def run(arguments: Sequence[str]) -> NoReturn:
    """Runs a command and ends the process; an error is told in one line on stderr, and where help is."""
    first = arguments[0] if arguments else ""
    if first in WORDS:
        command, name, rest = _command(first), f"{PROGRAM} {first}", arguments[1:]
    else:
        command, name, rest = agent, PROGRAM, arguments
    try:
        if command is agent and first and not first.startswith("-"):
            raise click.UsageError(f"there is no {PROGRAM} {first!r}, only: {', '.join(WORDS)}")
        status = command.main(args=list(rest), prog_name=name, standalone_mode=False)
    except click.UsageError as error:
        _say(f"{name}: {error.format_message()}")
        _say(f"{name}: see {name} --help")
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _say(f"{name}: {error.format_message()}")
        sys.exit(error.exit_code)
    except AgentError as error:
        _say(f"{name}: {error}")
        sys.exit(error.exit_status)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)
    sys.exit(status)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _command(word: str) -> click.Command:
    if word == "firewall":
        from agent.firewall_command import firewall

        return firewall
    from agent.install_command import install

    return install

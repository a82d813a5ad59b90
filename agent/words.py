"""The commands of ``nhop-agent`` that are no agent: ``nhop-agent install``, ``nhop-agent firewall``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from agent.config import AgentError

PROGRAM = "nhop-agent"
WORDS = ("firewall", "install")


def run_word(word: str, arguments: Sequence[str]) -> None:
    """Runs one of WORDS and ends the process; an error is one line on stderr."""
    try:
        _command(word).main(args=list(arguments), prog_name=f"{PROGRAM} {word}")
    except AgentError as error:
        click.echo(f"{PROGRAM} {word}: {error}", err=True)
        sys.exit(error.exit_status)


def _command(word: str) -> click.Command:
    if word == "firewall":
        from agent.firewall_command import firewall

        return firewall
    from agent.install_command import install

    return install

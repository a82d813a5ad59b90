"""``nhop-agent firewall``: rules for nftables, for this host and the hosts of its studies."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli import PortRange
from agent.config import DEFAULT_PORTS, ConfigError, ListenAddress
from agent.firewall import Ports, rules
from agent.peers import find_peers

DEFAULT_PORT = 7001


class ListenPort(click.ParamType[int | None]):
    """A port, or where an agent listens; None: at no port."""

    name = "port"

    def convert(
        self, value: str | int | None, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """The port; wrong usage for anything else."""
        if value is None or isinstance(value, int):
            return value
        try:
            listen = ListenAddress.parse(f"localhost:{value}" if value.isdecimal() else value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        return None if listen.path is not None else listen.port


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--hosts",
    type=click.Path(path_type=Path),
    help="Hosts file: these hosts, and no others, may reach the ports of tasks.",
)
@click.option(
    "--coordinator",
    multiple=True,
    metavar="ADDRESS",
    help="Let only this name, address or network, and the hosts, reach the agent; may be repeated. "
    "Without it everybody may, and has to show a certificate.",
)
@click.option(
    "--listen",
    type=ListenPort(),
    default=DEFAULT_PORT,
    show_default=True,
    metavar="PORT",
    help="The agent's port, or its whole --listen.",
)
@click.option(
    "--port-range",
    type=PortRange(),
    default=DEFAULT_PORTS,
    show_default="20000-29999",
    help="As of the agent: ports that tasks may listen on.",
)
def firewall(
    hosts: Path | None, coordinator: tuple[str, ...], listen: int | None, port_range: tuple[int, int]
) -> None:
    """Prints rules for nftables that fence the ports of tasks and the agent's on this machine.

    Names are looked up now. Load the rules as root: nhop-agent firewall --hosts hosts.txt | nft -f -
    """
    click.echo(rules(Ports(listen, port_range), find_peers(hosts, coordinator)), nl=False)

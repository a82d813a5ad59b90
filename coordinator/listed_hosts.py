"""Hosts that something else than a file lists."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from coordinator.errors import UsageError
from coordinator.hosts import AgentAddress, parse_line, same_agent


class Listed(NamedTuple):
    """A host: how messages name it, and what would stand in its line of a hosts file."""

    name: str
    line: str


def addresses_of(where: str, found: Iterable[Listed], *, refusal: str) -> tuple[AgentAddress, ...]:
    """The agents of the hosts that a source has found; ``refusal`` as for ``parse_hosts``.

    ``where`` begins what is told. Raises UsageError where one cannot be used, or two are the same; that
    tells of the first, since what is wrong with one host is often wrong with all.
    """
    addresses: list[AgentAddress] = []
    problems: list[str] = []
    names: dict[str, str] = {}
    for name, line in found:
        try:
            address = parse_line(line.split(), refusal=refusal)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        first = names.setdefault(same_agent(address.target), name)
        if first != name:
            problems.append(f"{name}: has the same address as {first}, {address.target}")
        addresses.append(address)
    if problems:
        others = f"; {len(problems) - 1} more cannot be used either" if len(problems) > 1 else ""
        raise UsageError(f"{where}: {problems[0]}{others}")
    return tuple(addresses)

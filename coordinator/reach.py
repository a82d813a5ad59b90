"""Asks hosts whether they reach each other's task ports."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from coordinator.agent_link import AgentLink
from coordinator.link_errors import HostUnreachableError
from coordinator.preflight import ALL_IN_USE, Reach

NEIGHBOURS = 32
"""Hosts that each one tries to reach: with more than these, not every pair is tried."""

Probe = tuple[str, str]
"""Address and token of an open port."""


async def find_reach(links: Mapping[str, AgentLink], origins: Sequence[str], targets: Sequence[str]) -> Reach:
    """Whether each of the origins reaches the targets, but for itself; no failure is an error.

    ALL_IN_USE where the target has no port free. Where there are many targets each origin tries those
    that come next to it only.
    """
    opened = await asyncio.gather(*(_open(links[name]) for name in targets))
    probes = dict(zip(targets, opened, strict=True))
    found = await asyncio.gather(*(_check(links[origin], probes) for origin in origins))
    return {pair: why for part in found for pair, why in part.items()}


async def _open(link: AgentLink) -> Probe | str:
    try:
        return await link.open_probe() or ALL_IN_USE
    except HostUnreachableError as error:
        return f"it cannot open one: {error}"


async def _check(origin: AgentLink, probes: Mapping[str, Probe | str]) -> dict[tuple[str, str], str]:
    names = list(probes)
    place = names.index(origin.name) if origin.name in probes else 0
    near = [names[(place + step) % len(names)] for step in range(min(len(names), NEIGHBOURS + 1))]
    others = {name: probes[name] for name in near if name != origin.name}
    open_ones = {name: probe for name, probe in others.items() if not isinstance(probe, str)}
    found = {(origin.name, name): why for name, why in others.items() if isinstance(why, str)}
    if not open_ones:
        return found
    try:
        answers = await origin.reach(list(open_ones.values()))
    except HostUnreachableError as error:
        answers = [f"it could not try: {error}"] * len(open_ones)
    return found | {(origin.name, name): why for name, why in zip(open_ones, answers, strict=True)}

"""Asks the hosts at the start of a study, and waits for those that do not answer yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from coordinator.agent_link import AgentLink
from coordinator.domain import Notice
from coordinator.hosts import HostPolicy, Inventory
from coordinator.link_errors import HostUnreachableError

ASK_AGAIN = 1.0
"""Seconds until a host that does not answer is asked again."""

GRACE = 5.0
"""Seconds that all hosts have to answer before a study begins with fewer of them."""

LOADING_LIMIT = 15.0
"""Seconds that an agent may take to load TensorFlow before the first trial does not wait for it."""

ASKED_AT_ONCE = 64
"""Agents that are asked at a time: a thousand answers at once would miss the deadline."""

Tell = Callable[[Notice], None]


async def muster(
    links: Mapping[str, AgentLink], policy: HostPolicy, tell: Tell
) -> tuple[dict[str, Inventory], dict[str, str]]:
    """What the hosts have, and why those that did not answer in time did not.

    ``tell`` is given a word about each host that is waited for.
    """
    loop = asyncio.get_running_loop()
    begun = loop.time()
    fewest = policy.fewest or len(links)
    found: dict[str, Inventory] = {}
    reasons: dict[str, str] = {}
    room = asyncio.Semaphore(ASKED_AT_ONCE)
    asking = {asyncio.create_task(_ask(link, policy, found, reasons, tell, room)) for link in links.values()}
    try:
        while asking:
            enough = len(found) >= fewest
            end = begun + (min(GRACE, policy.wait) if enough else policy.wait)
            left = end - loop.time()
            if left <= 0 and all(name in reasons or name in found for name in links):
                break
            done, asking = await asyncio.wait(
                asking, timeout=max(left, 0.1), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    # In the order of the hosts file, not of their answers: placement follows it.
    answers = {name: found[name] for name in links if name in found}
    return answers, {name: reasons[name] for name in links if name not in found}


async def _ask(
    link: AgentLink,
    policy: HostPolicy,
    found: dict[str, Inventory],
    reasons: dict[str, str],
    tell: Tell,
    room: asyncio.Semaphore,
) -> None:
    """Asks one host until it answers and has loaded TensorFlow."""
    loop = asyncio.get_running_loop()
    answered: float | None = None
    said = False
    while True:
        try:
            async with room:
                inventory = await link.inventory()
        except HostUnreachableError as error:
            if not said and policy.wait > 0:
                tell(Notice(f"waiting for host {link.name}: {error}", warning=True))
            said = True
            reasons[link.name] = str(error)
            await asyncio.sleep(ASK_AGAIN)
            continue
        answered = answered or loop.time()
        reasons.pop(link.name, None)
        if inventory.tensorflow_version or loop.time() - answered >= LOADING_LIMIT:
            found[link.name] = inventory
            return
        await asyncio.sleep(ASK_AGAIN / 4)

"""The text of a hosts file, as far as the coordinator and the agent both read it."""

from __future__ import annotations

import re
from collections.abc import Iterator

UNIX = "unix:"
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::([^:]*))?")


def lines_of(text: str) -> Iterator[tuple[int, list[str]]]:
    """The words of each line that has any, behind its number, without ``#`` comments."""
    for number, line in enumerate(text.splitlines(), start=1):
        words = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].split()
        if words:
            yield number, words


def split_address(text: str) -> tuple[str, str | None]:
    """Host (IPv6 in brackets) and port of ``host[:port]``; ValueError for anything else."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not host[:port]; an IPv6 address is written in brackets: [::1]:7001")
    return match[1], match[2]

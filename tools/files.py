"""Looks at files that are about to be committed: `python -m tools.files FILE ...`.

Finds what nobody means to commit: white space at the ends of lines, a missing end of line, marks of a merge,
private keys and tokens, very large files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 1 << 20
_KEYS = re.compile(
    rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    rb"|\bAKIA[0-9A-Z]{16}\b|\bghp_[A-Za-z0-9]{36}\b|\bxox[bp]-[0-9A-Za-z-]{20,}"
)
_MERGE = re.compile(rb"(?m)^(?:<{7} |>{7} |={7}$)")
_GENERATED = ("nhop/v1/", "requirements.lock")


def look(name: str, data: bytes) -> Iterator[str]:
    """What is wrong with a file."""
    if len(data) > MOST_BYTES:
        yield f"{name}: has {len(data):,} bytes: does it belong here?"
    if found := _KEYS.search(data):
        yield f"{name}:{_line(data, found.start())}: looks like a private key or a token"
    if b"\0" in data or name.startswith(_GENERATED):
        return
    if found := _MERGE.search(data):
        yield f"{name}:{_line(data, found.start())}: a mark of a merge"
    if found := re.search(rb"[ \t\r]+$", data, re.MULTILINE):
        yield f"{name}:{_line(data, found.start())}: white space at the end of the line"
    if data and (not data.endswith(b"\n") or data.endswith(b"\n\n")):
        yield f"{name}: must end with one line feed"


def _line(data: bytes, place: int) -> int:
    return data.count(b"\n", 0, place) + 1


def main(names: list[str]) -> int:
    """Says what is wrong; 0 where nothing is."""
    problems = [
        problem for name in names if Path(name).is_file() for problem in look(name, Path(name).read_bytes())
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

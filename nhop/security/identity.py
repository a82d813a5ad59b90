"""Who is at the other end: the role and the name that a certificate carries."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

SCHEME = "nhop"
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,126}[A-Za-z0-9])?")
"""Names of certificates: those of hosts and people; a path or a URI cannot be made of one."""

_URI = re.compile(rf"{SCHEME}://([a-z]+)/({NAME.pattern})")


class Role(enum.Enum):
    """What the holder of a certificate is for."""

    COORDINATOR = "coordinator"
    AGENT = "agent"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Identity:
    """``name`` tells holders of the same role apart: a renewed certificate keeps it. ``uri``: as there."""

    role: Role
    name: str
    uri: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", f"{SCHEME}://{self.role.value}/{self.name}")

    @classmethod
    def find(cls, names: Iterable[str]) -> Identity | None:
        """The one identity among the alternative names of a certificate; None where it has not just one."""
        matches = [match for name in names if (match := _URI.fullmatch(name)) is not None]
        if len(matches) != 1 or matches[0][1] not in {role.value for role in Role}:
            return None
        return cls(Role(matches[0][1]), matches[0][2])

    def __str__(self) -> str:
        return f"{self.role.value} {self.name}"

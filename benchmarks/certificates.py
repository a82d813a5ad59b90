"""Certificates of a coordinator and an agent on the loopback interface, of an authority of their own."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import NamedTuple

from nhop.security.authority import Authority
from nhop.security.identity import Identity, Role


class Certificates(NamedTuple):
    """TLS folders."""

    coordinator: Path
    agent: Path


def make_certificates(folder: Path) -> Certificates:
    """For the addresses of the loopback interface."""
    now = datetime.datetime.now(datetime.UTC)
    authority = Authority.create(folder, "benchmark", now)
    made = Certificates(folder / "coordinator", folder / "agent")
    for place, role in zip(made, (Role.COORDINATOR, Role.AGENT), strict=True):
        authority.issue(place, Identity(role, "benchmark"), ["127.0.0.1", "localhost"], now, days=1)
    return made

"""Certificates for tests: an authority whose past is long enough to issue expired ones."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path

import grpc

from nhop.security.authority import Authority
from nhop.security.identity import Identity, Role

AGENT, COORDINATOR, CLIENT = Role.AGENT, Role.COORDINATOR, Role.CLIENT
LOOPBACK = ("127.0.0.1", "::1", "localhost")
DAY = datetime.timedelta(days=1)


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Office:
    """An authority in ``folder``, made ``begun`` days ago, and the TLS folders that it issued, beside it."""

    def __init__(self, folder: Path, name: str = "test", *, begun: int = 1000) -> None:
        self.folder = folder
        self.authority = Authority.create(folder / "ca", name, utc_now() - begun * DAY)
        self._issued = 0

    def issue(
        self,
        role: Role,
        name: str = "somebody",
        *hosts: str,
        begun: datetime.timedelta = DAY,
        place: Path | None = None,
        days: int = 365,
    ) -> Path:
        """A folder; valid from about ``begun`` ago, for ``days``. ``place``: replaces what is there."""
        if place is None:
            self._issued += 1
            place = self.folder / f"{self._issued}-{role.value}"
        at = hosts or (() if role is CLIENT else LOOPBACK)
        self.authority.issue(place, Identity(role, name), at, utc_now() - begun, days)
        return place

    def expired(self, role: Role, name: str = "somebody") -> Path:
        return self.issue(role, name, begun=400 * DAY)

    def not_yet_valid(self, role: Role, name: str = "somebody") -> Path:
        return self.issue(role, name, begun=-2 * DAY)

    def ending_in(self, seconds: float, role: Role, name: str = "somebody") -> Path:
        return self.issue(role, name, begun=DAY - datetime.timedelta(seconds=seconds), days=1)


def trust(folder: Path, *offices: Office) -> None:
    """From now on the holder of a TLS folder trusts these authorities."""
    (folder / "ca.crt").write_bytes(b"".join(office.authority.trusted for office in offices))


def with_authority_of(folder: Path, office: Office) -> Path:
    """A copy of a TLS folder that trusts another authority, too: how a stranger shows what it has."""
    copy = folder.with_name(f"{folder.name}-copy")
    shutil.copytree(folder, copy)
    with (copy / "ca.crt").open("ab") as file:
        file.write(office.authority.trusted)
    return copy


def credentials(folder: Path) -> grpc.ChannelCredentials:
    """As a caller with this folder has them, whatever is amiss with it."""
    authority, certificate, key = ((folder / name).read_bytes() for name in ("ca.crt", "tls.crt", "tls.key"))
    return grpc.ssl_channel_credentials(authority, key, certificate)

"""The calling end of TLS."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from nhop._listening import UNIX, is_local
from nhop.security.errors import CertificateError
from nhop.security.identity import Role

if TYPE_CHECKING:
    import grpc

CERTS = "certs"
_GET = {
    Role.COORDINATOR: "Make certificates with `nhop-coordinator certs init`, once for all machines, or name "
    "a folder with --tls",
    Role.CLIENT: "Have one made where the authority is (`nhop-coordinator certs issue client NAME`) and copy "
    "it there, or name its folder with --tls (in Python tls=)",
}
_WITHOUT = "in a network where you trust every machine --insecure goes without, here and on the other side"


class ClientTls:
    """Our certificate as a caller, and where it is used.

    ``loopback``: for addresses of this machine as well, which go without TLS otherwise. Raises
    CertificateError where the folder cannot be used.
    """

    def __init__(self, folder: Path, role: Role, *, loopback: bool = True) -> None:
        from nhop.security.rotation import Rotation  # which loads what only TLS needs

        self.rotation = Rotation(folder, role)
        self._loopback = loopback

    def covers(self, target: str) -> bool:
        """Whether a gRPC target is called with TLS: Unix sockets never are."""
        return not target.startswith(UNIX) and (self._loopback or not is_local(target))

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel; of the newest files."""
        import grpc

        files = self.rotation.files
        return grpc.ssl_channel_credentials(files.authority, files.key, files.certificate)


def default_certs() -> Path:
    """Where certificates are unless the user says otherwise: in ~/.config/nhop, or below XDG_CONFIG_HOME.

    Raises CertificateError where this user has no home.
    """
    home = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        base = Path(home) if home.startswith("/") else Path.home() / ".config"
    except RuntimeError:
        raise CertificateError("this user has no home for certificates: set XDG_CONFIG_HOME") from None
    return base / "nhop" / CERTS


def _refusal(role: Role, why: str) -> str:
    """Why nobody off loopback is spoken to, and what to do; of the roles that have a default certificate."""
    others = "coordinators" if role is Role.CLIENT else "hosts"
    return f"{others} off this machine need TLS, and {why}. {_GET[role]}; {_WITHOUT}"


@dataclass(frozen=True, slots=True)
class Security:
    """How those off this machine are spoken to.

    ``refusal`` says why nobody off loopback can be; empty: with ``tls``, or where that is None without it.
    """

    tls: ClientTls | None = None
    refusal: str = ""

    @classmethod
    def find(cls, folder: Path | None, role: Role, *, insecure: bool = False) -> Self:
        """By the folder that was named, or the default one of a role if there is one.

        Raises CertificateError where the named one cannot be used, or ``insecure`` contradicts it.
        """
        if folder is not None and insecure:
            raise CertificateError("--tls and --insecure: one of them, not both")
        if folder is not None:
            return cls(ClientTls(folder, role))
        if insecure:
            return cls()
        try:
            usual = default_certs() / role.value
            if not usual.is_dir():
                return cls(None, _refusal(role, f"{usual} is not there"))
            return cls(ClientTls(usual, role, loopback=False))
        except CertificateError as error:
            return cls(None, str(error))
        except OSError as error:
            return cls(None, _refusal(role, f"{usual}: {error.strerror}"))

    @property
    def insecure(self) -> bool:
        """Whether those off this machine are spoken to without TLS, as the user has asked for."""
        return self.tls is None and not self.refusal

    def tls_for(self, target: str) -> ClientTls | None:
        """What a gRPC target is called with; None: without TLS."""
        return self.tls if self.tls is not None and self.tls.covers(target) else None

"""The serving end of TLS: credentials that follow their files, and limits for everybody who connects."""

from __future__ import annotations

import grpc

from nhop.security.folder import is_signed
from nhop.security.rotation import Rotation

HANDSHAKE_MS = 10_000
"""Who has connected and does not come to the point is cut off."""

CONNECTIONS = 4_096
"""Connections in all, far below what the process may have open."""

LIMITS = (
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
    ("grpc.max_allowed_incoming_connections", CONNECTIONS),
)
"""Options of a server that others than its owner can reach."""


def server_credentials(rotation: Rotation) -> grpc.ServerCredentials:
    """TLS with client certificates required; each connection is made by the newest files.

    No session is ever resumed: a ticket would let a caller in whose certificate has ended meanwhile. The
    keys of tickets go with the configuration that they were made under, and each handshake has its own.
    """

    def configuration() -> grpc.ServerCertificateConfiguration:
        # On a thread of gRPC's, at each handshake: nothing may block or log here.
        files = rotation.files
        return grpc.ssl_server_certificate_configuration([(files.key, files.certificate)], files.authority)

    return grpc.dynamic_ssl_server_credentials(
        configuration(), configuration, require_client_authentication=True
    )


class Trusted:
    """Whether callers' certificates are of an authority that is trusted now: connections may be older.

    So whoever is taken out of ``ca.crt`` has no say from then on, without a restart.
    """

    def __init__(self, rotation: Rotation) -> None:
        self._rotation = rotation
        self._generation = 0
        self._found: dict[bytes, bool] = {}

    def __call__(self, certificate: bytes) -> bool:
        """Of a certificate in PEM that passed the handshake of its connection."""
        if self._generation != self._rotation.generation or len(self._found) >= CONNECTIONS:
            self._generation = self._rotation.generation
            self._found.clear()
        found = self._found.get(certificate)
        if found is None:
            found = self._found[certificate] = is_signed(certificate, self._rotation.files.authority)
        return found

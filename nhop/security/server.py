"""The serving end of TLS: credentials that follow their files, and limits for everybody who connects."""

from __future__ import annotations

from typing import Any

import grpc

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
    """TLS with client certificates required; new connections use the newest files."""
    served = rotation.generation

    def configuration() -> grpc.ServerCertificateConfiguration:
        files = rotation.files
        return grpc.ssl_server_certificate_configuration([(files.key, files.certificate)], files.authority)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # On a thread of gRPC's, at each handshake: nothing may block or log here.
        nonlocal served
        if served == rotation.generation:
            return None
        served = rotation.generation
        return configuration()

    stays: Any = fetch  # the stubs do not know that None keeps what there is
    return grpc.dynamic_ssl_server_credentials(configuration(), stays, require_client_authentication=True)
